#include "ggml-numa-graph.h"

#include "ggml-impl.h"

#if defined(__gnu_linux__)

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

// a fused operation may look beyond the last node; it finds nodes of no operation there
#define NUMA_GRAPH_BEYOND 8

// what is kept of graphs that are not being computed
#define NUMA_GRAPH_MAX_KEPT  64
#define NUMA_GRAPH_MAX_BYTES ((size_t) 64 << 20)

struct numa_entry {
    struct ggml_tensor * tensor;
    struct ggml_tensor * src  [GGML_MAX_SRC]; // its sources when the copies were made
    int32_t              index[GGML_MAX_SRC]; // where these are in the list, -1 if they are not
    int32_t              user;                // the node that has this tensor as a source ...
    int32_t              slot;                // ... in this place; unused for nodes
};

struct ggml_numa_graph {
    struct ggml_numa_graph * next;
    bool     in_use;
    uint64_t used; // when it was last begun
    size_t   bytes;

    const void * table;
    const struct ggml_cgraph * cgraph;

    struct ggml_tensor ** key; // cgraph->nodes when the copies were made
    int n_nodes;
    int n_tensors;
    int n_views;               // one for each NUMA node, and one for the primaries if they have to be written; 0: no copies
    bool fresh;                // pointers between the copies are not set yet
    _Atomic bool stale;

    struct numa_entry   * entries; // [n_tensors], the nodes first
    struct ggml_tensor  * copies;  // [n_views][n_tensors]
    struct ggml_tensor ** nodes;   // [n_views][n_nodes + NUMA_GRAPH_BEYOND]
    uint8_t             * n_runs;  // [n_nodes]
    struct ggml_cgraph    view[GGML_NUMA_MIRROR_MAX_NODES + 1];
};

static struct {
    pthread_mutex_t mutex;
    struct ggml_numa_graph * first;
    uint64_t clock;
} g_graphs = { .mutex = PTHREAD_MUTEX_INITIALIZER };

static struct ggml_tensor numa_nothing; // GGML_OP_NONE

//
// Copies
//

static void numa_graph_clear(struct ggml_numa_graph * g) {
    free(g->entries);
    free(g->copies);
    free(g->nodes);
    free(g->n_runs);
    g->entries   = NULL;
    g->copies    = NULL;
    g->nodes     = NULL;
    g->n_runs    = NULL;
    g->n_tensors = 0;
    g->bytes     = 0;
}

static int numa_graph_runs(const struct ggml_numa_graph * g, const struct ggml_tensor * node) {
    const struct ggml_numa_mirror_thread probe = { .table = g->table };
    return ggml_is_noop(node) ? 1 : ggml_numa_mirror_n_runs(&probe, node);
}

// the place of a pointer in a table of 2^n places: its own, or the empty one it belongs into
static size_t numa_graph_place(const struct numa_entry * entries, const int32_t * places, size_t n_places, const void * tensor) {
    size_t at = (size_t) (((uintptr_t) tensor >> 4)*(uintptr_t) 0x9E3779B97F4A7C15ull >> 20) & (n_places - 1);
    while (places[at] >= 0 && entries[places[at]].tensor != tensor) {
        at = (at + 1) & (n_places - 1);
    }
    return at;
}

