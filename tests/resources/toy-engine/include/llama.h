#ifndef LLAMA_H
#define LLAMA_H
#include "ggml.h"
#ifdef __cplusplus
extern "C" {
#endif
struct llama_model;
struct llama_toy_params {
    int n_ctx;
    float scale;
};
struct llama_toy_params llama_toy_default_params(void);
int llama_toy_run(const struct llama_model * model, struct llama_toy_params params);
#ifdef __cplusplus
}
#endif
#endif
