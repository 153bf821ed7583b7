#include "llama-kv-center.h"

#include "ggml-backend.h"
#include "llama-context.h"
#include "llama-cparams.h"
#include "llama-impl.h"
#include "llama-kv-cache.h"
#include "llama-memory.h"
#include "llama-model.h"

#include <algorithm>
#include <stdexcept>

static constexpr uint32_t KV_CENTER_MAGIC    = 0x4b564354;  // no number of streams
static constexpr uint32_t KV_CENTER_TOKENS[] = { 32, 128 };
static constexpr uint32_t KV_CENTER_FIRST    = 4;           // K of the first tokens are unlike all others

llama_kv_center::llama_kv_center(size_t n_layer) : n_layer(n_layer) {}

void llama_kv_center::add_layer(uint32_t il, ggml_backend_buffer_type_t buft, int64_t n_embd_head, int64_t n_head_kv) {
    auto & ctx = ctxs[buft];
    if (!ctx) {
        ggml_init_params params = {
            /*.mem_size   =*/n_layer * ggml_tensor_overhead(),
            /*.mem_buffer =*/NULL,
            /*.no_alloc   =*/true,
        };
        ctx.reset(ggml_init(params));
        if (!ctx) {
            throw std::runtime_error("failed to create ggml context for the centers of K");
        }
    }

    ggml_tensor * t = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n_embd_head, n_head_kv);
    ggml_format_name(t, "cache_center_k_l%d", il);
    layers.push_back(t);
}

void llama_kv_center::alloc(bool no_alloc) {
    for (auto & [buft, ctx] : ctxs) {
        ggml_backend_buffer_t buf;
        if (no_alloc) {
            buf = ggml_backend_buft_alloc_buffer(buft, /*size =*/0);  // dummy buffer
            for (ggml_tensor * t = ggml_get_first_tensor(ctx.get()); t; t = ggml_get_next_tensor(ctx.get(), t)) {
                t->buffer = buf;
            }
        } else {
            buf = ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), buft);
        }
        if (!buf) {
            throw std::runtime_error("failed to allocate buffer for the centers of K");
        }
        ggml_backend_buffer_clear(buf, 0);
        ctxs_bufs.emplace_back(std::move(ctx), buf);
    }
    ctxs.clear();
}

void llama_kv_center::add_memory(std::map<ggml_backend_buffer_type_t, size_t> & res) const {
    for (const auto & [ctx, buf] : ctxs_bufs) {
        ggml_backend_buffer_type_t buft = ggml_backend_buffer_get_type(buf.get());
        res[buft] += ggml_backend_buffer_get_size(buf.get());
    }
}

void llama_kv_center::add_mean(size_t ikv, const ggml_tensor * k, uint32_t first, uint32_t last) {
    GGML_ASSERT(first < last && last <= k->ne[1]);

    ggml_tensor * t = layers[ikv];
    const size_t  n = ggml_nelements(t);
    GGML_ASSERT((size_t) k->ne[0] == n);

    std::vector<uint8_t> bytes(k->nb[1]);
    std::vector<float>   row(n);
    std::vector<double>  sum(n, 0.0);
    for (uint32_t i = first; i < last; ++i) {
        ggml_backend_tensor_get(k, bytes.data(), i * k->nb[1], bytes.size());
        ggml_get_type_traits(k->type)->to_float(bytes.data(), row.data(), n);
        for (size_t j = 0; j < n; ++j) {
            sum[j] += row[j];
        }
    }

    ggml_backend_tensor_get(t, row.data(), 0, n * sizeof(float));
    for (size_t j = 0; j < n; ++j) {
        row[j] += (float) (sum[j] / (last - first));
    }
    ggml_backend_tensor_set(t, row.data(), 0, n * sizeof(float));
}

void llama_kv_center::state_write(llama_io_write_i & io) const {
    const uint32_t head[2] = { KV_CENTER_MAGIC, (uint32_t) layers.size() };
    io.write(head, sizeof(head));
    for (ggml_tensor * t : layers) {
        io.write_tensor(t, 0, ggml_nbytes(t));
    }
}

uint32_t llama_kv_center::state_read(llama_io_read_i & io, llama_kv_center * center, bool empty, uint32_t next) {
    const bool saved = next == KV_CENTER_MAGIC;
    if (saved != (center != nullptr)) {
        throw std::runtime_error(format("the state was saved %s --kv-center, this context is %s it",
                                        saved ? "with" : "without", center ? "with" : "without"));
    }
    if (!center) {
        return next;
    }

    uint32_t n_layer;
    io.read(&n_layer, sizeof(n_layer));
    if (n_layer != center->layers.size()) {
        throw std::runtime_error("the state is of another model: its number of layers differs");
    }
    for (ggml_tensor * t : center->layers) {
        std::vector<uint8_t> theirs(ggml_nbytes(t));
        std::vector<uint8_t> ours(ggml_nbytes(t));
        io.read(theirs.data(), theirs.size());
        ggml_backend_tensor_get(t, ours.data(), 0, ours.size());
        if (theirs == ours) {
            continue;
        }
        if (!empty) {
            throw std::runtime_error(
                "the state was saved with other centers of K (--kv-center: another context size or another machine), "
                "clear the memory before it is restored");
        }
        ggml_backend_tensor_set(t, theirs.data(), 0, theirs.size());
    }
    io.read(&next, sizeof(next));
    return next;
}

