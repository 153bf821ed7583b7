#include "llama-kv-layer-types.h"

#include "llama-impl.h"
#include "llama-model.h"

#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>

static const ggml_type kv_types[] = {
    GGML_TYPE_F32,  GGML_TYPE_F16,  GGML_TYPE_BF16,   GGML_TYPE_Q8_0, GGML_TYPE_Q5_1, GGML_TYPE_Q5_0,
    GGML_TYPE_Q4_1, GGML_TYPE_Q4_0, GGML_TYPE_IQ4_NL, GGML_TYPE_FTQ4, GGML_TYPE_FTQ3, GGML_TYPE_FTQ2,
};

static ggml_type kv_type_from(const std::string & name, const std::string & entry) {
    std::string all;
    for (const ggml_type type : kv_types) {
        if (name == ggml_type_name(type)) {
            return type;
        }
        all += std::string(all.empty() ? "" : ", ") + ggml_type_name(type);
    }
    throw std::runtime_error(
        format("--cache-type-layers: there is no type '%s' ('%s'), only %s", name.c_str(), entry.c_str(), all.c_str()));
}

static bool number_from(const std::string & text, uint32_t & res) {
    if (text.empty() || text.size() > 6 || text.find_first_not_of("0123456789") != std::string::npos) {
        return false;
    }
    res = (uint32_t) std::stoul(text);
    return true;
}

// the layers [first, last] that an entry names
static void layers_from(const std::string & text,
                        const std::string & entry,
                        uint32_t            n_layer,
                        uint32_t &          first,
                        uint32_t &          last) {
    const size_t dash = text.find('-');

    uint32_t n = 0;
    bool     ok;
    if (text.rfind("first", 0) == 0) {
        ok    = number_from(text.substr(5), n) && n > 0;
        first = 0;
        last  = n - 1;
    } else if (text.rfind("last", 0) == 0) {
        ok    = number_from(text.substr(4), n) && n > 0;
        first = n > n_layer ? n_layer : n_layer - n;
        last  = n_layer - 1;
    } else if (dash != std::string::npos) {
        ok = number_from(text.substr(0, dash), first) && number_from(text.substr(dash + 1), last) && first <= last;
    } else {
        ok   = number_from(text, first);
        last = first;
    }
    if (!ok) {
        throw std::runtime_error(format(
            "--cache-type-layers: '%s' is not LAYERS=K or LAYERS=K/V, with layers such as 5, 5-7, first2 or last2",
            entry.c_str()));
    }
    if (first >= n_layer || last >= n_layer) {
        throw std::runtime_error(
            format("--cache-type-layers: '%s' names layers that are not there, the model has 0 to %u", entry.c_str(),
                   n_layer - 1));
    }
}

llama_kv_layer_types::llama_kv_layer_types(const char * types, uint32_t n_layer, ggml_type type_k, ggml_type type_v) :
    other(type_k, type_v) {
    if (!types || !*types) {
        return;
    }
    layers.assign(n_layer, other);

    std::stringstream all(types);
    std::string       entry;
    while (std::getline(all, entry, ',')) {
        const size_t      equals = entry.find('=');
        const std::string which  = entry.substr(0, equals);
        const std::string what   = equals == std::string::npos ? "" : entry.substr(equals + 1);
        const size_t      slash  = what.find('/');

        uint32_t first = 0;
        uint32_t last  = 0;
        layers_from(equals == std::string::npos ? "" : which, entry, n_layer, first, last);

        const ggml_type k = kv_type_from(what.substr(0, slash), entry);
        const ggml_type v = slash == std::string::npos ? k : kv_type_from(what.substr(slash + 1), entry);
        for (uint32_t il = first; il <= last; ++il) {
            layers[il] = { k, v };
        }
    }
}

static thread_local const char * kv_layer_types_now = nullptr;

llama_kv_layer_types::scope::scope(const llama_context_params & params) {
    kv_layer_types_now = params.kv_layer_types;
}

llama_kv_layer_types::scope::~scope() {
    kv_layer_types_now = nullptr;
}

llama_kv_layer_types::llama_kv_layer_types(uint32_t n_layer, ggml_type type_k, ggml_type type_v) :
    llama_kv_layer_types(kv_layer_types_now, n_layer, type_k, type_v) {}

void llama_kv_layer_types::get(uint32_t il, ggml_type & type_k, ggml_type & type_v) const {
    std::tie(type_k, type_v) = il < layers.size() ? layers[il] : other;
}

void llama_kv_layer_types::get_all(ggml_type & type_k, ggml_type & type_v) const {
    std::tie(type_k, type_v) = other;
    for (const auto & [k, v] : layers) {
        type_k = !ggml_is_quantized(type_k) && ggml_is_quantized(k) ? k : type_k;
        type_v = !ggml_is_quantized(type_v) && ggml_is_quantized(v) ? v : type_v;
    }
}

bool llama_kv_layer_types_check(const llama_model & model, llama_context_params & params) {
    if (!params.kv_layer_types || !*params.kv_layer_types) {
        return true;
    }
    const auto & hparams = model.hparams;
    try {
        const llama_kv_layer_types types(params.kv_layer_types, hparams.n_layer(), params.type_k, params.type_v);

        if (hparams.is_mla() || model.arch == LLM_ARCH_DEEPSEEK4 || model.split_mode() == LLAMA_SPLIT_MODE_TENSOR) {
            throw std::runtime_error(format("--cache-type-layers does not work with %s",
                                            model.split_mode() == LLAMA_SPLIT_MODE_TENSOR ?
                                                "a model that is split within its layers (-sm tensor)" :
                                                "the attention of this model"));
        }
        for (uint32_t il = 0; il < hparams.n_layer(); ++il) {
            ggml_type type_k, type_v;
            types.get(il, type_k, type_v);
            if (!hparams.has_kv(il)) {
                continue;
            }
            if (hparams.n_embd_head_k(il) % ggml_blck_size(type_k) != 0 ||
                hparams.n_embd_head_v(il) % ggml_blck_size(type_v) != 0) {
                throw std::runtime_error(
                    format("--cache-type-layers: the heads of layer %u have K of %u and V of %u values, which are no "
                           "multiples of the blocks of %s and %s",
                           il, hparams.n_embd_head_k(il), hparams.n_embd_head_v(il), ggml_type_name(type_k),
                           ggml_type_name(type_v)));
            }
            if (ggml_is_quantized(type_v) && params.flash_attn_type == LLAMA_FLASH_ATTN_TYPE_DISABLED) {
                throw std::runtime_error("--cache-type-layers: a quantized V needs flash attention (-fa on)");
            }
            if (ggml_is_quantized(type_v)) {
                params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
            }
        }
    } catch (const std::runtime_error & err) {
        LLAMA_LOG_ERROR("%s: %s\n", __func__, err.what());
        return false;
    }
    return true;
}
