#include "llama-kv-types.h"

#include "ggml-cpp.h"
#include "llama-impl.h"

#include <stdexcept>

void llama_kv_require_set_rows(ggml_backend_dev_t dev, ggml_type type, int64_t n_embd) {
    if (!ggml_is_quantized(type) || ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_META) {
        return;
    }

    ggml_init_params params = {
        /*.mem_size   =*/4 * ggml_tensor_overhead(),
        /*.mem_buffer =*/NULL,
        /*.no_alloc   =*/true,
    };
    ggml_context_ptr ctx(ggml_init(params));

    ggml_tensor * cache = ggml_new_tensor_2d(ctx.get(), type, n_embd, 256);
    ggml_tensor * rows  = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n_embd, 1);
    ggml_tensor * idxs  = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I64, 1);

    if (!ggml_backend_dev_supports_op(dev, ggml_set_rows(ctx.get(), cache, rows, idxs))) {
        throw std::runtime_error(
            format("%s cannot write a KV cache of type %s, set another type (-ctk, -ctv) or keep the cache in host "
                   "memory (-nkvo)",
                   ggml_backend_dev_name(dev), ggml_type_name(type)));
    }
}
