#include "llama-kv-tail.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"

#if __has_include("ggml-numa-mirror.h")
#    include "ggml-numa-mirror.h"
#    define LLAMA_KV_TAIL_NUMA
#endif

#include <cmath>
#include <stdexcept>
#include <string>

// the cells as llama_kv_tail_slots wants them
struct llama_kv_tail_cells {
    const std::vector<llama_kv_cell> & cells;

    bool      is_empty(uint32_t i) const { return cells[i].is_empty(); }
    llama_pos pos_get(uint32_t i) const { return cells[i].pos; }
    bool      seq_has(uint32_t i, llama_seq_id seq) const { return cells[i].has_seq_id(seq); }

    llama_pos seq_pos_max(llama_seq_id seq) const {
        llama_pos result = -1;
        for (const auto & cell : cells) {
            if (cell.pos > result && cell.has_seq_id(seq)) {
                result = cell.pos;
            }
        }
        return result;
    }
};

// why the context cannot have a tail, empty if it can
static std::string llama_kv_tail_refusal(const llama_context & lctx) {
    const auto & model = lctx.model;
    const auto & cache = lctx.kv_self;

    if (!model.hparams.causal_attn || llama_model_has_encoder(&model) || cache.recurrent) {
        return "do not work with the memory of this model";
    }
    if (cache.v_l.size() != cache.k_l.size()) {
        return "do not work with latent attention, -mla 0 turns it off";
    }
    for (const ggml_tensor * k : cache.k_l) {
        if (k && k->extra) {
            return "do not work with a model that is split within its layers (-sm graph, -sm attn)";
        }
        if (k && !ggml_backend_buffer_is_host(k->buffer)) {
            return "need the KV cache in host memory (--no-kv-offload)";
        }
    }
    if (!lctx.cparams.flash_attn) {
        return "need flash attention (-fa on)";
    }
    return "";
}

bool llama_kv_tail::init(llama_context & lctx, uint32_t n_tail, uint32_t n_sink) {
    const auto & hparams = lctx.model.hparams;
    const auto & cparams = lctx.cparams;

    auto & cache = lctx.kv_self;

    if (n_tail == 0 && n_sink == 0) {
        return true;
    }

    const std::string refusal = llama_kv_tail_refusal(lctx);
    if (!refusal.empty()) {
        LLAMA_LOG_ERROR("%s: --kv-tail-tokens and --kv-sink-tokens %s\n", __func__, refusal.c_str());
        return false;
    }

    bool quantized = false;
    for (size_t il = 0; il < cache.k_l.size(); ++il) {
        quantized = quantized || (cache.k_l[il] && (ggml_is_quantized(cache.k_l[il]->type) || ggml_is_quantized(cache.v_l[il]->type)));
    }
    if (!quantized) {
        LLAMA_LOG_INFO("%s: no precision tail, the cache is not quantized\n", __func__);
        return true;
    }

    // room for what is kept of every sequence and for the tokens that are being added
    const uint32_t n_seq_max = std::max(1u, cparams.n_seq_max);
    const uint64_t want      = (uint64_t) n_seq_max * ((uint64_t) n_tail + n_sink) + cparams.n_ubatch;
    const uint32_t size      = (uint32_t) std::min<uint64_t>(cache.size, GGML_PAD(want, 64));

    auto tail = std::make_unique<llama_kv_tail>();

    tail->slots.n_tail    = n_tail;
    tail->slots.n_sink    = n_sink;
    tail->slots.n_seq_max = n_seq_max;
    tail->slots.cells.resize(size, -1);
    tail->slots.slots.resize(cache.size, -1);

    ggml_init_params params = {
        /*.mem_size   =*/ 2*cache.k_l.size()*ggml_tensor_overhead(),
        /*.mem_buffer =*/ nullptr,
        /*.no_alloc   =*/ true,
    };
    ggml_context * ctx = ggml_init(params);
    if (!ctx) {
        LLAMA_LOG_ERROR("%s: failed to create ggml context for the precision tail\n", __func__);
        return false;
    }
    cache.ctxs.push_back(ctx);

    ggml_backend_buffer_type_t buft = nullptr;
    for (size_t il = 0; il < cache.k_l.size(); ++il) {
        layer l = { cache.k_l[il], nullptr, nullptr };
        if (l.k_cache) {
            buft = ggml_backend_buffer_get_type(l.k_cache->buffer);
            l.k  = ggml_new_tensor_2d(ctx, GGML_TYPE_F16, (int64_t) hparams.n_embd_head_k(il)*hparams.n_head_kv(il), size);
            l.v  = ggml_new_tensor_2d(ctx, GGML_TYPE_F16, (int64_t) hparams.n_embd_head_v(il)*hparams.n_head_kv(il), size);
            ggml_format_name(l.k, "cache_tail_k_l%d", (int) il);
            ggml_format_name(l.v, "cache_tail_v_l%d", (int) il);
        }
        tail->layers.push_back(l);
    }

    ggml_backend_buffer_t buf = ggml_backend_alloc_ctx_tensors_from_buft(ctx, buft);
    if (!buf) {
        LLAMA_LOG_ERROR("%s: failed to allocate buffer for the precision tail\n", __func__);
        return false;
    }
    cache.bufs.push_back(buf);

    LLAMA_LOG_INFO("%s: %10s KV tail buffer size = %8.2f MiB (%u tokens, %u sinks: %u slots, 1 streams)\n", __func__,
            ggml_backend_buffer_name(buf), ggml_backend_buffer_get_size(buf)/1024.0/1024.0, n_tail, n_sink, size);

    ggml_backend_buffer_clear(buf, 0);
#ifdef LLAMA_KV_TAIL_NUMA
    if (!ggml_numa_mirror_buffer(buf, GGML_NUMA_MIRROR_KV, ctx)) {
        LLAMA_LOG_ERROR("%s: %s\n", __func__, ggml_numa_mirror_error());
        return false;
    }
#else
    GGML_UNUSED(ctx);
#endif

    cache.tail = std::move(tail);
    return true;
}

