#pragma once

#include "ggml.h"

// The KV cache types ftq4, ftq3 and ftq2 on Vulkan.

static inline bool ggml_vk_is_ftq(ggml_type type) {
    return type == GGML_TYPE_FTQ4 || type == GGML_TYPE_FTQ3 || type == GGML_TYPE_FTQ2;
}

// the pipelines of a type, for ggml_vk_load_shaders
#define GGML_VK_FTQ_PIPELINE(pipeline, shader, n_buffers, constants, denominator, ...)                         \
    ggml_vk_create_pipeline(device, device->pipeline, #shader, shader##_len, shader##_data, "main", n_buffers, \
                            sizeof(constants), { denominator, 1, 1 }, { __VA_ARGS__ }, 1)
#define GGML_VK_FTQ_SET_ROWS(k, src_idx, src, idx)                                                               \
    GGML_VK_FTQ_PIPELINE(pipeline_set_rows_##idx[src_idx][GGML_TYPE_FTQ##k], set_rows_##src##_ftq##k##_##idx, 3, \
                         vk_op_binary_push_constants, 1, 1)
#define GGML_VK_FTQ_PIPELINES(k)                                                                                      \
    GGML_VK_FTQ_PIPELINE(pipeline_dequant[GGML_TYPE_FTQ##k], dequant_ftq##k, 2, uint32_t[5], 256 * 16);               \
    GGML_VK_FTQ_PIPELINE(pipeline_dequant_transpose[GGML_TYPE_FTQ##k], dequant_ftq##k##_transpose, 2, uint32_t[5],    \
                         256 * 16);                                                                                   \
    GGML_VK_FTQ_PIPELINE(pipeline_get_rows[GGML_TYPE_FTQ##k], get_rows_ftq##k, 3, vk_op_binary_push_constants, 1024); \
    GGML_VK_FTQ_PIPELINE(pipeline_get_rows_f32[GGML_TYPE_FTQ##k], get_rows_ftq##k##_f32, 3,                           \
                         vk_op_binary_push_constants, 1024);                                                          \
    GGML_VK_FTQ_PIPELINE(pipeline_cpy_f32_quant[GGML_TYPE_FTQ##k], cpy_f32_ftq##k, 2, vk_op_unary_push_constants, 1); \
    GGML_VK_FTQ_PIPELINE(pipeline_cpy_quant_f32[GGML_TYPE_FTQ##k], cpy_ftq##k##_f32, 2, vk_op_unary_push_constants,   \
                         64);                                                                                         \
    GGML_VK_FTQ_SET_ROWS(k, 0, f32, i32);                                                                             \
    GGML_VK_FTQ_SET_ROWS(k, 0, f32, i64);                                                                             \
    GGML_VK_FTQ_SET_ROWS(k, 1, f16, i32);                                                                             \
    GGML_VK_FTQ_SET_ROWS(k, 1, f16, i64)
