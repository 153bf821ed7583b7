#pragma once

// The pairs of K and V with ftq4, ftq3 and ftq2 that have a vector kernel, each in a file of its name. The others are
// converted to f16. fattn-vec.cuh comes before this.

#include "ftq.cuh"

#define FATTN_VEC_PAIR_FTQ(prefix, type_K, type_V)                           \
    prefix DECL_FATTN_VEC_CASE(64, GGML_TYPE_##type_K, GGML_TYPE_##type_V);  \
    prefix DECL_FATTN_VEC_CASE(128, GGML_TYPE_##type_K, GGML_TYPE_##type_V); \
    prefix DECL_FATTN_VEC_CASE(256, GGML_TYPE_##type_K, GGML_TYPE_##type_V)

FATTN_VEC_PAIR_FTQ(extern, FTQ4, FTQ4);
FATTN_VEC_PAIR_FTQ(extern, FTQ4, FTQ3);
FATTN_VEC_PAIR_FTQ(extern, FTQ3, FTQ3);
FATTN_VEC_PAIR_FTQ(extern, FTQ2, FTQ2);
FATTN_VEC_PAIR_FTQ(extern, Q8_0, FTQ4);
FATTN_VEC_PAIR_FTQ(extern, Q4_0, FTQ4);

#define GGML_CUDA_FA_FTQ4_FTQ4 1
#define GGML_CUDA_FA_FTQ4_FTQ3 1
#define GGML_CUDA_FA_FTQ3_FTQ3 1
#define GGML_CUDA_FA_FTQ2_FTQ2 1
#define GGML_CUDA_FA_Q8_0_FTQ4 1
#define GGML_CUDA_FA_Q4_0_FTQ4 1

// for ggml_cuda_get_fattn_vec_case
#define FATTN_VEC_CASES_FTQ           \
    FATTN_VEC_CASES_ALL_D(FTQ4, FTQ4) \
    FATTN_VEC_CASES_ALL_D(FTQ4, FTQ3) \
    FATTN_VEC_CASES_ALL_D(FTQ3, FTQ3) \
    FATTN_VEC_CASES_ALL_D(FTQ2, FTQ2) \
    FATTN_VEC_CASES_ALL_D(Q8_0, FTQ4) \
    FATTN_VEC_CASES_ALL_D(Q4_0, FTQ4)