void llama_kv_tail::begin_graph() {
    inp_slots = nullptr;
    inp_shift = nullptr;
    inp_masks.clear();
}

void llama_kv_tail::build_store(ggml_context * ctx, ggml_cgraph * gf, ggml_tensor * k_cur, ggml_tensor * v_cur, int il) {
    const layer & l = layers[il];

    for (auto [cur, t] : { std::make_pair(k_cur, l.k), std::make_pair(v_cur, l.v) }) {
        if (!cur) {
            continue;
        }
        const int64_t n_tokens = ggml_nelements(cur)/t->ne[0];

        if (!inp_slots) {
            inp_slots = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, n_tokens);
            ggml_set_name(inp_slots, "KV_tail_slots");
            ggml_set_input(inp_slots);
        }
        if (!ggml_is_contiguous(cur)) {
            cur = ggml_cont(ctx, cur);
        }
        ggml_build_forward_expand(gf, ggml_set_rows(ctx, t, ggml_reshape_2d(ctx, cur, t->ne[0], n_tokens), inp_slots));
    }
}

void llama_kv_tail::build_attn(ggml_context * ctx, const llama_context & lctx, ggml_tensor * fa, const ggml_tensor * k_cache) {
    ggml_tensor * of_cells = fa->src[3];

    // others are not of the cache
    if (of_cells != lctx.inp_KQ_mask && of_cells != lctx.inp_KQ_mask_swa) {
        GGML_ASSERT(!of_cells->view_src);
        return;
    }

    ggml_tensor * of_slots = nullptr;
    for (const mask & m : inp_masks) {
        if (m.of_cells == of_cells) {
            of_slots = m.of_slots;
        }
    }
    if (!of_slots) {
        of_slots = ggml_new_tensor_2d(ctx, GGML_TYPE_F16, slots.cells.size(), of_cells->ne[1]);
        ggml_format_name(of_slots, "%s_tail", of_cells->name);
        ggml_set_input(of_slots);
        inp_masks.push_back({ of_cells, of_slots });
    }

    for (const layer & l : layers) {
        if (l.k_cache != k_cache) {
            continue;
        }
        auto view = [&](ggml_tensor * t, const ggml_tensor * like) {
            const size_t row = ggml_row_size(t->type, like->ne[0]);
            return ggml_view_3d(ctx, t, like->ne[0], t->ne[1], like->ne[2], t->nb[1], row, 0);
        };
        ggml_flash_attn_ext_add_pair(fa, view(l.k, fa->src[1]), view(l.v, fa->src[2]), of_slots);
        return;
    }

    GGML_ABORT("attention over a cache without a tail");
}

void llama_kv_tail::build_shift(ggml_context *                                              ctx,
                                ggml_cgraph *                                               gf,
                                int                                                         il,
                                bool                                                        hadamard,
                                std::function<ggml_tensor *(ggml_tensor *, ggml_tensor *)> rope) {
    ggml_tensor * t = layers[il].k;

    if (!inp_shift) {
        inp_shift = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, t->ne[1]);
        ggml_set_name(inp_shift, "KV_tail_shift");
        ggml_set_input(inp_shift);
    }

    const int64_t n_head      = layers[il].k_cache->ne[1]/(int64_t) slots.slots.size();
    const int64_t n_embd_head = layers[il].k_cache->ne[0];

    ggml_tensor * k   = ggml_reshape_3d(ctx, t, n_embd_head, n_head, t->ne[1]);
    ggml_tensor * cur = ggml_cast(ctx, k, GGML_TYPE_F32);
    if (hadamard) {
        cur = ggml_hadamard(ctx, cur, n_embd_head); // its own inverse
    }
    cur = rope(cur, inp_shift);
    if (hadamard) {
        cur = ggml_hadamard(ctx, cur, n_embd_head);
    }
    ggml_build_forward_expand(gf, ggml_cpy(ctx, cur, k));
}

