#pragma once

#include "ggml.h"

// The KV cache types ftq4, ftq3 and ftq2 on Metal; their kernels are in kernels/ftq.metal.

// threads that write a block
#define OP_FTQ_NTH 96

static inline bool ggml_metal_is_ftq(enum ggml_type type) {
    return type == GGML_TYPE_FTQ4 || type == GGML_TYPE_FTQ3 || type == GGML_TYPE_FTQ2;
}

// copies from F32, and to F32 and F16
static inline bool ggml_metal_supports_cpy_ftq(const struct ggml_tensor * src, const struct ggml_tensor * dst) {
    if (!ggml_are_same_shape(src, dst)) {
        return false;
    }
    if (src->type == GGML_TYPE_F32) {
        return ggml_metal_is_ftq(dst->type) && dst->nb[0] == ggml_type_size(dst->type);
    }
    return ggml_metal_is_ftq(src->type) && src->nb[0] == ggml_type_size(src->type) &&
           (dst->type == GGML_TYPE_F32 || dst->type == GGML_TYPE_F16) && dst->nb[0] == ggml_type_size(dst->type);
}
