#pragma once

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

// what a dot product takes the other row as; in ik_llama.cpp as its kernels for q8_0 do
#if !GGML_USE_IQK_MULMAT
#    define GGML_FTQ_DOT_TYPE GGML_TYPE_Q8_0
#elif defined(__AVX2__)
#    define GGML_FTQ_DOT_TYPE GGML_TYPE_Q8_2_X4
#else
#    define GGML_FTQ_DOT_TYPE GGML_TYPE_Q8_0_X4
#endif

// The same bytes and values as the functions of ggml-ftq.h, with the vectors that this backend is compiled for.
// n is a multiple of QK_FTQ.

void quantize_row_ftq4(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t n);
void quantize_row_ftq3(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t n);
void quantize_row_ftq2(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t n);

void ggml_ftq4_to_float(const void * GGML_RESTRICT x, float * GGML_RESTRICT y, int64_t n);
void ggml_ftq3_to_float(const void * GGML_RESTRICT x, float * GGML_RESTRICT y, int64_t n);
void ggml_ftq2_to_float(const void * GGML_RESTRICT x, float * GGML_RESTRICT y, int64_t n);

void ggml_vec_dot_ftq4_q8_0(int                        n,
                            float * GGML_RESTRICT      s,
                            size_t                     bs,
                            const void * GGML_RESTRICT vx,
                            size_t                     bx,
                            const void * GGML_RESTRICT vy,
                            size_t                     by,
                            int                        nrc);
void ggml_vec_dot_ftq3_q8_0(int                        n,
                            float * GGML_RESTRICT      s,
                            size_t                     bs,
                            const void * GGML_RESTRICT vx,
                            size_t                     bx,
                            const void * GGML_RESTRICT vy,
                            size_t                     by,
                            int                        nrc);
void ggml_vec_dot_ftq2_q8_0(int                        n,
                            float * GGML_RESTRICT      s,
                            size_t                     bs,
                            const void * GGML_RESTRICT vx,
                            size_t                     bx,
                            const void * GGML_RESTRICT vy,
                            size_t                     by,
                            int                        nrc);

// unpacks n rows of D values, at base + at[i]*stride: whole numbers to q + i*D, the scale of each 32 values b to
// d[b*d_stride + i]
void ggml_ftq4_to_i8(const char *    base,
                     size_t          stride,
                     const int64_t * at,
                     int64_t         n,
                     int8_t *        q,
                     float *         d,
                     int64_t         d_stride,
                     int64_t         D);
void ggml_ftq3_to_i8(const char *    base,
                     size_t          stride,
                     const int64_t * at,
                     int64_t         n,
                     int8_t *        q,
                     float *         d,
                     int64_t         d_stride,
                     int64_t         D);
void ggml_ftq2_to_i8(const char *    base,
                     size_t          stride,
                     const int64_t * at,
                     int64_t         n,
                     int8_t *        q,
                     float *         d,
                     int64_t         d_stride,
                     int64_t         D);

// writes the values of rows of one of these types that are stride bytes apart as blocks of q8_0, without gaps
void ggml_ftq_rows_to_q8_0(enum ggml_type             type,
                           const void * GGML_RESTRICT x,
                           size_t                     stride,
                           void * GGML_RESTRICT       y,
                           int64_t                    n,
                           int64_t                    n_rows);

#ifdef __cplusplus
}
#endif
