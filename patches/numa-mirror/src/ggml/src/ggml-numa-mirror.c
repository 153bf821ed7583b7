#ifndef _GNU_SOURCE
#    define _GNU_SOURCE
#endif

#include "ggml-numa-mirror.h"

#include "ggml-backend-impl.h"
#include "ggml-impl.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

//
// Failures
//

static _Thread_local struct ggml_numa_mirror_failure tls_failure;  // none while its reason is empty
static _Thread_local char                            tls_error[768];

static void numa_fail(enum ggml_numa_mirror_cause cause, int node, size_t lacks, const char * format, ...) {
    tls_failure.cause = cause;
    tls_failure.node  = node;
    tls_failure.lacks = lacks;
    va_list args;
    va_start(args, format);
    vsnprintf(tls_failure.reason, sizeof(tls_failure.reason), format, args);
    va_end(args);
}

bool ggml_numa_mirror_take_failure(struct ggml_numa_mirror_failure * failure) {
    if (tls_failure.reason[0] == '\0') {
        return false;
    }
    *failure              = tls_failure;
    tls_failure.reason[0] = '\0';
    return true;
}

const char * ggml_numa_mirror_error(void) {
    return tls_error;
}

//
// What is mirrored
//

bool ggml_numa_mirror_parse(const char * words, int * what) {
    static const struct {
        const char * word;
        int          bits;
    } known[] = {
        { "weights",     GGML_NUMA_MIRROR_WEIGHTS     },
        { "kv",          GGML_NUMA_MIRROR_KV          },
        { "all",         GGML_NUMA_MIRROR_ALL         },
        { "none",        GGML_NUMA_MIRROR_NONE        },
        { "best-effort", GGML_NUMA_MIRROR_BEST_EFFORT },
    };

    int  bits = 0;
    bool none = false;
    for (const char * at = words;;) {
        const size_t len   = strcspn(at, ",");
        bool         found = false;
        for (size_t i = 0; i < sizeof(known) / sizeof(known[0]) && !found; ++i) {
            if (strlen(known[i].word) == len && strncmp(known[i].word, at, len) == 0) {
                found = true;
                bits |= known[i].bits;
                none |= known[i].bits == GGML_NUMA_MIRROR_NONE;
            }
        }
        if (!found) {
            return false;
        }
        if (at[len] == '\0') {
            break;
        }
        at += len + 1;
    }
    if (none && (bits & GGML_NUMA_MIRROR_ALL)) {
        return false;  // "none" together with something
    }
    if (!none && bits == GGML_NUMA_MIRROR_BEST_EFFORT) {
        bits |= GGML_NUMA_MIRROR_ALL;
    }
    *what = bits;
    return true;
}

#if defined(__gnu_linux__)

#    include <errno.h>
#    include <fcntl.h>
#    include <limits.h>
#    include <pthread.h>
#    include <sched.h>
#    include <stdatomic.h>
#    include <stdlib.h>
#    include <sys/mman.h>
#    include <sys/syscall.h>
#    include <unistd.h>

// the two engines differ in a few members of a buffer's interface
#    ifdef GGML_BACKEND_API_VERSION
#        define NUMA_HAS_DEVICES 1
#        define NUMA_CALL
#        define NUMA_INFO(...) GGML_LOG_INFO(__VA_ARGS__)
#        define NUMA_WARN(...) GGML_LOG_WARN(__VA_ARGS__)
#    else
#        define NUMA_HAS_DEVICES   0
#        define NUMA_CALL          GGML_CALL
#        define NUMA_INFO(...)     fprintf(stderr, __VA_ARGS__)
#        define NUMA_WARN(...)     fprintf(stderr, __VA_ARGS__)
#        define GGML_MAX_N_THREADS 512
#    endif

// from linux/mempolicy.h, which is not installed everywhere
#    define NUMA_MPOL_DEFAULT    0
#    define NUMA_MPOL_BIND       2
#    define NUMA_MPOL_INTERLEAVE 3
#    define NUMA_MPOL_MF_MOVE    (1 << 1)

// from linux/futex.h
#    define NUMA_FUTEX_WAIT_PRIVATE (0 | 128)
#    define NUMA_FUTEX_WAKE_PRIVATE (1 | 128)

#    define NUMA_MAX_CPUS 1024
#    define NUMA_MAX_IDS  1024
#    define NUMA_SYSFS    "/sys/devices/system/node"

#    define NUMA_PAGES_AT_ONCE 4096
#    define NUMA_COPY_THREADS  4
#    define NUMA_SPLIT_CHUNK   ((size_t) 64 << 20)
// what the kernel keeps back on a node, and what others will ask for meanwhile
#    define NUMA_SPARE_BYTES   ((size_t) 32 << 20)

//
// State
//

// addresses of one buffer
struct numa_range {
    uintptr_t base;
    size_t    size;
    int       kind;
    bool      mirrored;
    int       n_runs;                                 // for an operation that writes here
    intptr_t  delta[GGML_NUMA_MIRROR_MAX_NODES + 1];  // to the copy of a node; the last is the primary itself
    float     share[GGML_NUMA_MIRROR_MAX_NODES];      // of the bytes a node's threads read that is on that node
    struct numa_record * record;
};

// what must be known to end a range again
struct numa_record {
    ggml_backend_buffer_t        buffer;
    struct ggml_backend_buffer_i iface;  // before it was wrapped
    bool                         host;   // tensors lie in the buffer as ggml knows them
    size_t                       n_maps;
    void *                       map[GGML_NUMA_MIRROR_MAX_NODES];
    size_t                       len[GGML_NUMA_MIRROR_MAX_NODES];
    size_t                       n_slices, n_placed;  // split: pages, and those on their node
    struct numa_record *         next;
};

// sorted by base; never changed once published
struct numa_table {
    struct numa_table * older;  // replaced ones wait here until no graph runs
    int                 n;
    struct numa_range   range[];
};

struct numa_counter {
    _Alignas(64) _Atomic uint64_t local;
    _Atomic uint64_t remote;
};

static struct {
    pthread_mutex_t              mutex;   // of everything but the atomics
    _Atomic int                  n_nodes;
    int                          n_cpus;  // that the process may use
    bool                         split;
    bool                         fake;
    bool                         pin;
    bool                         no_alias;
    bool                         guard;
    int                          n_guarding;
    int                          what;
    bool                         what_set;
    struct ggml_numa_mirror_node nodes[GGML_NUMA_MIRROR_MAX_NODES];
    struct numa_record *         records;
    _Atomic(struct numa_table *) table;
    _Atomic int                  n_active;  // threads within a graph
    struct numa_counter          counters[GGML_NUMA_MIRROR_MAX_NODES];
} g_numa = { .mutex = PTHREAD_MUTEX_INITIALIZER, .what = GGML_NUMA_MIRROR_ALL };

static _Thread_local int tls_ith    = 0;
static _Thread_local int tls_pinned = -1;

// why something could not be done, for people and for programs; the text is empty if it could
struct numa_why {
    enum ggml_numa_mirror_cause cause;
    char                        text[192];
};

static struct numa_why numa_because(enum ggml_numa_mirror_cause cause, const char * format, ...) {
    struct numa_why why = { .cause = cause };
    va_list         args;
    va_start(args, format);
    vsnprintf(why.text, sizeof(why.text), format, args);
    va_end(args);
    return why;
}

// why mbind or move_pages failed
static struct numa_why numa_refusal(const char * call, int error) {
    switch (error) {
        case EPERM:   // to its own memory a process may do all that is asked for here: a filter has answered
        case ENOSYS:  // another filter, or something that is no Linux
            return numa_because(GGML_NUMA_CAUSE_REFUSED,
                                "%s: %s; a container needs CAP_SYS_NICE and a seccomp profile that allows mbind and "
                                "move_pages",
                                call, strerror(error));
        case EINVAL:  // mbind, of nodes none of which is allowed
        case EACCES:  // move_pages
            return numa_because(GGML_NUMA_CAUSE_NO_ACCESS, "the process may not use its memory (cpuset)");
        default:
            return numa_because(GGML_NUMA_CAUSE_SYSTEM, "%s: %s", call, strerror(error));
    }
}

//
// Nodes
//

static size_t numa_read_file(const char * path, char * text, size_t size) {
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        text[0] = '\0';
        return 0;
    }
    const ssize_t n = read(fd, text, size - 1);
    close(fd);
    text[n > 0 ? n : 0] = '\0';
    return n > 0 ? (size_t) n : 0;
}

