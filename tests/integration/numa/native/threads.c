// Threads on the barrier and on the table of ranges, for a build with a sanitizer.  Exit 0 if all holds.

#include "ggml-numa-mirror.h"

#include "ggml-alloc.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(x) do { if (!(x)) { fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #x); exit(1); } } while (0)

#define MAX_THREADS 9
#define ROUNDS      300

#ifdef NO_BARRIER // to see that it would be noticed
#define ggml_numa_barrier_wait(barrier, n_threads) ((void) (barrier), (void) (n_threads))
#endif

// -- barrier: nobody passes before everybody has written, and what was written is seen ------------------------------

struct team {
    struct ggml_numa_barrier * barrier;
    int n_threads;
    int slot[MAX_THREADS]; // plain memory: the barrier alone orders it
};

struct member {
    struct team * team;
    int ith;
};

static void * meet(void * data) {
    struct member * m = data;
    struct team * team = m->team;
    struct ggml_numa_mirror_thread t;
    ggml_numa_mirror_enter(&t, m->ith, team->n_threads, NULL);
    for (int round = 1; round <= ROUNDS; ++round) {
        team->slot[m->ith] = round;
        ggml_numa_barrier_wait(team->barrier, team->n_threads);
        for (int i = 0; i < team->n_threads; ++i) {
            CHECK(team->slot[i] == round);
        }
        ggml_numa_barrier_wait(team->barrier, team->n_threads);
    }
    ggml_numa_mirror_leave(&t);
    return NULL;
}

// two teams at once, each of its own size, each barrier used again with another size
static void test_barrier(void) {
    struct team teams[2] = {{0}};
    for (int k = 0; k < 2; ++k) {
        teams[k].barrier = ggml_numa_barrier_new();
        CHECK(teams[k].barrier != NULL);
    }
    for (int n = 1; n <= MAX_THREADS; ++n) {
        pthread_t threads[2][MAX_THREADS];
        struct member members[2][MAX_THREADS];
        teams[0].n_threads = n;
        teams[1].n_threads = MAX_THREADS + 1 - n;
        for (int k = 0; k < 2; ++k) {
            for (int i = 0; i < teams[k].n_threads; ++i) {
                members[k][i] = (struct member) { &teams[k], i };
                CHECK(pthread_create(&threads[k][i], NULL, meet, &members[k][i]) == 0);
            }
        }
        for (int k = 0; k < 2; ++k) {
            for (int i = 0; i < teams[k].n_threads; ++i) {
                pthread_join(threads[k][i], NULL);
            }
        }
    }
    ggml_numa_barrier_free(teams[0].barrier);
    ggml_numa_barrier_free(teams[1].barrier);
}

// -- table: buffers come and go while graphs run ---------------------------------------------------------------------

#define N_VALUES 5000

static atomic_int stop;

struct state {
    struct ggml_context * ctx;
    ggml_backend_buffer_t buffer;
    struct ggml_tensor  * tensor;
};

static struct state make(int kind, float value) {
    struct ggml_init_params params = { 4*ggml_tensor_overhead(), NULL, true };
    struct state s;
    s.ctx    = ggml_init(params);
    s.tensor = ggml_new_tensor_1d(s.ctx, GGML_TYPE_F32, N_VALUES);
    s.buffer = ggml_backend_alloc_ctx_tensors_from_buft(s.ctx, ggml_backend_cpu_buffer_type());
    float * values = malloc(N_VALUES*sizeof(float));
    for (int i = 0; i < N_VALUES; ++i) {
        values[i] = value;
    }
    ggml_backend_tensor_set(s.tensor, values, 0, N_VALUES*sizeof(float));
    free(values);
    CHECK(ggml_numa_mirror_buffer(s.buffer, kind, s.ctx));
    return s;
}

static void drop(struct state * s) {
    ggml_backend_buffer_free(s->buffer);
    ggml_free(s->ctx);
}

static void * come_and_go(void * data) {
    for (int i = 0; i < 400; ++i) {
        struct state s = make(i % 2 ? GGML_NUMA_MIRROR_WEIGHTS : GGML_NUMA_MIRROR_KV, 1.0f);
        const float two = 2.0f;
        ggml_backend_tensor_set(s.tensor, &two, 4*(i % N_VALUES), sizeof(two));
        ggml_backend_buffer_clear(s.buffer, 0);
        drop(&s);
    }
    (void) data;
    return NULL;
}

// what a graph's thread does with an operation that reads a weight
static void * compute(void * data) {
    struct state * s = data;
    struct ggml_tensor op = *s->tensor;
    op.op     = GGML_OP_MUL;
    op.data   = &op; // in no range
    op.src[0] = s->tensor;
    struct ggml_numa_mirror_op room;
    while (!atomic_load(&stop)) {
        for (int ith = 0; ith < 4; ++ith) {
            struct ggml_numa_mirror_thread t;
            ggml_numa_mirror_enter(&t, ith, 4, NULL);
            const struct ggml_tensor * view = ggml_numa_mirror_view(&t, &room, &op, 0);
            CHECK((view->src[0]->data == s->tensor->data) == (ith == 0)); // fake node 0 has the primary
            for (int i = 0; i < N_VALUES; i += 100) {
                CHECK(((const float *) view->src[0]->data)[i] == 7.0f);
            }
            CHECK(ggml_numa_mirror_n_runs(&t, &op) == 1);
            CHECK(ggml_numa_mirror_n_runs(&t, s->tensor) == 4);
            ggml_numa_mirror_leave(&t);
        }
    }
    return NULL;
}

static void test_table(void) {
    struct state lasting = make(GGML_NUMA_MIRROR_WEIGHTS, 7.0f);
    pthread_t readers[3], writers[2];
    for (int i = 0; i < 3; ++i) {
        CHECK(pthread_create(&readers[i], NULL, compute, &lasting) == 0);
    }
    for (int i = 0; i < 2; ++i) {
        CHECK(pthread_create(&writers[i], NULL, come_and_go, NULL) == 0);
    }
    for (int i = 0; i < 2; ++i) {
        pthread_join(writers[i], NULL);
    }
    atomic_store(&stop, 1);
    for (int i = 0; i < 3; ++i) {
        pthread_join(readers[i], NULL);
    }
    uint64_t local, remote, total = 0;
    for (int k = 0; k < 4; ++k) {
        ggml_numa_mirror_counters(k, &local, &remote);
        CHECK(remote == 0);
        total += local;
    }
    CHECK(total > 0);
    char text[4096];
    CHECK(ggml_numa_mirror_report(text, sizeof(text)) < sizeof(text));
    CHECK(strstr(text, "\"differs\":0}") != NULL);
    drop(&lasting);
    ggml_numa_mirror_report(text, sizeof(text));
    CHECK(strstr(text, "\"ranges\":[]") != NULL);
}

int main(void) {
    setenv("GGML_NUMA_FAKE_NODES", "4", 1);
    CHECK(ggml_numa_mirror_start(false));
    CHECK(ggml_numa_mirror_n_nodes() == 4);
    test_barrier();
    test_table();
    return 0;
}
