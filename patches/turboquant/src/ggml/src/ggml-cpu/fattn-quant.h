#pragma once

// Flash attention on the CPU for K/V caches that are not both F32 or both F16.
//
// The general loop in ops.cpp dequantizes the row of V that belongs to a position once for every row of Q. Here the
// rows of Q that share a head of K and V are computed together, over tiles of positions, so that a row of V is
// dequantized once for all of them, by code that is compiled for the CPU's instruction set. With as many tokens as the
// tiled path of ops.cpp wants, K is dequantized as well, and Q is not rounded to what the dot product of K's type takes.
//
// A second K/V pair in src[5] and src[6], of types of its own, has the last columns of the mask. One softmax covers both.

#include "common.h"

#ifdef __cplusplus
extern "C" {
#endif

// The most rows of Q that are computed together over dot products of K.
#define GGML_FATTN_QUANT_ROWS 16

// The function that dequantizes a row of a type, of as many values as are whole blocks; NULL if there is none.
ggml_to_float_t ggml_fattn_to_float(enum ggml_type type);

// Whether ggml_fattn_quant() computes this GGML_OP_FLASH_ATTN_EXT.
// With GGML_CPU_FATTN_QUANT_DISABLE in the environment it does not.
bool ggml_fattn_quant_supported(const struct ggml_tensor * dst);

// Called by all threads. Scratch memory is what ggml_graph_plan() reserves for the tiled path of ops.cpp.
void ggml_fattn_quant(const struct ggml_compute_params * params, struct ggml_tensor * dst);

#ifdef __cplusplus
}
#endif