// set the numbers of a list such as "0-3,8"; false if it is not one
static bool numa_read_list(const char * text, unsigned char * set, int n_max) {
    memset(set, 0, n_max);
    while (*text != '\0' && *text != '\n') {
        char *     end;
        const long first = strtol(text, &end, 10);
        long       last  = first;
        if (end == text || first < 0) {
            return false;
        }
        if (*end == '-') {
            text = end + 1;
            last = strtol(text, &end, 10);
            if (end == text || last < first) {
                return false;
            }
        }
        for (long i = first; i <= last && i < n_max; ++i) {
            set[i] = 1;
        }
        if (*end != ',' && *end != '\n' && *end != '\0') {
            return false;
        }
        text = *end == ',' ? end + 1 : end;
    }
    return true;
}

// bytes of a node that are free or that the kernel would free at once: pages of files and reclaimable caches
static size_t numa_available(int id, size_t * total) {
    char path[128];
    char text[8192];
    snprintf(path, sizeof(path), "%s/node%d/meminfo", NUMA_SYSFS, id);
    numa_read_file(path, text, sizeof(text));
    static const char * const parts[] = { " MemFree:", " Active(file):", " Inactive(file):", " SReclaimable:" };
    size_t                    kib     = 0;
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); ++i) {
        const char * at = strstr(text, parts[i]);
        kib += at ? strtoull(at + strlen(parts[i]), NULL, 10) : 0;
    }
    const char * at = strstr(text, " MemTotal:");
    *total          = at ? strtoull(at + strlen(" MemTotal:"), NULL, 10) << 10 : 0;
    return kib << 10;
}

int ggml_numa_mirror_read_nodes(const char *                   root,
                                const unsigned char *          allowed,
                                struct ggml_numa_mirror_node * nodes,
                                int                            n_max) {
    char          path[512];
    char          text[8192];
    unsigned char online[NUMA_MAX_IDS];
    snprintf(path, sizeof(path), "%s/online", root);
    if (numa_read_file(path, text, sizeof(text)) == 0 || !numa_read_list(text, online, NUMA_MAX_IDS)) {
        return 0;
    }
    int n = 0;
    for (int id = 0; id < NUMA_MAX_IDS && n < n_max; ++id) {
        if (!online[id]) {
            continue;
        }
        struct ggml_numa_mirror_node * node = &nodes[n];
        memset(node, 0, sizeof(*node));
        node->id = id;
        snprintf(path, sizeof(path), "%s/node%d/cpulist", root, id);
        if (numa_read_file(path, text, sizeof(text)) == 0 || !numa_read_list(text, node->cpus, NUMA_MAX_CPUS)) {
            continue;
        }
        for (int c = 0; c < NUMA_MAX_CPUS; ++c) {
            node->cpus[c] &= allowed[c];
            node->n_cpus += node->cpus[c];
        }
        snprintf(path, sizeof(path), "%s/node%d/meminfo", root, id);
        numa_read_file(path, text, sizeof(text));
        const char * total = strstr(text, " MemTotal:");
        if (node->n_cpus > 0 && total && strtoull(total + strlen(" MemTotal:"), NULL, 10) > 0) {
            n++;
        }
    }
    return n;
}

void ggml_numa_mirror_set(int what) {
    GGML_ASSERT(what >= 0 && what <= (GGML_NUMA_MIRROR_ALL | GGML_NUMA_MIRROR_BEST_EFFORT));
    pthread_mutex_lock(&g_numa.mutex);
    g_numa.what     = what;
    g_numa.what_set = true;
    pthread_mutex_unlock(&g_numa.mutex);
}

int ggml_numa_mirror_n_nodes(void) {
    return atomic_load_explicit(&g_numa.n_nodes, memory_order_relaxed);
}

bool ggml_numa_mirror_is_split(void) {
    return ggml_numa_mirror_n_nodes() > 1 && g_numa.split;
}

bool ggml_numa_mirror_start(bool split) {
    pthread_mutex_lock(&g_numa.mutex);
    if (g_numa.n_nodes > 0) {
        pthread_mutex_unlock(&g_numa.mutex);
        return true;
    }

    cpu_set_t mask;
    CPU_ZERO(&mask);
    sched_getaffinity(0, sizeof(mask), &mask);
    unsigned char allowed[NUMA_MAX_CPUS];
    g_numa.n_cpus = 0;
    for (int c = 0; c < NUMA_MAX_CPUS; ++c) {
        allowed[c] = c < CPU_SETSIZE && CPU_ISSET(c, &mask);
        g_numa.n_cpus += allowed[c];
    }

    struct ggml_numa_mirror_node * nodes = g_numa.nodes;
    int n = ggml_numa_mirror_read_nodes(NUMA_SYSFS, allowed, nodes, GGML_NUMA_MIRROR_MAX_NODES);

    g_numa.pin        = n > 1;
    const char * fake = getenv("GGML_NUMA_FAKE_NODES");
    if (fake != NULL) {
        const int want = atoi(fake);
        if (want < 2 || want > GGML_NUMA_MIRROR_MAX_NODES) {
            NUMA_WARN("%s: GGML_NUMA_FAKE_NODES=%s is not a number from 2 to %d\n", __func__, fake,
                      GGML_NUMA_MIRROR_MAX_NODES);
        } else {
            if (n == 0) {
                // no sysfs: one node of all CPUs
                memset(&nodes[0], 0, sizeof(nodes[0]));
                memcpy(nodes[0].cpus, allowed, sizeof(allowed));
                for (int c = 0; c < NUMA_MAX_CPUS; ++c) {
                    nodes[0].n_cpus += allowed[c];
                }
                n = 1;
            }
            for (int i = n; i < want; ++i) {
                nodes[i] = nodes[i % n];
            }
            n           = want;
            g_numa.fake = true;
        }
    }

    const char * guard = getenv("GGML_NUMA_MIRROR_GUARD");
    const char * alone = getenv("GGML_NUMA_MIRROR_NO_ALIAS");
    g_numa.guard       = guard != NULL && strcmp(guard, "0") != 0;
    g_numa.no_alias    = g_numa.guard || (alone != NULL && strcmp(alone, "0") != 0);
    g_numa.split       = split;
    if (split && !g_numa.what_set) {
        g_numa.what = GGML_NUMA_MIRROR_WEIGHTS;
    }

    if (n < 2) {
        numa_fail(GGML_NUMA_CAUSE_FEW_NODES, -1, 0,
                  "this process may use the CPUs of %d NUMA node(s): there is nothing to %s", n,
                  split ? "split" : "mirror");
        NUMA_WARN("%s: %s\n", __func__, tls_failure.reason);
    } else {
        for (int i = 0; i < n; ++i) {
            NUMA_INFO("%s: node %d: %d CPUs%s\n", __func__, nodes[i].id, nodes[i].n_cpus, g_numa.fake ? " (fake)" : "");
        }
        char text[16];
        if (!g_numa.fake && numa_read_file("/proc/sys/kernel/numa_balancing", text, sizeof(text)) > 0 &&
            text[0] != '0') {
            NUMA_WARN("%s: /proc/sys/kernel/numa_balancing is on; it moves pages and costs speed\n", __func__);
        }
        atomic_store(&g_numa.n_nodes, n);
    }
    pthread_mutex_unlock(&g_numa.mutex);
    return n > 1;
}

//
// Pages
//

static size_t numa_page_size(void) {
    return (size_t) sysconf(_SC_PAGESIZE);
}

static size_t numa_n_pages(uintptr_t base, size_t size) {
    const size_t page = numa_page_size();
    return (base + size + page - 1) / page - base / page;
}