// list the tensors of the graph and make room for their copies
static void numa_graph_build(struct ggml_numa_graph * g) {
    const struct ggml_cgraph * cgraph = g->cgraph;
    numa_graph_clear(g);
    g->key     = cgraph->nodes;
    g->n_nodes = cgraph->n_nodes;
    g->fresh   = true;

    size_t n_max = cgraph->n_nodes;
    g->n_views = ggml_numa_mirror_n_nodes();
    for (int i = 0; i < cgraph->n_nodes; ++i) {
        const struct ggml_tensor * node = cgraph->nodes[i];
        for (int j = 0; j < GGML_MAX_SRC; ++j) {
            n_max += node->src[j] != NULL;
        }
        const int n_runs = numa_graph_runs(g, node);
        g->n_views = n_runs > g->n_views ? n_runs : g->n_views;
    }

    size_t n_places = 64;
    while (n_places < 2*n_max) {
        n_places *= 2;
    }
    int32_t * places = malloc(n_places*sizeof(int32_t));
    g->entries = malloc(n_max*sizeof(struct numa_entry));
    GGML_ASSERT(places != NULL && g->entries != NULL);
    memset(places, -1, n_places*sizeof(int32_t));

    int n = 0;
    for (; n < cgraph->n_nodes; ++n) {
        g->entries[n] = (struct numa_entry) { .tensor = cgraph->nodes[n] };
        places[numa_graph_place(g->entries, places, n_places, cgraph->nodes[n])] = n;
    }
    for (int i = 0; i < cgraph->n_nodes; ++i) {
        for (int j = 0; j < GGML_MAX_SRC; ++j) {
            struct ggml_tensor * src = cgraph->nodes[i]->src[j];
            const size_t at = src ? numa_graph_place(g->entries, places, n_places, src) : 0;
            if (src != NULL && places[at] < 0) {
                g->entries[n] = (struct numa_entry) { .tensor = src, .user = i, .slot = j };
                places[at] = n++;
            }
        }
    }
    for (int i = 0; i < n; ++i) {
        struct numa_entry * entry = &g->entries[i];
        memcpy(entry->src, entry->tensor->src, sizeof(entry->src));
        for (int j = 0; j < GGML_MAX_SRC; ++j) {
            entry->index[j] = entry->src[j] ? places[numa_graph_place(g->entries, places, n_places, entry->src[j])] : -1;
        }
    }
    free(places);

    // the copies are written by the threads that will read them, so that they lie near those
    const size_t n_all = (size_t) g->n_views*n;
    const size_t n_row = (size_t) g->n_nodes + NUMA_GRAPH_BEYOND;
    g->n_tensors = n;
    g->copies    = malloc(n_all*sizeof(struct ggml_tensor));
    g->nodes     = malloc(g->n_views*n_row*sizeof(struct ggml_tensor *));
    g->n_runs    = malloc(g->n_nodes);
    GGML_ASSERT(g->copies != NULL && g->nodes != NULL && g->n_runs != NULL);
    g->bytes     = n_max*sizeof(struct numa_entry) + n_all*sizeof(struct ggml_tensor) + g->n_views*n_row*sizeof(void *);
    for (int v = 0; v < g->n_views; ++v) {
        struct ggml_tensor ** nodes = g->nodes + v*n_row;
        for (int i = 0; i < g->n_nodes; ++i) {
            nodes[i] = &g->copies[(size_t) v*n + i];
        }
        for (int i = 0; i < NUMA_GRAPH_BEYOND; ++i) {
            nodes[g->n_nodes + i] = &numa_nothing;
        }
    }
}

static void numa_graph_set_views(struct ggml_numa_graph * g) {
    for (int v = 0; v < g->n_views; ++v) {
        g->view[v]       = *g->cgraph;
        g->view[v].nodes = g->nodes + v*((size_t) g->n_nodes + NUMA_GRAPH_BEYOND);
    }
}