//
// llama_kv_cache, what of it is about the vectors
//

bool llama_kv_cache::init_center() {
    // scores that meet more than a softmax over the same tokens would notice: a soft cap, or a sink with a score of its own
    bool exact = !hparams.attn_soft_cap && model.arch != LLM_ARCH_GROK && !hparams.is_mla() &&
                 hparams.n_rel_attn_bkts == 0 && model.arch != LLM_ARCH_DFLASH;
    for (const auto & layer : layers) {
        exact = exact && !model.layers[layer.il].attn_sinks;
    }
    if (!exact || !attn_rot_k || other || layers.empty() || model.split_mode() == LLAMA_SPLIT_MODE_TENSOR) {
        LLAMA_LOG_WARN(
            "%s: no centers of K: not with this model's attention, with -sm tensor, or with a K that is not quantized "
            "or not rotated\n",
            __func__);
        return false;
    }

    center = std::make_unique<llama_kv_center>(layers.size());

    for (const auto & layer : layers) {
        center->add_layer(layer.il, ggml_backend_buffer_get_type(layer.k->buffer), hparams.n_embd_head_k(layer.il),
                          hparams.n_head_kv(layer.il));
    }

    center->alloc(hparams.no_alloc);
    return true;
}

void llama_kv_cache::measure_center(uint32_t first, uint32_t last) {
    for (size_t ikv = 0; center && ikv < layers.size(); ++ikv) {
        center->add_mean(ikv, layers[ikv].k, first, std::min(last, get_size()));
    }
}

bool llama_kv_center_wanted(const llama_context_params & params) {
    const bool is_ftq =
        params.type_k == GGML_TYPE_FTQ4 || params.type_k == GGML_TYPE_FTQ3 || params.type_k == GGML_TYPE_FTQ2;
    return params.kv_center > 0 || (params.kv_center < 0 && is_ftq);
}

void llama_kv_center_measure(llama_context * ctx, llama_cparams & cparams) {
    const llama_model & model  = ctx->get_model();
    const llama_vocab * vocab  = llama_model_get_vocab(&model);
    llama_memory_t      mem    = ctx->get_memory();
    const uint32_t      n_ctx  = llama_n_ctx_seq(ctx);
    const uint32_t      n_max  = std::min(KV_CENTER_TOKENS[1], n_ctx);
    const uint32_t      n_step = llama_n_ubatch(ctx);  // more at once only with causal attention
    const int32_t       n_voc  = llama_vocab_n_tokens(vocab);
    const bool          named  = llama_vocab_type(vocab) != LLAMA_VOCAB_TYPE_NONE;
    const int64_t       t_from = ggml_time_us();

    if (n_max <= KV_CENTER_FIRST) {
        return;
    }

    std::vector<llama_token> tokens;
    if (named && llama_vocab_get_add_bos(vocab)) {
        tokens.push_back(llama_vocab_bos(vocab));
    }
    for (uint32_t x = 1; tokens.size() < n_max;) {
        x = x * 1664525u + 1013904223u;  // Numerical Recipes' generator: the same tokens everywhere
        const llama_token token = (llama_token) ((x >> 8) % (uint32_t) n_voc);
        // not forever: a vocabulary may be of nothing else
        if (!named || !llama_vocab_is_control(vocab, token) || x % 16 == 0) {
            tokens.push_back(token);
        }
    }

    // nobody else's tokens
    const ggml_backend_sched_eval_callback cb_eval = cparams.cb_eval;
    cparams.cb_eval                                = nullptr;

    // few tokens tell most of it; the second time what is stored is less the vectors of the first, and its error is smaller
    for (const uint32_t want : KV_CENTER_TOKENS) {
        const uint32_t n = std::min(want, n_max);
        for (uint32_t i = 0; i < n; i += n_step) {
            const int32_t status =
                llama_decode(ctx, llama_batch_get_one(tokens.data() + i, (int32_t) std::min(n_step, n - i)));
            if (status != 0) {
                throw std::runtime_error(format("failed to decode the tokens for the centers of K (%d)", status));
            }
        }
        if (llama_memory_can_shift(mem)) {
            for (uint32_t j = n - 1; j > 0; --j) {
                const llama_pos to = (llama_pos) ((uint64_t) j * n_ctx / n);
                llama_memory_seq_add(mem, 0, (llama_pos) j, (llama_pos) j + 1, to - (llama_pos) j);
            }
            ctx->memory_update(false);
        }
        ctx->synchronize();
        for (llama_kv_cache * kv : mem->get_kv_caches()) {
            kv->measure_center(KV_CENTER_FIRST, n);
        }
        llama_memory_clear(mem, true);
    }
    cparams.cb_eval = cb_eval;
    ctx->perf_reset();

    LLAMA_LOG_INFO("%s: centers of K from %u tokens in %.2f s\n", __func__, n_max, (ggml_time_us() - t_from) / 1e6);
}
