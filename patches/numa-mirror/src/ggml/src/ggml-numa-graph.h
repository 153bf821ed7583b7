#pragma once

//
// Graphs for threads of different NUMA nodes
//
// An operation looks at its neighbours in the graph, by comparing pointers, and computes several of them at once where it
// can.  So no operation can be exchanged alone: each NUMA node gets a whole graph, with copies of all tensors that point
// to each other as the originals do, and whose data is in the memory of that node (see ggml-numa-mirror.h).
//
// The copies are kept from one evaluation to the next.  They are brought up to date by the threads that use them, which
// notice when the graph is another one.
//
// An operation that writes into a mirrored range runs once for each copy: in run number r, a thread of node k takes the
// graph number (k + r) % n_runs.  Every copy is thus written once by every thread.  This relies on two things: operations
// write to nothing but their own data, or that of the nodes they are fused with; and a thread's share of the rows depends
// on its number alone.
//

#include "ggml-numa-mirror.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_numa_graph;

// Before and after the threads compute `cgraph`.  NULL if the mode is off or there are no ranges.  The object belongs to
// one computation at a time
struct ggml_numa_graph * ggml_numa_graph_begin(const struct ggml_cgraph * cgraph);
void                     ggml_numa_graph_end  (struct ggml_numa_graph * g);

// Called by each thread, after ggml_numa_mirror_enter(): the graph that it has to compute.  barrier(data) waits for all
const struct ggml_cgraph * ggml_numa_graph_enter(
        struct ggml_numa_graph * g, const struct ggml_numa_mirror_thread * t, void (*barrier)(void * data), void * data);

// How many times the nodes first..last, computed in one go, have to run; counts what they read.  1 if `g` is NULL
int ggml_numa_graph_n_runs(
        const struct ggml_numa_graph * g, struct ggml_numa_mirror_thread * t, int first, int last);

// The graph for run number 0 < run < n_runs
const struct ggml_cgraph * ggml_numa_graph_view(
        const struct ggml_numa_graph * g, const struct ggml_numa_mirror_thread * t, int run, int n_runs);

#ifdef __cplusplus
}
#endif