// bring copies [first, last) of a view up to date; false if they are of another graph
static bool numa_graph_refresh(struct ggml_numa_graph * g, int v, int first, int last) {
    struct ggml_tensor * copies = g->copies + (size_t) v*g->n_tensors;
    for (int i = first; i < last; ++i) {
        const struct numa_entry * entry = &g->entries[i];
        // only nodes and what they point to are sure to be there
        if (i < g->n_nodes) {
            if (g->cgraph->nodes[i] != entry->tensor) {
                return false;
            }
        } else if (g->cgraph->nodes[entry->user]->src[entry->slot] != entry->tensor) {
            return false;
        }
        const struct ggml_tensor * tensor = entry->tensor;
        if (memcmp(tensor->src, entry->src, sizeof(entry->src)) != 0) {
            return false;
        }
        struct ggml_tensor * copy = &copies[i];
        const size_t at_src  = offsetof(struct ggml_tensor, src);
        const size_t at_rest = at_src + sizeof(tensor->src);
        memcpy(copy, tensor, at_src);
        memcpy((char *) copy + at_rest, (const char *) tensor + at_rest, sizeof(*tensor) - at_rest);
        copy->data = ggml_numa_mirror_address(g->table, tensor->data, v);
        if (g->fresh) {
            for (int j = 0; j < GGML_MAX_SRC; ++j) {
                copy->src[j] = entry->index[j] >= 0 ? &copies[entry->index[j]] : entry->src[j];
            }
        }
        if (v == 0 && i < g->n_nodes) {
            const int n_runs = numa_graph_runs(g, tensor);
            if (n_runs > g->n_views) {
                return false;
            }
            g->n_runs[i] = (uint8_t) n_runs;
        }
    }
    return true;
}

// this thread's part of all views: those of its own NUMA node, and its share of those that no thread uses by itself
static bool numa_graph_refresh_part(struct ggml_numa_graph * g, const struct ggml_numa_mirror_thread * t) {
    const int64_t n   = ggml_numa_mirror_n_nodes();
    const int64_t nth = t->nth;
    const int64_t all = g->n_tensors;
    for (int64_t v = 0; v < g->n_views; ++v) {
        int64_t begin = (v*nth + n - 1)/n;
        int64_t end   = ((v + 1)*nth + n - 1)/n;
        if (v >= n || begin >= end) {
            begin = 0;
            end   = nth;
        }
        if (t->ith < begin || t->ith >= end) {
            continue;
        }
        const int64_t i = t->ith - begin;
        const int64_t m = end - begin;
        if (!numa_graph_refresh(g, (int) v, (int) (all*i/m), (int) (all*(i + 1)/m))) {
            return false;
        }
    }
    return true;
}

//
// Interface
//

struct ggml_numa_graph * ggml_numa_graph_begin(const struct ggml_cgraph * cgraph) {
    const void * table = ggml_numa_mirror_acquire();
    if (table == NULL) {
        return NULL;
    }
    const bool copies = ggml_numa_mirror_has_copies(table);

    pthread_mutex_lock(&g_graphs.mutex);
    struct ggml_numa_graph * g = g_graphs.first;
    while (g != NULL && (g->in_use || !copies || g->key != cgraph->nodes || g->n_nodes != cgraph->n_nodes || g->n_views == 0)) {
        g = g->next;
    }
    const bool found = g != NULL;
    if (!found) {
        g = calloc(1, sizeof(*g));
        GGML_ASSERT(g != NULL);
        g->next = g_graphs.first;
        g_graphs.first = g;
    }
    g->in_use = true;
    g->used   = ++g_graphs.clock;
    pthread_mutex_unlock(&g_graphs.mutex);

    g->table  = table;
    g->cgraph = cgraph;
    if (copies) {
        if (!found) {
            numa_graph_build(g);
        }
        numa_graph_set_views(g);
    }
    return g;
}

