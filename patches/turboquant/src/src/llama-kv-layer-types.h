#pragma once

#include "ggml.h"

#include <cstdint>
#include <utility>
#include <vector>

struct llama_context_params;
struct llama_model;

// --cache-type-layers: layers whose K and V have types of their own
//
//     LAYERS=K,LAYERS=K/V,...    LAYERS: 5, 5-7, first2 or last2; what comes later wins
class llama_kv_layer_types {
  public:
    // types: "" or NULL for none; throws std::runtime_error if they mean nothing
    llama_kv_layer_types(const char * types, uint32_t n_layer, ggml_type type_k, ggml_type type_v);

    // those of the scope that this thread is in
    llama_kv_layer_types(uint32_t n_layer, ggml_type type_k, ggml_type type_v);

    void get(uint32_t il, ggml_type & type_k, ggml_type & type_v) const;

    // what stands for all of them: a quantized type if any layer has one
    void get_all(ggml_type & type_k, ggml_type & type_v) const;

    // while it lives, caches that are made in this thread have these types
    struct scope {
        explicit scope(const llama_context_params & params);
        ~scope();
    };

  private:
    std::vector<std::pair<ggml_type, ggml_type>> layers;

    const std::pair<ggml_type, ggml_type> other;
};

// whether a context of the model can have them, says why not; turns flash attention on where a quantized V needs it
bool llama_kv_layer_types_check(const llama_model & model, llama_context_params & params);