void llama_kv_tail::set_inputs(const llama_context & lctx, const llama_batch & batch) {
    const auto & cache = lctx.kv_self;

    if (inp_slots && inp_slots->buffer) {
        int64_t * data = (int64_t *) inp_slots->data;
        for (int64_t i = 0; i < inp_slots->ne[0]; ++i) {
            data[i] = slots.slots[cache.head + i];
        }
    }

    const ggml_fp16_t drop = ggml_fp32_to_fp16(-INFINITY);
    for (const mask & m : inp_masks) {
        const int64_t n_kv    = m.of_cells->ne[0];
        const int64_t n_slots = m.of_slots->ne[0];

        ggml_fp16_t * of_cells = (ggml_fp16_t *) m.of_cells->data;
        ggml_fp16_t * of_slots = (ggml_fp16_t *) m.of_slots->data;

        std::fill(of_slots, of_slots + ggml_nelements(m.of_slots), drop);
        // without causal attention a batch sees itself in the cache
        for (int64_t i = 0; lctx.cparams.causal_attn && i < batch.n_tokens; ++i) {
            slots.split_mask(of_cells + i*n_kv, n_kv, of_slots + i*n_slots, n_slots, drop, llama_kv_tail_cells{ cache.cells }, batch.pos[i]);
        }
    }
}

void llama_kv_tail::set_shift(const std::vector<llama_kv_cell> & cells) {
    int32_t * data = (int32_t *) inp_shift->data;
    for (size_t i = 0; i < slots.cells.size(); ++i) {
        data[i] = slots.cells[i] < 0 ? 0 : cells[slots.cells[i]].delta;
    }
}

void llama_kv_tail::place(const std::vector<llama_kv_cell> & cells, uint32_t head, uint32_t n) {
    std::vector<uint32_t> idxs(n);
    for (uint32_t i = 0; i < n; ++i) {
        idxs[i] = head + i;
    }
    slots.place(llama_kv_tail_cells{ cells }, idxs);
}

void llama_kv_tail::forget(uint32_t head, uint32_t n) {
    for (uint32_t i = 0; i < n; ++i) {
        slots.forget(head + i);
    }
}

void llama_kv_tail::move(const std::vector<uint32_t> & ids) {
    for (uint32_t i = 0; i < ids.size(); ++i) {
        if (ids[i] == i || ids[i] >= ids.size()) {
            continue;
        }
        const int32_t slot = slots.slots[i];
        slots.forget(i);
        slots.forget(ids[i]);
        if (slot >= 0) {
            slots.cells[slot]   = ids[i];
            slots.slots[ids[i]] = slot;
        }
    }
}

void llama_kv_tail::check_options(const llama_kv_tail * tail, const uint32_t * opts) {
    const uint32_t n_tail = tail ? tail->slots.n_tail : 0;
    const uint32_t n_sink = tail ? tail->slots.n_sink : 0;

    if (opts[0] != n_tail || opts[1] != n_sink) {
        throw std::runtime_error("the state was saved with --kv-tail-tokens " + std::to_string(opts[0]) + " --kv-sink-tokens " +
                                 std::to_string(opts[1]) + ", this context has " + std::to_string(n_tail) + " and " +
                                 std::to_string(n_sink));
    }
}

std::vector<uint32_t> llama_kv_tail::needed(const std::vector<llama_kv_cell> &                 cells,
                                            const std::vector<std::pair<uint32_t, uint32_t>> & ranges,
                                            std::vector<uint32_t> &                            idxs) const {
    for (const auto & range : ranges) {
        for (uint32_t i = range.first; i < range.second; ++i) {
            idxs.push_back(i);
        }
    }
    return slots.needed(llama_kv_tail_cells{ cells }, idxs);
}

void llama_kv_tail::restore(const std::vector<llama_kv_cell> & cells,
                            std::vector<uint32_t> &            saved,
                            uint32_t                           n_saved,
                            uint32_t                           head,
                            uint32_t                           n) {
    if (n_saved > n || n_saved > slots.cells.size()) {
        throw std::runtime_error("the precision tail of the state does not fit");
    }
    for (auto & i : saved) {
        if (i >= n) {
            throw std::runtime_error("the precision tail of the state names a token that is not in it");
        }
        i += head;
    }
    slots.place(llama_kv_tail_cells{ cells }, saved);
}