void ggml_numa_graph_end(struct ggml_numa_graph * g) {
    if (g == NULL) {
        return;
    }
    ggml_numa_mirror_release(g->table);
    pthread_mutex_lock(&g_graphs.mutex);
    g->in_use = false;
    g->table  = NULL;
    g->cgraph = NULL;
    for (;;) {
        // the one to give up: without copies, or the one not used for longest
        int    kept  = 0;
        size_t bytes = 0;
        struct ggml_numa_graph ** oldest = NULL;
        for (struct ggml_numa_graph ** at = &g_graphs.first; *at; at = &(*at)->next) {
            kept  += 1;
            bytes += (*at)->bytes;
            if (!(*at)->in_use && (oldest == NULL || (*at)->n_views == 0 || ((*oldest)->n_views != 0 && (*at)->used < (*oldest)->used))) {
                oldest = at;
            }
        }
        if (oldest == NULL || ((*oldest)->n_views != 0 && kept <= NUMA_GRAPH_MAX_KEPT && bytes <= NUMA_GRAPH_MAX_BYTES)) {
            break;
        }
        struct ggml_numa_graph * gone = *oldest;
        *oldest = gone->next;
        numa_graph_clear(gone);
        free(gone);
    }
    pthread_mutex_unlock(&g_graphs.mutex);
}

const struct ggml_cgraph * ggml_numa_graph_enter(
        struct ggml_numa_graph * g, const struct ggml_numa_mirror_thread * t, void (*barrier)(void * data), void * data) {
    if (g->n_views == 0) {
        return g->cgraph;
    }
    for (;;) {
        if (!numa_graph_refresh_part(g, t)) {
            atomic_store(&g->stale, true);
        }
        barrier(data);
        const bool stale = atomic_load(&g->stale);
        if (!stale) {
            break;
        }
        barrier(data);
        if (t->ith == 0) {
            numa_graph_build(g);
            numa_graph_set_views(g);
            atomic_store(&g->stale, false);
        }
        barrier(data);
    }
    if (t->ith == 0) {
        g->fresh = false;
    }
    return &g->view[t->node];
}

int ggml_numa_graph_n_runs(
        const struct ggml_numa_graph * g, struct ggml_numa_mirror_thread * t, int first, int last) {
    if (g == NULL) {
        return 1;
    }
    int n_runs = 1;
    for (int i = first; i <= last; ++i) {
        const struct ggml_tensor * node = g->cgraph->nodes[i];
        if (ggml_is_noop(node)) {
            continue;
        }
        ggml_numa_mirror_count(t, node);
        if (g->n_views > 0 && g->n_runs[i] > n_runs) {
            // threads take the next free rows there, not always the same ones
            GGML_ASSERT(node->op != GGML_OP_MUL_MAT && node->op != GGML_OP_MUL_MAT_ID);
            n_runs = g->n_runs[i];
        }
    }
    return n_runs;
}

const struct ggml_cgraph * ggml_numa_graph_view(
        const struct ggml_numa_graph * g, const struct ggml_numa_mirror_thread * t, int run, int n_runs) {
    return &g->view[(t->node + run) % n_runs];
}

#else // no implementation here

struct ggml_numa_graph * ggml_numa_graph_begin(const struct ggml_cgraph * cgraph) {
    GGML_UNUSED(cgraph);
    return NULL;
}

void ggml_numa_graph_end(struct ggml_numa_graph * g) { GGML_UNUSED(g); }

const struct ggml_cgraph * ggml_numa_graph_enter(
        struct ggml_numa_graph * g, const struct ggml_numa_mirror_thread * t, void (*barrier)(void * data), void * data) {
    GGML_UNUSED(g);
    GGML_UNUSED(t);
    GGML_UNUSED(barrier);
    GGML_UNUSED(data);
    return NULL;
}

int ggml_numa_graph_n_runs(
        const struct ggml_numa_graph * g, struct ggml_numa_mirror_thread * t, int first, int last) {
    GGML_UNUSED(g);
    GGML_UNUSED(t);
    GGML_UNUSED(first);
    GGML_UNUSED(last);
    return 1;
}

const struct ggml_cgraph * ggml_numa_graph_view(
        const struct ggml_numa_graph * g, const struct ggml_numa_mirror_thread * t, int run, int n_runs) {
    GGML_UNUSED(g);
    GGML_UNUSED(t);
    GGML_UNUSED(run);
    GGML_UNUSED(n_runs);
    return NULL;
}

#endif