// where the kernel says the pages of [base, base + size) are: calls back with the index of each page and its node, or a
// negative errno; 0, or an errno if the kernel would not say
static int numa_ask(uintptr_t base, size_t size, void (*told)(void * data, size_t i, int node), void * data) {
    const size_t page   = numa_page_size();
    const size_t n      = numa_n_pages(base, size);
    void **      pages  = malloc(NUMA_PAGES_AT_ONCE * sizeof(void *));
    int *        status = malloc(NUMA_PAGES_AT_ONCE * sizeof(int));
    int          failed = pages != NULL && status != NULL ? 0 : ENOMEM;
    for (size_t first = 0; !failed && first < n; first += NUMA_PAGES_AT_ONCE) {
        const size_t count = n - first < NUMA_PAGES_AT_ONCE ? n - first : NUMA_PAGES_AT_ONCE;
        for (size_t i = 0; i < count; ++i) {
            pages[i]  = (void *) ((base / page + first + i) * page);
            status[i] = -ENOENT;
        }
        failed = syscall(SYS_move_pages, 0, count, pages, NULL, status, 0) == 0 ? 0 : errno;
        for (size_t i = 0; !failed && i < count; ++i) {
            told(data, first + i, status[i]);
        }
    }
    free(pages);
    free(status);
    return failed;
}

// the policy for memory at `at`, which begins a page: one node of ours, or all of them for node -1; 0 or an errno
static int numa_set_policy(void * at, size_t len, int mode, int node) {
    unsigned long mask[NUMA_MAX_IDS / (8 * sizeof(unsigned long))] = { 0 };
    for (int k = 0; k < g_numa.n_nodes; ++k) {
        if (mode != NUMA_MPOL_DEFAULT && (node < 0 || node == k)) {
            const int id = g_numa.nodes[k].id;
            mask[id / (8 * sizeof(unsigned long))] |= 1ul << id % (8 * sizeof(unsigned long));
        }
    }
    return syscall(SYS_mbind, at, len, mode, mask, (unsigned long) NUMA_MAX_IDS + 1, 0) == 0 ? 0 : errno;
}

struct numa_census {
    int    failed;  // an errno if the kernel would not say
    size_t here[GGML_NUMA_MIRROR_MAX_NODES];
};

static void numa_count_page(void * data, size_t i, int node) {
    struct numa_census * census = data;
    for (int k = 0; k < g_numa.n_nodes; ++k) {
        census->here[k] += node == g_numa.nodes[k].id;
    }
    GGML_UNUSED(i);
}

static struct numa_census numa_take_census(uintptr_t base, size_t size) {
    struct numa_census census = { 0 };
    // the kernel does not say where a page is that it marked in order to see who uses it (numa_balancing)
    for (uintptr_t at = base; at < base + size && !g_numa.fake; at = (at / numa_page_size() + 1) * numa_page_size()) {
        (void) *(volatile const char *) at;
    }
    census.failed = numa_ask(base, size, numa_count_page, &census);
    if (census.failed && g_numa.fake) {
        // without NUMA in the kernel there is one node and everything is on it
        for (int k = 0; k < g_numa.n_nodes; ++k) {
            census.here[k] = numa_n_pages(base, size);
        }
    }
    return census;
}

//
// Copies
//

static void numa_pin(int k) {
    cpu_set_t mask;
    CPU_ZERO(&mask);
    for (int c = 0; c < NUMA_MAX_CPUS && c < CPU_SETSIZE; ++c) {
        if (g_numa.nodes[k].cpus[c]) {
            CPU_SET(c, &mask);
        }
    }
    if (sched_setaffinity(0, sizeof(mask), &mask) != 0) {
        NUMA_WARN("%s: could not run on the CPUs of node %d: %s\n", __func__, g_numa.nodes[k].id, strerror(errno));
    }
}

struct numa_copy_job {
    pthread_t    thread;
    bool         started;
    int          node;
    char *       dst;
    const char * src;
    size_t       size;
};

static void * numa_copy(void * data) {
    const struct numa_copy_job * job = data;
    if (g_numa.pin) {
        numa_pin(job->node);
    }
    memcpy(job->dst, job->src, job->size);
    return NULL;
}

// an address for a copy on node k, with the same offset in its page; what is missing is written to `lacks`
static void * numa_map(struct numa_record * rec,
                       int                  k,
                       uintptr_t            base,
                       size_t               size,
                       size_t *             lacks,
                       struct numa_why *    why) {
    const size_t page = numa_page_size();
    const size_t len  = numa_n_pages(base, size) * page;
    const int    id   = g_numa.nodes[k].id;
    *lacks            = 0;
    if (!g_numa.fake) {
        size_t       total;
        const size_t have = numa_available(id, &total);
        const size_t need = len + NUMA_SPARE_BYTES + total / 64;
        if (have < need) {
            *lacks = need - have;
            *why   = numa_because(GGML_NUMA_CAUSE_NO_ROOM, "its memory is taken");
            return NULL;
        }
    }
    void * at = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) {
        *lacks = len;
        *why   = numa_because(GGML_NUMA_CAUSE_SYSTEM, "mmap: %s", strerror(errno));
        return NULL;
    }
    if (!g_numa.fake) {
        const int failed = numa_set_policy(at, len, NUMA_MPOL_BIND, k);
        if (failed) {
            *lacks = len;
            *why   = numa_refusal("mbind", failed);
            munmap(at, len);
            return NULL;
        }
    }
    madvise(at, len, MADV_HUGEPAGE);
    rec->map[rec->n_maps] = at;
    rec->len[rec->n_maps] = len;
    rec->n_maps++;
    return (char *) at + base % page;
}

void ggml_numa_mirror_hint(void * data, size_t size) {
    // slices are placed page by page
    if (ggml_numa_mirror_n_nodes() < 2 || g_numa.split || (g_numa.what & GGML_NUMA_MIRROR_ALL) == 0) {
        return;
    }
    const uintptr_t page  = numa_page_size();
    const uintptr_t first = ((uintptr_t) data + page - 1) / page * page;
    const uintptr_t last  = ((uintptr_t) data + size) / page * page;
    if (data != NULL && first < last) {
        madvise((void *) first, last - first, MADV_HUGEPAGE);
    }
}

static void numa_unmap(struct numa_record * rec) {
    for (size_t i = 0; i < rec->n_maps; ++i) {
        munmap(rec->map[i], rec->len[i]);
    }
    rec->n_maps = 0;
}

static const char * numa_kind_name(int kind) {
    return kind == GGML_NUMA_MIRROR_WEIGHTS ? "weights" : "kv";
}

// the node that all of the primary lies on, or -1; the kernel will not move it from there
static int numa_find_alias(const struct numa_range * range) {
    const size_t       page    = numa_page_size();
    const size_t       n_pages = numa_n_pages(range->base, range->size);
    void *             first   = (void *) (range->base / page * page);
    struct numa_census census  = numa_take_census(range->base, range->size);
    int                most    = 0;
    for (int k = 1; k < g_numa.n_nodes; ++k) {
        most = census.here[k] > census.here[most] ? k : most;
    }
    if (census.here[most] < n_pages / 2 || numa_set_policy(first, n_pages * page, NUMA_MPOL_BIND, most) != 0) {
        return -1;
    }
    // under that policy nothing is marked or moved any more
    census = numa_take_census(range->base, range->size);
    if (census.here[most] == n_pages) {
        return most;
    }
    numa_set_policy(first, n_pages * page, NUMA_MPOL_DEFAULT, -1);
    return -1;
}

