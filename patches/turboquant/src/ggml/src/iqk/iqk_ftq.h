#pragma once

// The KV cache types ftq4, ftq3 and ftq2 in IQK: rows are unpacked to q8_0, which holds their values exactly, and go
// through the kernels of that type.

#include "ggml-cpu/ftq.h"
#include "ggml-ftq.h"
#include "ggml.h"
#include "iqk_config.h"

#ifdef __cplusplus
extern "C" {
#endif

// entries of the table of types in ggml.c
#define IQK_FTQ_TRAITS(k)                                                \
    [GGML_TYPE_FTQ##k] = {                                               \
        .type_name      = "ftq" #k,                                      \
        .blck_size      = QK_FTQ,                                        \
        .type_size      = sizeof(block_ftq##k),                          \
        .is_quantized   = true,                                          \
        .to_float       = ggml_ftq##k##_to_float,                        \
        .from_float     = quantize_row_ftq##k,                           \
        .from_float_ref = (ggml_from_float_t) quantize_row_ftq##k##_ref, \
        .vec_dot        = ggml_vec_dot_ftq##k##_q8_0,                    \
        .vec_dot_type   = GGML_FTQ_DOT_TYPE,                             \
        .nrows          = 1,                                             \
    }

static inline bool iqk_is_ftq(int type) {
    return type == GGML_TYPE_FTQ4 || type == GGML_TYPE_FTQ3 || type == GGML_TYPE_FTQ2;
}

// Rows of n values as q8_0, one after the other. They are valid until the next call of this thread with the same slot.
enum iqk_ftq_slot {
    IQK_FTQ_SLOT_K,
    IQK_FTQ_SLOT_V,
};

const char * iqk_ftq_to_q8_0(int type, int n, const void * x, size_t stride, int n_rows, enum iqk_ftq_slot slot);

// iqk_flash_attn_impl() for K or V of these types
bool iqk_ftq_flash_attn(int           type_k,
                        int           type_v,
                        int           Dk,
                        int           Dv,
                        int           nq,
                        int           nk,
                        int           stride_q,
                        int           stride_k,
                        int           stride_v,
                        int           stride_m,
                        int           stride_qkv,
                        const float * q,
                        const void *  k,
                        const void *  v,
                        const void *  mask,
                        const float * sink,
                        float         scale,
                        float         softcap,
                        float *       qkv,
                        float *       M,
                        float *       S);

#ifdef __cplusplus
}
#endif
