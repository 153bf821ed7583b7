// ggml's plain C.
#define GGML_FTQ_SCALAR
#include "ggml-ftq-impl.h"

extern "C" int write_reference(int k, const float * x, uint8_t * y, int64_t n) {
    ftq_quantize_row(k, x, y, n);
    return 0;
}

extern "C" int read_reference(int k, const uint8_t * x, float * y, int64_t n) {
    ftq_dequantize_row(k, x, y, n);
    return 0;
}
