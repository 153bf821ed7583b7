#include "llama.h"
#include <cstdio>
#include <new>

llama_toy_params llama_toy_default_params() {
    return { 512, 1.0f };
}

int llama_toy_run(const llama_model * model, llama_toy_params params) {
    // Something of the C++ library, as every engine needs it.
    int * lengths = new int[2] { 4, 5 };
    std::printf("%s:%d %s %d\n", __FILE__, __LINE__, model ? "model" : "none", params.n_ctx);
    int length = lengths[model ? 1 : 0];
    delete[] lengths;
    return length;
}
