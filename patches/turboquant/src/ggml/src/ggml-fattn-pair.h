#pragma once

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

// GGML_OP_FLASH_ATTN_PAIR: attention over two pairs of K and V with one softmax, on the CPU

// bytes of memory that the threads need together
size_t ggml_fattn_pair_work_size(const struct ggml_tensor * dst, int nth);

// the part of thread ith; the threads meet in the barrier
void ggml_fattn_pair(struct ggml_tensor * dst,
                     void *               work,
                     void (*barrier)(void *),
                     void * barrier_data,
                     int    ith,
                     int    nth);

#ifdef __cplusplus
}
#endif
