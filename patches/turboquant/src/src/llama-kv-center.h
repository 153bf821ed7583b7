#pragma once

#include "ggml-cpp.h"
#include "llama-io.h"

#include <cstdint>
#include <map>
#include <vector>

struct llama_context;
struct llama_context_params;
struct llama_cparams;

//
// llama_kv_center
//

// vectors that all K of a layer are stored less of
//
// A softmax does not change if all its scores change by the same amount. So K may be stored less any vector that is the
// same for all tokens of a layer, and nothing has to be added to the attention. K of most models have a large part in
// common; what is left without it is smaller, and so is the error of a quantized type.
//
// The vectors are the mean K of tokens that do not depend on any text, turned to positions all over the context.
class llama_kv_center {
  public:
    explicit llama_kv_center(size_t n_layer);

    // vectors of zeros, as long as alloc() was called
    void add_layer(uint32_t il, ggml_backend_buffer_type_t buft, int64_t n_embd_head, int64_t n_head_kv);

    void alloc(bool no_alloc);

    void add_memory(std::map<ggml_backend_buffer_type_t, size_t> & res) const;

    // F32 [n_embd_head, n_head_kv]
    ggml_tensor * get(size_t ikv) const { return layers[ikv]; }

    // adds the mean of rows [first, last) of the K of a layer, which are stored less the vector of now
    void add_mean(size_t ikv, const ggml_tensor * k, uint32_t first, uint32_t last);

    //
    // a state is of use only with the vectors that it was saved with
    //

    void state_write(llama_io_write_i & io) const;

    // next: the number read last; if it begins what state_write() wrote, that is read, and the number after it is returned
    // empty: nothing is stored yet, so the vectors may become those of the state
    static uint32_t state_read(llama_io_read_i & io, llama_kv_center * center, bool empty, uint32_t next);

  private:
    std::map<ggml_backend_buffer_type_t, ggml_context_ptr> ctxs;

    std::vector<std::pair<ggml_context_ptr, ggml_backend_buffer_ptr>> ctxs_bufs;

    std::vector<ggml_tensor *> layers;

    const size_t n_layer;
};

// whether a context should have the vectors: by default where K have a type of few bits that is made for them
bool llama_kv_center_wanted(const llama_context_params & params);

// decodes some tokens, whose K the memory takes its vectors from, and forgets them
// cparams are those of ctx, and the same afterwards
void llama_kv_center_measure(llama_context * ctx, llama_cparams & cparams);
