// What the kernels of ftq need of ggml.h.
#pragma once

#define GGML_API extern

enum ggml_type {
    GGML_TYPE_F32  = 0,
    GGML_TYPE_I32  = 26,
    GGML_TYPE_I64  = 27,
    GGML_TYPE_FTQ4 = 500,
    GGML_TYPE_FTQ3,
    GGML_TYPE_FTQ2
};
