#define GGML_COMMON_DECL_C
#include "ftq.h"

#include "ggml-common.h"
#include "ggml-ftq-impl.h"

#if GGML_USE_IQK_MULMAT
#    include "iqk/iqk_mul_mat.h"
#else
// of quants.h in llama.cpp, of ggml-quants.h in ik_llama.cpp
void ggml_vec_dot_q8_0_q8_0(int                        n,
                            float * GGML_RESTRICT      s,
                            size_t                     bs,
                            const void * GGML_RESTRICT vx,
                            size_t                     bx,
                            const void * GGML_RESTRICT vy,
                            size_t                     by,
                            int                        nrc);
#endif

GGML_FTQ_INLINE void ftq_vec_dot_q8_0(int                        k,
                                      int                        n,
                                      float * GGML_RESTRICT      s,
                                      const void * GGML_RESTRICT vx,
                                      const void * GGML_RESTRICT vy) {
    const uint8_t * x = (const uint8_t *) vx;

    float sum = 0.0f;
    for (int i = 0; i < n; i += 4 * QK_FTQ) {
        const int    m = n - i < 4 * QK_FTQ ? n - i : 4 * QK_FTQ;
        const char * y = (const char *) vy + ggml_row_size(GGML_FTQ_DOT_TYPE, i);
        block_q8_0   row[4 * QK_FTQ / QK8_0];
        float        part;
        ftq_row_to_q8_0(k, x + i / QK_FTQ * (2 + 8 * k), (uint8_t *) row, m);
#if GGML_USE_IQK_MULMAT
        if (!iqk_mul_mat(1, 1, m, GGML_TYPE_Q8_0, row, 0, GGML_FTQ_DOT_TYPE, y, 0, &part, 0, 0, 1)) {
            GGML_ABORT("no dot product of q8_0");
        }
#else
        ggml_vec_dot_q8_0_q8_0(m, &part, 0, row, 0, y, 0, 1);
#endif
        sum += part;
    }
    *s = sum;
}

#define GGML_FTQ_FUNCTIONS(k)                                                                                        \
    void quantize_row_ftq##k(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t n) {                     \
        ftq_quantize_row(k, x, (uint8_t *) y, n);                                                                    \
    }                                                                                                                \
    void ggml_ftq##k##_to_float(const void * GGML_RESTRICT x, float * GGML_RESTRICT y, int64_t n) {                  \
        ftq_dequantize_row(k, (const uint8_t *) x, y, n);                                                            \
    }                                                                                                                \
    void ggml_ftq##k##_to_i8(const char * base, size_t stride, const int64_t * at, int64_t n, int8_t * q, float * d, \
                             int64_t d_stride, int64_t D) {                                                          \
        for (int64_t i = 0; i < n; ++i) {                                                                            \
            ftq_row_to_i8(k, (const uint8_t *) base + at[i] * stride, q + i * D, d + i, d_stride, D);                \
        }                                                                                                            \
    }                                                                                                                \
    void ggml_vec_dot_ftq##k##_q8_0(int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx,        \
                                    size_t bx, const void * GGML_RESTRICT vy, size_t by, int nrc) {                  \
        assert(n % QK_FTQ == 0);                                                                                     \
        assert(nrc == 1);                                                                                            \
        GGML_UNUSED(bs);                                                                                             \
        GGML_UNUSED(bx);                                                                                             \
        GGML_UNUSED(by);                                                                                             \
        GGML_UNUSED(nrc);                                                                                            \
        ftq_vec_dot_q8_0(k, n, s, vx, vy);                                                                           \
    }

GGML_FTQ_FUNCTIONS(4)
GGML_FTQ_FUNCTIONS(3)
GGML_FTQ_FUNCTIONS(2)

#if defined(__GNUC__)
#    define FTQ_PREFETCH(p) __builtin_prefetch(p)
#else
#    define FTQ_PREFETCH(p) GGML_UNUSED(p)
#endif

// Rows of a head lie between those of others, at distances that CPUs do not foresee.
enum { FTQ_AHEAD = 12 };

// In a loop of its own for each type, in which the vectors of the table stay where they are.
#define GGML_FTQ_ROWS(k)                                                                       \
    for (int64_t i = 0; i < n_rows; ++i) {                                                     \
        const char * ahead = (const char *) x + (i + FTQ_AHEAD) * stride;                      \
        FTQ_PREFETCH(ahead);                                                                   \
        FTQ_PREFETCH(ahead + n / QK_FTQ * (2 + 8 * k) - 1);                                    \
        ftq_row_to_q8_0(k, (const uint8_t *) x + i * stride, (uint8_t *) y + i * row_size, n); \
    }

void ggml_ftq_rows_to_q8_0(enum ggml_type             type,
                           const void * GGML_RESTRICT x,
                           size_t                     stride,
                           void * GGML_RESTRICT       y,
                           int64_t                    n,
                           int64_t                    n_rows) {
    const size_t row_size = ggml_row_size(GGML_TYPE_Q8_0, n);
    switch (type) {
        case GGML_TYPE_FTQ4:
            GGML_FTQ_ROWS(4);
            break;
        case GGML_TYPE_FTQ3:
            GGML_FTQ_ROWS(3);
            break;
        case GGML_TYPE_FTQ2:
            GGML_FTQ_ROWS(2);
            break;
        default:
            GGML_ABORT("not a type of this file");
    }
}
