#define GGML_FTQ_SCALAR
#include "ggml-ftq-impl.h"
#include "ggml-impl.h"

void quantize_row_ftq4_ref(const float * GGML_RESTRICT x, block_ftq4 * GGML_RESTRICT y, int64_t k) {
    ftq_quantize_row(4, x, (uint8_t *) y, k);
}

void quantize_row_ftq3_ref(const float * GGML_RESTRICT x, block_ftq3 * GGML_RESTRICT y, int64_t k) {
    ftq_quantize_row(3, x, (uint8_t *) y, k);
}

void quantize_row_ftq2_ref(const float * GGML_RESTRICT x, block_ftq2 * GGML_RESTRICT y, int64_t k) {
    ftq_quantize_row(2, x, (uint8_t *) y, k);
}

void dequantize_row_ftq4(const block_ftq4 * GGML_RESTRICT x, float * GGML_RESTRICT y, int64_t k) {
    ftq_dequantize_row(4, (const uint8_t *) x, y, k);
}

void dequantize_row_ftq3(const block_ftq3 * GGML_RESTRICT x, float * GGML_RESTRICT y, int64_t k) {
    ftq_dequantize_row(3, (const uint8_t *) x, y, k);
}

void dequantize_row_ftq2(const block_ftq2 * GGML_RESTRICT x, float * GGML_RESTRICT y, int64_t k) {
    ftq_dequantize_row(2, (const uint8_t *) x, y, k);
}

bool ggml_ftq_validate(const void * data, size_t n_blocks, size_t block_size) {
    const uint8_t * b = (const uint8_t *) data;
    for (size_t i = 0; i < n_blocks; ++i, b += block_size) {
        if (b[0] > FTQ_TOP || b[0] + (b[1] & 7) - 4 > FTQ_TOP) {
            return false;
        }
    }
    return true;
}
