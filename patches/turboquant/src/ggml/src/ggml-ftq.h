#pragma once

#include "ggml.h"

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// FTQ: KV cache types of 4.25, 3.25 and 2.25 bits. The formats are described in ggml-ftq-impl.h.

#ifdef __cplusplus
extern "C" {
#endif

#define QK_FTQ 64

typedef struct {
    uint8_t d;  // scale of values 0 to 31: the half whose bits are d << 7
    uint8_t
        aux;  // scale of values 32 to 63: the half whose bits are (d + (aux & 7) - 4) << 7; then what is before value 0
    uint8_t qs[32];  // 4 bits for each value
} block_ftq4;

typedef struct {
    uint8_t d;
    uint8_t aux;
    uint8_t qs[24];  // 3 bits for each value
} block_ftq3;

typedef struct {
    uint8_t d;
    uint8_t aux;
    uint8_t qs[16];  // 2 bits for each value
} block_ftq2;

static_assert(sizeof(block_ftq4) == 34, "wrong ftq4 block size/padding");
static_assert(sizeof(block_ftq3) == 26, "wrong ftq3 block size/padding");
static_assert(sizeof(block_ftq2) == 18, "wrong ftq2 block size/padding");

// k is a multiple of QK_FTQ
GGML_API void quantize_row_ftq4_ref(const float * x, block_ftq4 * y, int64_t k);
GGML_API void quantize_row_ftq3_ref(const float * x, block_ftq3 * y, int64_t k);
GGML_API void quantize_row_ftq2_ref(const float * x, block_ftq2 * y, int64_t k);

GGML_API void dequantize_row_ftq4(const block_ftq4 * x, float * y, int64_t k);
GGML_API void dequantize_row_ftq3(const block_ftq3 * x, float * y, int64_t k);
GGML_API void dequantize_row_ftq2(const block_ftq2 * x, float * y, int64_t k);

// whether all scales are finite
bool ggml_ftq_validate(const void * data, size_t n_blocks, size_t block_size);

// entries of the tables of types in ggml.c and ggml-cpu.c
#define GGML_FTQ_TRAITS(k)                                                \
    [GGML_TYPE_FTQ##k] = {                                                \
        .type_name      = "ftq" #k,                                       \
        .blck_size      = QK_FTQ,                                         \
        .type_size      = sizeof(block_ftq##k),                           \
        .is_quantized   = true,                                           \
        .to_float       = (ggml_to_float_t) dequantize_row_ftq##k,        \
        .from_float_ref = (ggml_from_float_t) quantize_row_ftq##k##_ref,  \
    }
#define GGML_FTQ_TRAITS_CPU(k)                       \
    [GGML_TYPE_FTQ##k] = {                           \
        .from_float   = quantize_row_ftq##k,         \
        .vec_dot      = ggml_vec_dot_ftq##k##_q8_0,  \
        .vec_dot_type = GGML_TYPE_Q8_0,              \
        .nrows        = 1,                           \
    }

#ifdef __cplusplus
}
#endif
