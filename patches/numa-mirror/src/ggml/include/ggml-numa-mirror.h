#pragma once

//
// NUMA: a copy of weights and state on every node ("mirror"), or each slice of a weight's rows on the node whose threads
// compute it ("split")
//
// A table of address ranges says, for every node, how far its copy lies from the primary, which is the buffer everybody
// else knows.  Tensors are not changed: just before an operation runs, a thread exchanges the addresses that lie in a
// range for those of its node.  An operation that writes into a mirrored range runs once for every copy.  Whatever the
// host writes (load, clear, restore) goes through the interface of the buffer, which is wrapped to reach all copies.
//
// Threads of a graph are assigned to nodes in contiguous groups: thread i of n runs on node i*n_nodes/n.
//
// Environment:
//   GGML_NUMA_FAKE_NODES=N     pretend N nodes, spread over the real ones (tests)
//   GGML_NUMA_MIRROR_NO_ALIAS  make a copy even where the primary is on the node already (tests)
//   GGML_NUMA_MIRROR_GUARD     implies the former; the primaries are unreadable while a graph runs (tests)
//   GGML_NUMA_MIRROR_REPORT    a file; a line of JSON is appended whenever a range ends (see ggml_numa_mirror_report)
//
// Only Linux has an implementation; elsewhere ggml_numa_mirror_start() fails.
//

#include "ggml-backend.h"
#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

#define GGML_NUMA_MIRROR_MAX_NODES 16

// a value of enum ggml_numa_strategy, as GGML_NUMA_STRATEGY_MIRROR, which upstream has; defined here so that the enum's
// header, which every file includes, stays as it is
#define GGML_NUMA_STRATEGY_SPLIT ((enum ggml_numa_strategy) 5)

//
// What is mirrored
//

enum ggml_numa_mirror_what {
    GGML_NUMA_MIRROR_NONE        = 0,
    GGML_NUMA_MIRROR_WEIGHTS     = 1,
    GGML_NUMA_MIRROR_KV          = 2,  // KV cache and recurrent state
    GGML_NUMA_MIRROR_ALL         = 3,
    GGML_NUMA_MIRROR_BEST_EFFORT = 4,  // a copy that can not be made is a warning, not an error
};

// bits of ggml_numa_mirror_what for words separated by commas: weights, kv, all, none, best-effort; "best-effort" alone
// means "all,best-effort"
// false (and nothing written) if there is another word, or "none" beside something
GGML_API bool ggml_numa_mirror_parse(const char * words, int * what);

// what to mirror from now on, as ggml_numa_mirror_parse() gives it; ALL if never called
GGML_API void ggml_numa_mirror_set(int what);

//
// Failures
//

enum ggml_numa_mirror_cause {
    GGML_NUMA_CAUSE_FEW_NODES = 1,  // the process may use fewer than two nodes
    GGML_NUMA_CAUSE_NO_ROOM   = 2,  // the memory of a node is taken
    GGML_NUMA_CAUSE_NO_ACCESS = 3,  // the process may not use the memory of a node (cpuset)
    GGML_NUMA_CAUSE_REFUSED   = 4,  // a system call that places pages or tells where they are is refused (container)
    GGML_NUMA_CAUSE_MISPLACED = 5,  // the kernel placed pages elsewhere
    GGML_NUMA_CAUSE_SYSTEM    = 6,  // another error of the system
};

struct ggml_numa_mirror_failure {
    enum ggml_numa_mirror_cause cause;
    int                         node;         // of the kernel; -1 if it is about no single one
    uint64_t                    lacks;        // bytes that could not be placed, or that have to be freed
    char                        reason[384];  // one line for people: what failed and why, not what to do
};

// The last failure on the calling thread, which is the one that called ggml_numa_mirror_start() or ..._buffer(), also if
// BEST_EFFORT made it a warning.  It is copied to `failure` and forgotten, so each is told once; another thread's is never
// seen.  false (and nothing written) if there is none
GGML_API bool ggml_numa_mirror_take_failure(struct ggml_numa_mirror_failure * failure);

//
// Nodes
//

// find the nodes this process may run on; called by ggml_numa_init()
// true if there are two or more and the mode is on from here on; otherwise the reason is logged, and a failure
GGML_API bool ggml_numa_mirror_start(bool split);

// number of nodes in use; 0 if the mode is off
GGML_API int  ggml_numa_mirror_n_nodes(void);
GGML_API bool ggml_numa_mirror_is_split(void);

struct ggml_numa_mirror_node {
    int           id;          // of the kernel
    int           n_cpus;      // CPUs of the node that the process may use
    unsigned char cpus[1024];  // 1 for each of them
};

// nodes below `root` (/sys/devices/system/node) with at least one CPU that is in allowed[1024]; returns their number
// nodes without memory of their own, without such CPUs, and gaps in the numbering are passed over
GGML_API int ggml_numa_mirror_read_nodes(const char *                   root,
                                         const unsigned char *          allowed,
                                         struct ggml_numa_mirror_node * nodes,
                                         int                            n_max);