// make a copy for every node that needs one; false if one can not be, and nothing is left of the others
static bool numa_make_copies(struct numa_range * range, struct numa_record * rec) {
    const int       n       = g_numa.n_nodes;
    const size_t    n_pages = numa_n_pages(range->base, range->size);
    int             lacking = -1;
    size_t          lacks   = 0;
    struct numa_why why     = { 0 };

    // the primary serves a node that it lies on wholly; memory that is not the buffer's own is a mapped file, whose small
    // pages would make the other nodes wait at every barrier, and which the kernel takes back when it needs the memory
    int alias = -1;
    if (!g_numa.no_alias && rec->iface.free_buffer != NULL) {
        if (g_numa.fake) {
            alias = 0;
        } else {
            alias = numa_find_alias(range);
        }
    }

    struct numa_copy_job jobs[GGML_NUMA_MIRROR_MAX_NODES * NUMA_COPY_THREADS];
    int                  n_jobs = 0;
    for (int k = 0; k < n && lacking < 0; ++k) {
        if (k == alias) {
            continue;
        }
        char * at = numa_map(rec, k, range->base, range->size, &lacks, &why);
        if (at == NULL) {
            lacking = k;
            break;
        }
        range->delta[k]    = (intptr_t) at - (intptr_t) range->base;
        const int    parts = g_numa.nodes[k].n_cpus < NUMA_COPY_THREADS ? g_numa.nodes[k].n_cpus : NUMA_COPY_THREADS;
        const size_t part  = ((range->size + parts - 1) / parts + 4095) & ~(size_t) 4095;
        for (size_t first = 0; first < range->size; first += part) {
            jobs[n_jobs++] = (struct numa_copy_job){
                .node = k,
                .dst  = at + first,
                .src  = (const char *) range->base + first,
                .size = range->size - first < part ? range->size - first : part,
            };
        }
    }
    if (lacking < 0) {
        for (int i = 0; i < n_jobs; ++i) {
            jobs[i].started = pthread_create(&jobs[i].thread, NULL, numa_copy, &jobs[i]) == 0;
        }
        for (int i = 0; i < n_jobs; ++i) {
            if (jobs[i].started) {
                pthread_join(jobs[i].thread, NULL);
            } else {
                memcpy(jobs[i].dst, jobs[i].src, jobs[i].size);  // the memory is bound whoever touches it
            }
        }
    }
    // believe the kernel, not the calls
    for (int k = 0; k < n && lacking < 0; ++k) {
        if (k != alias && !g_numa.fake) {
            const struct numa_census census = numa_take_census(range->base + range->delta[k], range->size);
            if (census.here[k] != n_pages) {
                lacking = k;
                lacks   = (n_pages - census.here[k]) * numa_page_size();
                why     = census.failed ? numa_refusal("move_pages", census.failed) :
                                          numa_because(GGML_NUMA_CAUSE_MISPLACED, "the kernel placed them elsewhere");
            }
        }
    }

    if (lacking >= 0) {
        numa_unmap(rec);
        memset(range->delta, 0, sizeof(range->delta));
        numa_fail(why.cause, g_numa.nodes[lacking].id, lacks,
                  "numa-mirror: node %d lacks %zu bytes for a copy of %zu bytes of %s (%s)", g_numa.nodes[lacking].id,
                  lacks, range->size, numa_kind_name(range->kind), why.text);
        return false;
    }
    range->mirrored = true;
    // in guard mode the primary can not be written while a graph runs; it is brought up to date afterwards
    range->n_runs   = alias >= 0 || g_numa.guard ? n : n + 1;
    for (int k = 0; k < n; ++k) {
        range->share[k] = 1.0f;
    }
    NUMA_INFO("numa-mirror: %.2f MiB of %s on each of %d nodes\n", range->size / 1024.0 / 1024.0,
              numa_kind_name(range->kind), n);
    return true;
}

//
// Split
//

struct numa_slice_job {
    size_t    n_pages;
    uintptr_t first_page;  // number of the first page of the range
    int *     want;        // node index of each page
    size_t    placed;
};

static void numa_check_slice(void * data, size_t i, int node) {
    struct numa_slice_job * job = data;
    job->placed += node == g_numa.nodes[job->want[i]].id;
}

// put pages of the same content, each on its node, in the place of `n` pages
//
// Moving the old ones is not enough: the kernel moves huge pages whole, leaves alone pages that it marked in order to see
// who uses them, and moves pages without a policy of their own back together (numa_balancing).
static struct numa_why numa_replace(uintptr_t base, size_t n, const int * want) {
    const size_t len = n * numa_page_size();
    char *       at  = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) {
        return numa_because(GGML_NUMA_CAUSE_SYSTEM, "mmap: %s", strerror(errno));
    }
    madvise(at, len, MADV_NOHUGEPAGE);
    int             failed = numa_set_policy(at, len, NUMA_MPOL_INTERLEAVE, -1);
    struct numa_why why    = { 0 };
    void *          pages[512];
    int             ids[512];
    int             status[512];
    if (failed) {
        why = numa_refusal("mbind", failed);
    } else {
        memcpy(at, (const void *) base, len);
    }
    for (size_t first = 0; first < n && !failed; first += 512) {
        const size_t count = n - first < 512 ? n - first : 512;
        for (size_t i = 0; i < count; ++i) {
            pages[i] = at + (first + i) * numa_page_size();
            ids[i]   = g_numa.nodes[want[first + i]].id;
        }
        failed = syscall(SYS_move_pages, 0, count, pages, ids, status, NUMA_MPOL_MF_MOVE) < 0 ? errno : 0;
        if (failed) {
            why = numa_refusal("move_pages", failed);
        }
    }
    if (!failed && mremap(at, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, (void *) base) == MAP_FAILED) {
        failed = errno;
        why    = numa_because(GGML_NUMA_CAUSE_SYSTEM, "mremap: %s", strerror(failed));
    }
    if (failed) {
        munmap(at, len);
    }
    return why;
}

// place each page of the weights on the node whose threads compute the rows on it
static bool numa_place_slices(struct numa_range * range, struct numa_record * rec, struct ggml_context * ctx) {
    const int             n    = g_numa.n_nodes;
    const size_t          page = numa_page_size();
    struct numa_slice_job job = { .n_pages = numa_n_pages(range->base, range->size), .first_page = range->base / page };
    job.want                  = calloc(job.n_pages, sizeof(int));
    if (job.want == NULL) {
        numa_fail(GGML_NUMA_CAUSE_SYSTEM, -1, job.n_pages * sizeof(int),
                  "numa-mirror: no memory for a list of %zu pages", job.n_pages);
        return false;
    }
    for (struct ggml_tensor * t = ggml_get_first_tensor(ctx); t != NULL; t = ggml_get_next_tensor(ctx, t)) {
        const uintptr_t at = (uintptr_t) t->data;
        if (t->view_src != NULL || at < range->base || at >= range->base + range->size) {
            continue;
        }
        // threads share the rows of a matrix, and of each expert's matrix
        const int64_t n_mats = t->ne[2] * t->ne[3];
        for (int64_t m = 0; m < n_mats; ++m) {
            const uintptr_t mat = at + (m % t->ne[2]) * t->nb[2] + (m / t->ne[2]) * t->nb[3];
            for (int k = 0; k < n; ++k) {
                const uintptr_t first = mat + (t->ne[1] * k / n) * t->nb[1];
                const uintptr_t last  = mat + (t->ne[1] * (k + 1) / n) * t->nb[1];
                // a page with two owners goes to the one of its first byte
                for (uintptr_t p = (first + page - 1) / page; p * page < last && p - job.first_page < job.n_pages;
                     ++p) {
                    job.want[p - job.first_page] = k;
                }
            }
        }
    }
    struct numa_why why = { 0 };
    if (g_numa.fake) {
        job.placed = job.n_pages;
    } else {
        // pages that are only in part of the range stay
        const size_t first = (range->base + page - 1) / page - job.first_page;
        const size_t last  = (range->base + range->size) / page - job.first_page;
        const size_t step  = NUMA_SPLIT_CHUNK / page;
        for (size_t i = first; i < last && why.text[0] == '\0'; i += step) {
            why = numa_replace((job.first_page + i) * page, last - i < step ? last - i : step, job.want + i);
        }
        numa_ask(range->base, range->size, numa_check_slice, &job);
    }
    rec->n_slices = job.n_pages;
    rec->n_placed = job.placed;
    free(job.want);
    const float share = job.n_pages ? (float) job.placed / job.n_pages : 1.0f;
    for (int k = 0; k < n; ++k) {
        range->share[k] = share;
    }
    // the ends of a buffer may lie on pages of others; more than that means that the kernel could not place them
    if (share < 0.99f && rec->n_slices - rec->n_placed > 2) {
        if (why.text[0] == '\0') {
            why = numa_because(GGML_NUMA_CAUSE_MISPLACED, "the kernel placed them elsewhere");
        }
        const size_t n_missing = rec->n_slices - rec->n_placed;
        numa_fail(why.cause, -1, n_missing * page,
                  "numa-mirror: %zu of %zu pages of weights are not on their node (%s)", n_missing, rec->n_slices,
                  why.text);
        return false;
    }
    NUMA_INFO("numa-mirror: %.2f MiB of weights split over %d nodes, %.1f %% of the pages on their node\n",
              range->size / 1024.0 / 1024.0, n, 100.0 * share);
    return true;
}

//
// Table
//

