#include "llama.h"
#include <cstdio>
#include <string>

llama_toy_params llama_toy_default_params() {
    return { 512, 1.0f };
}

int llama_toy_run(const llama_model * model, llama_toy_params params) {
    std::string text = model ? "model" : "none";
    std::printf("%s:%d %s %d\n", __FILE__, __LINE__, text.c_str(), params.n_ctx);
    return (int) text.size();
}
