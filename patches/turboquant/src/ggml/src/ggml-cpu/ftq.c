#define GGML_COMMON_DECL_C
#include "ftq.h"

#include "ggml-common.h"
#include "ggml-ftq-impl.h"
#include "quants.h"
#include "simd-mappings.h"

GGML_FTQ_INLINE void ftq_row_to_q8_0(int k, const void * GGML_RESTRICT vx, block_q8_0 * GGML_RESTRICT y, int64_t n) {
    const uint8_t * x = (const uint8_t *) vx;
    assert(n % QK_FTQ == 0);
    for (int64_t i = 0; i < n / QK_FTQ; ++i) {
        int8_t q[QK_FTQ];
        int    code0, code1;
        ftq_unpack(k, x + i * (2 + 8 * k), q, &code0, &code1);
        // a half has room for a scale of 4 bits, down to 2^-24
        y[2 * i + 0].d = GGML_CPU_FP32_TO_FP16(ftq_scale(code0) * (1.0f / 32));
        y[2 * i + 1].d = GGML_CPU_FP32_TO_FP16(ftq_scale(code1) * (1.0f / 32));
        memcpy(y[2 * i + 0].qs, q, FTQ_HALF);
        memcpy(y[2 * i + 1].qs, q + FTQ_HALF, FTQ_HALF);
    }
}

GGML_FTQ_INLINE void ftq_vec_dot_q8_0(int                        k,
                                      int                        n,
                                      float * GGML_RESTRICT      s,
                                      const void * GGML_RESTRICT vx,
                                      const void * GGML_RESTRICT vy) {
    const uint8_t *    x = (const uint8_t *) vx;
    const block_q8_0 * y = (const block_q8_0 *) vy;

    float sum = 0.0f;
    for (int i = 0; i < n; i += 4 * QK_FTQ) {
        const int  m = n - i < 4 * QK_FTQ ? n - i : 4 * QK_FTQ;
        block_q8_0 row[4 * QK_FTQ / QK8_0];
        float      part;
        ftq_row_to_q8_0(k, x + i / QK_FTQ * (2 + 8 * k), row, m);
        ggml_vec_dot_q8_0_q8_0(m, &part, 0, row, 0, y + i / QK8_0, 0, 1);
        sum += part;
    }
    *s = sum;
}

#define GGML_FTQ_FUNCTIONS(k)                                                                                 \
    void quantize_row_ftq##k(const float * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t n) {              \
        ftq_quantize_row(k, x, (uint8_t *) y, n);                                                             \
    }                                                                                                         \
    void ggml_ftq##k##_to_float(const void * GGML_RESTRICT x, float * GGML_RESTRICT y, int64_t n) {           \
        ftq_dequantize_row(k, (const uint8_t *) x, y, n);                                                     \
    }                                                                                                         \
    static void ftq##k##_to_q8_0(const void * GGML_RESTRICT x, void * GGML_RESTRICT y, int64_t n) {           \
        ftq_row_to_q8_0(k, x, (block_q8_0 *) y, n);                                                           \
    }                                                                                                         \
    void ggml_vec_dot_ftq##k##_q8_0(int n, float * GGML_RESTRICT s, size_t bs, const void * GGML_RESTRICT vx, \
                                    size_t bx, const void * GGML_RESTRICT vy, size_t by, int nrc) {           \
        assert(n % QK_FTQ == 0);                                                                              \
        assert(nrc == 1);                                                                                     \
        GGML_UNUSED(bs);                                                                                      \
        GGML_UNUSED(bx);                                                                                      \
        GGML_UNUSED(by);                                                                                      \
        GGML_UNUSED(nrc);                                                                                     \
        ftq_vec_dot_q8_0(k, n, s, vx, vy);                                                                    \
    }

GGML_FTQ_FUNCTIONS(4)
GGML_FTQ_FUNCTIONS(3)
GGML_FTQ_FUNCTIONS(2)

ggml_to_q8_0_t ggml_ftq_to_q8_0(enum ggml_type type) {
    switch (type) {
        case GGML_TYPE_FTQ4:
            return ftq4_to_q8_0;
        case GGML_TYPE_FTQ3:
            return ftq3_to_q8_0;
        case GGML_TYPE_FTQ2:
            return ftq2_to_q8_0;
        default:
            return NULL;
    }
}