static const struct numa_range * numa_find(const struct numa_table * table, const void * address) {
    const uintptr_t at = (uintptr_t) address;
    int             lo = 0;
    int             hi = table->n;
    while (lo < hi) {
        const int mid = (lo + hi) / 2;
        if (table->range[mid].base + table->range[mid].size <= at) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return lo < table->n && table->range[lo].base <= at ? &table->range[lo] : NULL;
}

// publish the table with one range more (add) or less (the one of `gone`); the caller holds the mutex
static void numa_publish(const struct numa_range * add, const struct numa_record * gone) {
    struct numa_table * old   = atomic_load(&g_numa.table);
    const int           n     = old ? old->n : 0;
    struct numa_table * table = malloc(sizeof(*table) + (n + 1) * sizeof(struct numa_range));
    GGML_ASSERT(table != NULL);
    table->older = old;
    table->n     = 0;
    bool added   = add == NULL;
    for (int i = 0; i < n; ++i) {
        if (!added && add->base < old->range[i].base) {
            table->range[table->n++] = *add;
            added                    = true;
        }
        if (gone == NULL || old->range[i].record != gone) {
            table->range[table->n++] = old->range[i];
        }
    }
    if (!added) {
        table->range[table->n++] = *add;
    }
    atomic_store(&g_numa.table, table);
    // a thread that begins after this sees the new table; if none is within a graph, nobody has an older one
    if (atomic_load(&g_numa.n_active) == 0) {
        while (table->older) {
            struct numa_table * next = table->older->older;
            free(table->older);
            table->older = next;
        }
    }
}

static struct numa_record * numa_record_of(ggml_backend_buffer_t buffer) {
    for (struct numa_record * rec = g_numa.records; rec; rec = rec->next) {
        if (rec->buffer == buffer) {
            return rec;
        }
    }
    GGML_ABORT("numa-mirror: a wrapped buffer without a record");
}

// the record and range of a wrapped buffer; the range stays as it is while the buffer lives
static struct numa_record * numa_lookup(ggml_backend_buffer_t buffer, struct numa_range * range) {
    pthread_mutex_lock(&g_numa.mutex);
    struct numa_record *      rec   = numa_record_of(buffer);
    const struct numa_table * table = atomic_load(&g_numa.table);
    for (int i = 0; i < table->n; ++i) {
        if (table->range[i].record == rec) {
            *range = table->range[i];
        }
    }
    pthread_mutex_unlock(&g_numa.mutex);
    return rec;
}

//
// What the host writes
//

// bring all copies of [at, at + size) up to date with the primary
static void numa_spread(const struct numa_range * range, const void * at, size_t size) {
    const uintptr_t first = (uintptr_t) at;
    GGML_ASSERT(first >= range->base && first + size <= range->base + range->size);
    for (int k = 0; k < g_numa.n_nodes && range->mirrored; ++k) {
        if (range->delta[k] != 0) {
            memcpy((char *) at + range->delta[k], at, size);
        }
    }
}

static void numa_spread_tensor(ggml_backend_buffer_t buffer, const struct ggml_tensor * t, size_t offset, size_t size) {
    struct numa_range          range;
    const struct numa_record * rec = numa_lookup(buffer, &range);
    if (rec->host) {
        numa_spread(&range, (const char *) t->data + offset, size);
        return;
    }
    // repacked: the bytes that changed may be anywhere in the tensor
    size_t       all  = ggml_backend_buft_get_alloc_size(buffer->buft, t);
    const size_t room = range.base + range.size - (uintptr_t) t->data;
    numa_spread(&range, t->data, all < room ? all : room);
}

static NUMA_CALL void numa_memset_tensor(ggml_backend_buffer_t buffer,
                                         struct ggml_tensor *  t,
                                         uint8_t               value,
                                         size_t                offset,
                                         size_t                size) {
    struct numa_range range;
    numa_lookup(buffer, &range)->iface.memset_tensor(buffer, t, value, offset, size);
    numa_spread_tensor(buffer, t, offset, size);
}

static NUMA_CALL void numa_set_tensor(ggml_backend_buffer_t buffer,
                                      struct ggml_tensor *  t,
                                      const void *          data,
                                      size_t                offset,
                                      size_t                size) {
    struct numa_range range;
    numa_lookup(buffer, &range)->iface.set_tensor(buffer, t, data, offset, size);
    numa_spread_tensor(buffer, t, offset, size);
}

#    if NUMA_HAS_DEVICES
static void numa_set_tensor_2d(ggml_backend_buffer_t buffer,
                               struct ggml_tensor *  t,
                               const void *          data,
                               size_t                offset,
                               size_t                size,
                               size_t                n_copies,
                               size_t                stride_tensor,
                               size_t                stride_data) {
    struct numa_range range;
    numa_lookup(buffer, &range)
        ->iface.set_tensor_2d(buffer, t, data, offset, size, n_copies, stride_tensor, stride_data);
    for (size_t i = 0; i < n_copies; ++i) {
        numa_spread_tensor(buffer, t, offset + i * stride_tensor, size);
    }
}
#    endif

static NUMA_CALL bool numa_cpy_tensor(ggml_backend_buffer_t      buffer,
                                      const struct ggml_tensor * src,
                                      struct ggml_tensor *       dst) {
    struct numa_range range;
    const bool        done = numa_lookup(buffer, &range)->iface.cpy_tensor(buffer, src, dst);
    if (done) {
        numa_spread_tensor(buffer, dst, 0, ggml_nbytes(dst));
    }
    return done;
}

static NUMA_CALL void numa_clear(ggml_backend_buffer_t buffer, uint8_t value) {
    struct numa_range range;
    numa_lookup(buffer, &range)->iface.clear(buffer, value);
    for (int k = 0; k < g_numa.n_nodes && range.mirrored; ++k) {
        if (range.delta[k] != 0) {
            memset((char *) range.base + range.delta[k], value, range.size);
        }
    }
}

static void numa_write_report(void) {
    const char * path = getenv("GGML_NUMA_MIRROR_REPORT");
    if (path == NULL || path[0] == '\0') {
        return;
    }
    const size_t size = ggml_numa_mirror_report(NULL, 0) + 1024;
    char *       text = malloc(size);
    FILE *       file = fopen(path, "a");
    if (text && file) {
        ggml_numa_mirror_report(text, size);
        fprintf(file, "%s\n", text);
    } else {
        NUMA_WARN("numa-mirror: could not write %s: %s\n", path, strerror(errno));
    }
    if (file) {
        fclose(file);
    }
    free(text);
}

static void numa_log_counters(void) {
    for (int k = 0; k < g_numa.n_nodes; ++k) {
        uint64_t local, remote;
        ggml_numa_mirror_counters(k, &local, &remote);
        if (local + remote > 0) {
            NUMA_INFO(
                "numa-mirror: node %d read %.2f GiB from its own memory and %.2f GiB from other nodes (%.1f %% "
                "local)\n",
                g_numa.nodes[k].id, local / 1073741824.0, remote / 1073741824.0, 100.0 * local / (local + remote));
        }
    }
}

static NUMA_CALL void numa_free_buffer(ggml_backend_buffer_t buffer) {
    numa_write_report();
    pthread_mutex_lock(&g_numa.mutex);
    struct numa_record * rec = numa_record_of(buffer);
    numa_publish(NULL, rec);
    for (struct numa_record ** at = &g_numa.records; *at; at = &(*at)->next) {
        if (*at == rec) {
            *at = rec->next;
            break;
        }
    }
    const bool last = g_numa.records == NULL;
    pthread_mutex_unlock(&g_numa.mutex);
    if (last) {
        numa_log_counters();
    }
    numa_unmap(rec);
    buffer->iface = rec->iface;
    free(rec);
    if (buffer->iface.free_buffer) {
        buffer->iface.free_buffer(buffer);
    }
}

// the last failure and which of the tools' options help against it
static void numa_advise(bool slices) {
    const char * advice;
    if (tls_failure.cause == GGML_NUMA_CAUSE_REFUSED || tls_failure.cause == GGML_NUMA_CAUSE_NO_ACCESS) {
        advice = "allow it, or go on without (--numa-mirror best-effort)";
    } else if (slices) {
        advice = "free memory, or go on without (--numa-mirror best-effort)";
    } else {
        advice =
            "free memory there, mirror less (--numa-mirror weights or kv), use --numa split, or go on without "
            "(--numa-mirror best-effort)";
    }
    snprintf(tls_error, sizeof(tls_error), "%s; %s", tls_failure.reason, advice);
}

// whether threads of this machine's CPU read the buffer directly
static bool numa_is_of_cpu(ggml_backend_buffer_t buffer) {
    if (buffer->iface.get_base == NULL || ggml_backend_buffer_get_size(buffer) == 0) {
        return false;
    }
    if (ggml_backend_buffer_is_host(buffer)) {
        return true;
    }
#    if NUMA_HAS_DEVICES
    ggml_backend_dev_t dev = ggml_backend_buft_get_device(ggml_backend_buffer_get_type(buffer));
    return dev != NULL && ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU;
#    else
    return false;
#    endif
}

bool ggml_numa_mirror_buffer(ggml_backend_buffer_t buffer, int kind, struct ggml_context * ctx) {
    GGML_ASSERT(kind == GGML_NUMA_MIRROR_WEIGHTS || kind == GGML_NUMA_MIRROR_KV);
    tls_error[0] = '\0';
    if (ggml_numa_mirror_n_nodes() < 2 || buffer == NULL || !numa_is_of_cpu(buffer)) {
        return true;
    }
    pthread_mutex_lock(&g_numa.mutex);
    struct numa_range range = {
        .base   = (uintptr_t) buffer->iface.get_base(buffer),
        .size   = ggml_backend_buffer_get_size(buffer),
        .kind   = kind,
        .n_runs = 1,
    };
#    if !NUMA_HAS_DEVICES
    // the size counts from the address that was allocated, the base is that address rounded up
    const uintptr_t allocated = (uintptr_t) buffer->context;
    if (allocated <= range.base && range.base - allocated < 64 && range.base - allocated < range.size) {
        range.size -= range.base - allocated;
    }
#    endif
    struct numa_record * rec = calloc(1, sizeof(*rec));
    GGML_ASSERT(rec != NULL);
    rec->buffer  = buffer;
    rec->iface   = buffer->iface;
    rec->host    = ggml_backend_buffer_is_host(buffer);
    range.record = rec;

    const bool wanted = (g_numa.what & kind) != 0;
    const bool slices = g_numa.split && kind == GGML_NUMA_MIRROR_WEIGHTS;
    bool       ok     = true;
    if (wanted && !(slices && ctx == NULL)) {
        ok = slices ? numa_place_slices(&range, rec, ctx) : numa_make_copies(&range, rec);
        if (!ok && (g_numa.what & GGML_NUMA_MIRROR_BEST_EFFORT)) {
            NUMA_WARN("%s; going on without (best-effort)\n", tls_failure.reason);
            ok = true;
        } else if (!ok) {
            numa_advise(slices);
        }
    }
    if (!range.mirrored && rec->n_slices == 0) {
        // known for the counters only
        const struct numa_census census = numa_take_census(range.base, range.size);
        for (int k = 0; k < g_numa.n_nodes; ++k) {
            range.share[k] = g_numa.fake ? k == 0 : (float) census.here[k] / numa_n_pages(range.base, range.size);
        }
    }
    if (ok) {
        struct ggml_backend_buffer_i * iface = &buffer->iface;
        iface->free_buffer                   = numa_free_buffer;
        iface->memset_tensor                 = iface->memset_tensor ? numa_memset_tensor : NULL;
        iface->set_tensor                    = iface->set_tensor ? numa_set_tensor : NULL;
        iface->cpy_tensor                    = iface->cpy_tensor ? numa_cpy_tensor : NULL;
        iface->clear                         = iface->clear ? numa_clear : NULL;
#    if NUMA_HAS_DEVICES
        iface->set_tensor_2d = iface->set_tensor_2d ? numa_set_tensor_2d : NULL;
#    endif
        rec->next      = g_numa.records;
        g_numa.records = rec;
        numa_publish(&range, NULL);
    } else {
        free(rec);
    }
    pthread_mutex_unlock(&g_numa.mutex);
    return ok;
}

//
// Computing
//

// the primaries are unreadable between the first enter and the last leave; the state comes back from the first copy
static void numa_guard(bool begin) {
    pthread_mutex_lock(&g_numa.mutex);
    const bool                change = begin ? g_numa.n_guarding++ == 0 : --g_numa.n_guarding == 0;
    const struct numa_table * table  = atomic_load(&g_numa.table);
    const size_t              page   = numa_page_size();
    for (int i = 0; change && table && i < table->n; ++i) {
        const struct numa_range * range = &table->range[i];
        const uintptr_t           first = (range->base + page - 1) / page * page;
        const uintptr_t           last  = (range->base + range->size) / page * page;
        if (!range->mirrored) {
            continue;
        }
        if (last > first) {
            // the pages of a file that is mapped for reading can not be made writable
            GGML_ASSERT(begin ? mprotect((void *) first, last - first, PROT_NONE) == 0 :
                                mprotect((void *) first, last - first, PROT_READ | PROT_WRITE) == 0 ||
                                    mprotect((void *) first, last - first, PROT_READ) == 0);
        }
        if (!begin && range->kind == GGML_NUMA_MIRROR_KV) {
            memcpy((void *) range->base, (const char *) range->base + range->delta[0], range->size);
        }
    }
    pthread_mutex_unlock(&g_numa.mutex);
}

const void * ggml_numa_mirror_acquire(void) {
    if (ggml_numa_mirror_n_nodes() < 2) {
        return NULL;
    }
    // in this order: whoever replaces the table sees this thread, or this thread sees the new table
    atomic_fetch_add(&g_numa.n_active, 1);
    const void * table = atomic_load(&g_numa.table);
    if (table == NULL) {
        atomic_fetch_sub(&g_numa.n_active, 1);
    }
    return table;
}

void ggml_numa_mirror_release(const void * table) {
    if (table != NULL) {
        atomic_fetch_sub(&g_numa.n_active, 1);
    }
}

bool ggml_numa_mirror_has_copies(const void * table) {
    const struct numa_table * ranges = table;
    for (int i = 0; ranges && i < ranges->n; ++i) {
        if (ranges->range[i].mirrored) {
            return true;
        }
    }
    return false;
}

void ggml_numa_mirror_enter(struct ggml_numa_mirror_thread * t, int ith, int nth, const bool * cpumask) {
    // as leave() wants it if the mode goes on meanwhile
    t->table    = NULL;
    t->ith      = -1;
    t->restore  = false;
    const int n = ggml_numa_mirror_n_nodes();
    if (n < 2) {
        return;
    }
    GGML_ASSERT(ith >= 0 && ith < nth);
    tls_ith   = ith;
    t->ith    = ith;
    t->nth    = nth;
    t->node   = (int) ((int64_t) ith * n / nth);
    t->local  = 0;
    t->remote = 0;

    bool pin = g_numa.pin;
    if (cpumask != NULL) {
        // the user has said where this thread is to run: it belongs to the node of those CPUs, if it is one
        bool any = false;
        bool own[GGML_NUMA_MIRROR_MAX_NODES];
        memset(own, 1, sizeof(own));
        for (int c = 0; c < GGML_MAX_N_THREADS && c < NUMA_MAX_CPUS; ++c) {
            any |= cpumask[c];
            for (int k = 0; k < n && cpumask[c]; ++k) {
                own[k] = own[k] && g_numa.nodes[k].cpus[c];
            }
        }
        for (int k = 0; k < n && any && !g_numa.fake; ++k) {
            if (own[k]) {
                t->node = k;
                pin     = false;
                break;
            }
        }
    }
    if (pin && (ith == 0 || tls_pinned != t->node)) {
        if (ith == 0) {
            cpu_set_t mask;
            CPU_ZERO(&mask);
            t->restore = sched_getaffinity(0, sizeof(mask), &mask) == 0;
            memcpy(t->mask, &mask, sizeof(mask) < sizeof(t->mask) ? sizeof(mask) : sizeof(t->mask));
        }
        numa_pin(t->node);
        tls_pinned = ith == 0 ? -1 : t->node;
    }
    if (g_numa.guard && ith == 0) {
        numa_guard(true);
    }
    t->table = ggml_numa_mirror_acquire();
}

void ggml_numa_mirror_leave(struct ggml_numa_mirror_thread * t) {
    if (ggml_numa_mirror_n_nodes() < 2) {
        return;
    }
    if (t->table != NULL) {
        atomic_fetch_add_explicit(&g_numa.counters[t->node].local, t->local, memory_order_relaxed);
        atomic_fetch_add_explicit(&g_numa.counters[t->node].remote, t->remote, memory_order_relaxed);
        ggml_numa_mirror_release(t->table);
    }
    if (g_numa.guard && t->ith == 0) {
        numa_guard(false);
    }
    if (t->restore) {
        cpu_set_t mask;
        CPU_ZERO(&mask);
        memcpy(&mask, t->mask, sizeof(mask) < sizeof(t->mask) ? sizeof(mask) : sizeof(t->mask));
        sched_setaffinity(0, sizeof(mask), &mask);
    }
}

int ggml_numa_mirror_n_runs(const struct ggml_numa_mirror_thread * t, const struct ggml_tensor * op) {
    if (t->table == NULL) {
        return 1;
    }
    const struct numa_range * range = numa_find(t->table, op->data);
    return range ? range->n_runs : 1;
}

bool ggml_numa_mirror_needs_barrier(const struct ggml_tensor * op) {
    switch (op->op) {
        // each thread has scratch memory of its own, and reads no row that another writes
        case GGML_OP_CPY:
        case GGML_OP_DUP:
        case GGML_OP_SET_ROWS:
        case GGML_OP_ROPE:
        case GGML_OP_SCALE:
            return false;
        default:
            return true;
    }
}

// in run number `run`, the copy that a thread of `node` works on; index n_nodes is the primary
static int numa_turn(const struct numa_range * range, int node, int run) {
    return (node + run) % (range->n_runs > 1 ? range->n_runs : g_numa.n_nodes);
}

// bytes that an operation reads of a source, over all threads
static uint64_t numa_bytes_read(const struct ggml_tensor * op, int i) {
    const struct ggml_tensor * src = op->src[i];
    const struct ggml_tensor * ids = NULL;
    switch (op->op) {
        case GGML_OP_MUL_MAT_ID:
            ids = i == 0 ? op->src[2] : NULL;
            break;
        case GGML_OP_CPY:
            // the last source is what is written
            return i == 1 ? 0 : ggml_nbytes(src);
        case GGML_OP_SET_ROWS:
            return i == 2 ? 0 : ggml_nbytes(src);
        case GGML_OP_GET_ROWS:
            return i == 0 ? (uint64_t) ggml_nelements(op->src[1]) * ggml_row_size(src->type, src->ne[0]) :
                            ggml_nbytes(src);
#    if !NUMA_HAS_DEVICES
        case GGML_OP_MOE_FUSED_UP_GATE:
            ids = i < 2 ? op->src[3] : NULL;
            break;
#    endif
        default:
            break;
    }
    if (ids != NULL) {
        // two tokens of a batch may choose the same expert; that is not looked at
        const int64_t chosen = ids->ne[0] * ids->ne[1];
        return (uint64_t) (chosen < src->ne[2] ? chosen : src->ne[2]) * src->nb[2];
    }
    return ggml_nbytes(src);
}

static void numa_count(struct ggml_numa_mirror_thread * t,
                       const struct numa_range *        range,
                       const struct ggml_tensor *       op,
                       int                              i) {
    const uint64_t all   = numa_bytes_read(op, i);
    const uint64_t part  = all * (t->ith + 1) / t->nth - all * t->ith / t->nth;
    const uint64_t local = range->share[t->node] >= 1.0f ? part : (uint64_t) (part * (double) range->share[t->node]);
    t->local += local;
    t->remote += part - local;
}

void * ggml_numa_mirror_address(const void * table, void * data, int turn) {
    GGML_ASSERT(turn >= 0 && turn <= ggml_numa_mirror_n_nodes());
    const struct numa_range * range = table ? numa_find(table, data) : NULL;
    return range && range->mirrored ? (char *) data + range->delta[turn] : data;
}

void ggml_numa_mirror_count(struct ggml_numa_mirror_thread * t, const struct ggml_tensor * op) {
    for (int i = 0; t->table && i < GGML_MAX_SRC; ++i) {
        const struct numa_range * range = op->src[i] ? numa_find(t->table, op->src[i]->data) : NULL;
        if (range != NULL) {
            numa_count(t, range, op, i);
        }
    }
}

struct ggml_tensor * ggml_numa_mirror_view(struct ggml_numa_mirror_thread * t,
                                           struct ggml_numa_mirror_op *     room,
                                           struct ggml_tensor *             op,
                                           int                              run) {
    if (t->table == NULL) {
        return op;
    }
    const struct numa_table * table  = t->table;
    const struct numa_range * target = numa_find(table, op->data);
    struct ggml_tensor *      view   = op;
    if (target && target->mirrored) {
        const intptr_t delta = target->delta[numa_turn(target, t->node, run)];
        if (delta != 0) {
            room->op      = *op;
            room->op.data = (char *) op->data + delta;
            view          = &room->op;
        }
    }
    for (int i = 0; i < GGML_MAX_SRC; ++i) {
        struct ggml_tensor *      src   = op->src[i];
        const struct numa_range * range = src ? numa_find(table, src->data) : NULL;
        if (range == NULL) {
            continue;
        }
        if (run == 0) {
            numa_count(t, range, op, i);
        }
        if (!range->mirrored) {
            continue;
        }
        // what is written in this run is also what is read: in place, or moved within the same state
        const intptr_t delta = range->delta[range == target ? numa_turn(range, t->node, run) : t->node];
        if (delta == 0) {
            continue;
        }
        if (view == op) {
            room->op = *op;
            view     = &room->op;
        }
        room->src[i]      = *src;
        room->src[i].data = (char *) src->data + delta;
        view->src[i]      = &room->src[i];
    }
    return view;
}

//
// Barrier
//

struct numa_gate {
    _Alignas(64) _Atomic int n_in;
    _Alignas(64) _Atomic int passed;
    _Atomic int n_asleep;
};

struct ggml_numa_barrier {
    struct numa_gate root;
    struct numa_gate node[GGML_NUMA_MIRROR_MAX_NODES];
};

struct ggml_numa_barrier * ggml_numa_barrier_new(void) {
    if (ggml_numa_mirror_n_nodes() < 2) {
        return NULL;
    }
    struct ggml_numa_barrier * b = aligned_alloc(64, sizeof(*b));
    GGML_ASSERT(b != NULL);
    memset(b, 0, sizeof(*b));
    return b;
}

void ggml_numa_barrier_free(struct ggml_numa_barrier * b) {
    free(b);
}

// a thread that waits longer than a barrier ever takes on idle CPUs (under a millisecond) gives its CPU to others;
// if there are more threads than CPUs, one of those that are waited for needs it now. Before it sleeps, a thread lets
// others run now and then: two that share a CPU by chance would wait for each other's spins at every barrier, and
// because only one of them is ever awake, the kernel would see no reason to move one to an idle CPU
#    define NUMA_SPINS       10000
#    define NUMA_SPINS_FEW   100
#    define NUMA_SPINS_YIELD 100

static void numa_wait(struct numa_gate * gate, int old, int n_spins) {
    for (int i = 0; i < n_spins; ++i) {
        if (atomic_load(&gate->passed) != old) {
            return;
        }
        if (i % NUMA_SPINS_YIELD == NUMA_SPINS_YIELD - 1) {
            sched_yield();
            continue;
        }
#    if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#    elif defined(__aarch64__)
        __asm__ volatile("yield" ::: "memory");
#    endif
    }
    // in this order: numa_open() sees this thread asleep, or the kernel sees the new number and does not let it sleep
    atomic_fetch_add(&gate->n_asleep, 1);
    while (atomic_load(&gate->passed) == old) {
        syscall(SYS_futex, &gate->passed, NUMA_FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
    }
    atomic_fetch_sub(&gate->n_asleep, 1);
}

static void numa_open(struct numa_gate * gate) {
    atomic_fetch_add(&gate->passed, 1);
    if (atomic_load(&gate->n_asleep) > 0) {
        syscall(SYS_futex, &gate->passed, NUMA_FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
    }
}

void ggml_numa_barrier_wait(struct ggml_numa_barrier * b, int n_threads) {
    if (n_threads < 2) {
        return;
    }
    const int64_t      n_nodes = ggml_numa_mirror_n_nodes();
    const int64_t      n       = n_threads;
    const int64_t      node    = tls_ith * n_nodes / n;
    const int          size    = (int) (((node + 1) * n + n_nodes - 1) / n_nodes - (node * n + n_nodes - 1) / n_nodes);
    const int          n_in    = (int) (n < n_nodes ? n : n_nodes);
    const int          n_spins = n_threads > g_numa.n_cpus ? NUMA_SPINS_FEW : NUMA_SPINS;
    struct numa_gate * gate    = &b->node[node];

    const int old = atomic_load(&gate->passed);
    if (atomic_fetch_add(&gate->n_in, 1) != size - 1) {
        numa_wait(gate, old, n_spins);
        return;
    }
    atomic_store(&gate->n_in, 0);
    const int old_root = atomic_load(&b->root.passed);
    if (atomic_fetch_add(&b->root.n_in, 1) == n_in - 1) {
        atomic_store(&b->root.n_in, 0);
        numa_open(&b->root);
    } else {
        numa_wait(&b->root, old_root, n_spins);
    }
    numa_open(gate);
}

//
// What happened
//

void ggml_numa_mirror_counters(int node, uint64_t * local, uint64_t * remote) {
    GGML_ASSERT(node >= 0 && node < GGML_NUMA_MIRROR_MAX_NODES);
    *local  = atomic_load_explicit(&g_numa.counters[node].local, memory_order_relaxed);
    *remote = atomic_load_explicit(&g_numa.counters[node].remote, memory_order_relaxed);
}

void ggml_numa_mirror_reset_counters(void) {
    for (int k = 0; k < GGML_NUMA_MIRROR_MAX_NODES; ++k) {
        atomic_store_explicit(&g_numa.counters[k].local, 0, memory_order_relaxed);
        atomic_store_explicit(&g_numa.counters[k].remote, 0, memory_order_relaxed);
    }
}

static size_t numa_differing(const struct numa_range * range) {
    size_t bytes = 0;
    for (int k = 0; k < g_numa.n_nodes && range->mirrored; ++k) {
        const unsigned char * a = (const unsigned char *) range->base;
        const unsigned char * b = a + range->delta[k];
        if (a != b && memcmp(a, b, range->size) != 0) {
            for (size_t i = 0; i < range->size; ++i) {
                bytes += a[i] != b[i];
            }
        }
    }
    return bytes;
}

struct numa_text {
    char * at;
    size_t size;
    size_t len;
};

static void numa_print(struct numa_text * text, const char * format, ...) {
    va_list args;
    va_start(args, format);
    const bool room = text->len < text->size;
    const int  n    = vsnprintf(room ? text->at + text->len : NULL, room ? text->size - text->len : 0, format, args);
    va_end(args);
    text->len += n > 0 ? n : 0;
}

size_t ggml_numa_mirror_report(char * at, size_t size) {
    struct numa_text text = { at, size, 0 };
    pthread_mutex_lock(&g_numa.mutex);
    const int n = g_numa.n_nodes;
    numa_print(&text, "{\"mode\":\"%s\",\"fake\":%s,\"guard\":%s,\"nodes\":[",
               n < 2        ? "off" :
               g_numa.split ? "split" :
                              "mirror",
               g_numa.fake ? "true" : "false", g_numa.guard ? "true" : "false");
    for (int k = 0; k < n; ++k) {
        uint64_t local, remote;
        ggml_numa_mirror_counters(k, &local, &remote);
        numa_print(&text, "%s{\"id\":%d,\"cpus\":%d,\"local\":%llu,\"remote\":%llu}", k ? "," : "", g_numa.nodes[k].id,
                   g_numa.nodes[k].n_cpus, (unsigned long long) local, (unsigned long long) remote);
    }
    numa_print(&text, "],\"ranges\":[");
    const struct numa_table * table = atomic_load(&g_numa.table);
    for (int i = 0; table && i < table->n; ++i) {
        const struct numa_range * range = &table->range[i];
        numa_print(
            &text,
            "%s{\"kind\":\"%s\",\"bytes\":%zu,\"mirrored\":%s,\"slices_pages\":%zu,\"slices_here\":%zu,\"node\":[",
            i ? "," : "", numa_kind_name(range->kind), range->size, range->mirrored ? "true" : "false",
            range->record->n_slices, range->record->n_placed);
        for (int k = 0; k < n && range->mirrored; ++k) {
            const struct numa_census census = numa_take_census(range->base + range->delta[k], range->size);
            numa_print(&text, "%s{\"id\":%d,\"alias\":%s,\"pages\":%zu,\"here\":%zu}", k ? "," : "", g_numa.nodes[k].id,
                       range->delta[k] == 0 ? "true" : "false", numa_n_pages(range->base, range->size), census.here[k]);
        }
        numa_print(&text, "],\"differs\":%zu}", numa_differing(range));
    }
    numa_print(&text, "]}");
    pthread_mutex_unlock(&g_numa.mutex);
    return text.len;
}

#else  // no implementation here

void ggml_numa_mirror_set(int what) {
    GGML_UNUSED(what);
}

int ggml_numa_mirror_n_nodes(void) {
    return 0;
}

bool ggml_numa_mirror_is_split(void) {
    return false;
}

bool ggml_numa_mirror_start(bool split) {
    numa_fail(GGML_NUMA_CAUSE_FEW_NODES, -1, 0, "--numa %s needs Linux", split ? "split" : "mirror");
    fprintf(stderr, "%s: %s\n", __func__, tls_failure.reason);
    return false;
}

int ggml_numa_mirror_read_nodes(const char *                   root,
                                const unsigned char *          allowed,
                                struct ggml_numa_mirror_node * nodes,
                                int                            n_max) {
    GGML_UNUSED(root);
    GGML_UNUSED(allowed);
    GGML_UNUSED(nodes);
    GGML_UNUSED(n_max);
    return 0;
}

void ggml_numa_mirror_hint(void * data, size_t size) {
    GGML_UNUSED(data);
    GGML_UNUSED(size);
}

bool ggml_numa_mirror_buffer(ggml_backend_buffer_t buffer, int kind, struct ggml_context * ctx) {
    GGML_UNUSED(buffer);
    GGML_UNUSED(kind);
    GGML_UNUSED(ctx);
    return true;
}

void ggml_numa_mirror_enter(struct ggml_numa_mirror_thread * t, int ith, int nth, const bool * cpumask) {
    t->table = NULL;
    GGML_UNUSED(ith);
    GGML_UNUSED(nth);
    GGML_UNUSED(cpumask);
}

void ggml_numa_mirror_leave(struct ggml_numa_mirror_thread * t) {
    GGML_UNUSED(t);
}

int ggml_numa_mirror_n_runs(const struct ggml_numa_mirror_thread * t, const struct ggml_tensor * op) {
    GGML_UNUSED(t);
    GGML_UNUSED(op);
    return 1;
}

bool ggml_numa_mirror_needs_barrier(const struct ggml_tensor * op) {
    GGML_UNUSED(op);
    return true;
}

struct ggml_tensor * ggml_numa_mirror_view(struct ggml_numa_mirror_thread * t,
                                           struct ggml_numa_mirror_op *     room,
                                           struct ggml_tensor *             op,
                                           int                              run) {
    GGML_UNUSED(t);
    GGML_UNUSED(room);
    GGML_UNUSED(run);
    return op;
}

const void * ggml_numa_mirror_acquire(void) {
    return NULL;
}

void ggml_numa_mirror_release(const void * table) {
    GGML_UNUSED(table);
}

bool ggml_numa_mirror_has_copies(const void * table) {
    GGML_UNUSED(table);
    return false;
}

void * ggml_numa_mirror_address(const void * table, void * data, int turn) {
    GGML_UNUSED(table);
    GGML_UNUSED(turn);
    return data;
}

void ggml_numa_mirror_count(struct ggml_numa_mirror_thread * t, const struct ggml_tensor * op) {
    GGML_UNUSED(t);
    GGML_UNUSED(op);
}

struct ggml_numa_barrier * ggml_numa_barrier_new(void) {
    return NULL;
}

void ggml_numa_barrier_free(struct ggml_numa_barrier * b) {
    GGML_UNUSED(b);
}

void ggml_numa_barrier_wait(struct ggml_numa_barrier * b, int n_threads) {
    GGML_UNUSED(b);
    GGML_UNUSED(n_threads);
}

void ggml_numa_mirror_counters(int node, uint64_t * local, uint64_t * remote) {
    GGML_UNUSED(node);
    *local  = 0;
    *remote = 0;
}

void ggml_numa_mirror_reset_counters(void) {}

size_t ggml_numa_mirror_report(char * text, size_t size) {
    return (size_t) snprintf(text, size, "{\"mode\":\"off\",\"nodes\":[],\"ranges\":[]}");
}

#endif