//
// Buffers
//

// New memory of a buffer, before anything is written to it.  If a mirror may be made of the buffer, ask for huge pages as
// the copies have them: threads that meet at barriers are as fast as those with the smallest pages
GGML_API void ggml_numa_mirror_hint(void * data, size_t size);

// Mirror (or split) a buffer of host memory; `kind` is GGML_NUMA_MIRROR_WEIGHTS or GGML_NUMA_MIRROR_KV.
// `ctx` holds the tensors of the buffer; only split needs it, where weights are sliced by rows.
// Must be called when the content is there, and before any graph uses the buffer.  Freeing the buffer ends it.
// true if nothing is to be done (mode off, kind not asked for, buffer of a device) or all copies stand and lie where they
// should; otherwise it is a failure: a warning with BEST_EFFORT, or false is returned without
GGML_API bool         ggml_numa_mirror_buffer(ggml_backend_buffer_t buffer, int kind, struct ggml_context * ctx);
// why this thread's last call of it returned false, and which options help; "" if it returned true.  The text is the
// library's and stays until the thread's next call
GGML_API const char * ggml_numa_mirror_error(void);

//
// Computing
//

struct ggml_numa_mirror_thread {
    const void *  table;  // NULL: nothing to do
    int           ith;
    int           nth;
    int           node;  // index of this thread's node
    bool          restore;
    uint64_t      local;
    uint64_t      remote;
    unsigned char mask[128];
};

// a thread begins and ends its part of a graph; `cpumask` (GGML_MAX_N_THREADS entries, or NULL) is the user's wish
// pins the thread to its node; thread 0 gets its old affinity back at the end
GGML_API void ggml_numa_mirror_enter(struct ggml_numa_mirror_thread * t, int ith, int nth, const bool * cpumask);
GGML_API void ggml_numa_mirror_leave(struct ggml_numa_mirror_thread * t);

// how many times an operation has to run: 1, or once for each copy of what it writes
GGML_API int  ggml_numa_mirror_n_runs(const struct ggml_numa_mirror_thread * t, const struct ggml_tensor * op);
// whether the threads need a barrier between two runs, because they share scratch memory
GGML_API bool ggml_numa_mirror_needs_barrier(const struct ggml_tensor * op);

// room for an operation and its sources
struct ggml_numa_mirror_op {
    struct ggml_tensor op;
    struct ggml_tensor src[GGML_MAX_SRC];
};

// `op` as this thread has to compute it in run number `run`: itself if it touches no range, else the copy in `room`
GGML_API struct ggml_tensor * ggml_numa_mirror_view(struct ggml_numa_mirror_thread * t,
                                                    struct ggml_numa_mirror_op *     room,
                                                    struct ggml_tensor *             op,
                                                    int                              run);

// For engines that fuse operations by comparing pointers and so need whole graphs, one for each node (see ggml-numa-graph.h).
// The ranges as they are now; they stay valid until given back.  NULL if there are none
GGML_API const void * ggml_numa_mirror_acquire(void);
GGML_API void         ggml_numa_mirror_release(const void * table);
// whether any of them has copies
GGML_API bool         ggml_numa_mirror_has_copies(const void * table);
// where copy number `turn` of an address is; turn n_nodes is the primary.  `data` itself if it lies in no range
GGML_API void *       ggml_numa_mirror_address(const void * table, void * data, int turn);
// count what an operation reads, for the part of it that this thread computes
GGML_API void         ggml_numa_mirror_count(struct ggml_numa_mirror_thread * t, const struct ggml_tensor * op);

//
// Barrier: within a node first, then across nodes.  One for each thread pool.
//

struct ggml_numa_barrier;
GGML_API struct ggml_numa_barrier * ggml_numa_barrier_new(void);  // NULL if the mode is off
GGML_API void                       ggml_numa_barrier_free(struct ggml_numa_barrier * b);
// called by each of n_threads; the caller is the thread that called ggml_numa_mirror_enter() with its number
GGML_API void                       ggml_numa_barrier_wait(struct ggml_numa_barrier * b, int n_threads);

//
// What happened
//

// bytes of registered buffers that operations read from the own node's memory and from another's, for node 0 <= i < n_nodes
// computed from shapes, and for experts from the number of selected rows
GGML_API void ggml_numa_mirror_counters(int node, uint64_t * local, uint64_t * remote);
GGML_API void ggml_numa_mirror_reset_counters(void);

// all of it as JSON: nodes, counters, and for each range its kind, size, where the kernel says the pages are, and how
// many bytes of its copies differ from the primary; returns the length, writes at most `size` bytes with the final 0
GGML_API size_t ggml_numa_mirror_report(char * text, size_t size);

#ifdef __cplusplus
}
#endif
