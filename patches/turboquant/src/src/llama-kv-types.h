#pragma once

#include "ggml-backend.h"

#include <cstdint>

// A device that cannot write rows of the type that its KV cache has would abort in the middle of a graph. This throws.
// n_embd: values in a row of the cache
void llama_kv_require_set_rows(ggml_backend_dev_t dev, ggml_type type, int64_t n_embd);
