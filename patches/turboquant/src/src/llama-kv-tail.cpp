#include "llama-kv-tail.h"

#include "ggml-backend.h"
#include "llama-hparams.h"
#include "llama-impl.h"

#if __has_include("ggml-numa-mirror.h")
#    include "ggml-numa-mirror.h"
#    define LLAMA_KV_TAIL_NUMA
#endif

#include <algorithm>
#include <cassert>
#include <limits>
#include <stdexcept>

llama_kv_tail::llama_kv_tail(uint32_t n_tail,
                             uint32_t n_sink,
                             uint32_t n_stream,
                             uint32_t n_seq_max,
                             uint32_t n_batch,
                             uint32_t n_cells,
                             size_t   n_layer) :
    n_tail(n_tail),
    n_sink(n_sink),
    n_stream(n_stream),
    n_seq_max(n_seq_max),
    n_layer(n_layer) {
    const uint32_t n_seq = n_stream == 1 ? n_seq_max : 1;  // of one stream

    // room for what is kept of every sequence and for the tokens that are being added
    const uint64_t want = (uint64_t) n_seq * ((uint64_t) n_tail + n_sink) + n_batch;

    size = (uint32_t) std::min<uint64_t>(n_cells, GGML_PAD(want, 64));

    streams.resize(n_stream);
    for (auto & s : streams) {
        s.cells.resize(size, -1);
        s.slots.resize(n_cells, -1);
    }
}

void llama_kv_tail::add_layer(uint32_t il, ggml_backend_buffer_type_t buft, int64_t n_embd_k, int64_t n_embd_v) {
    auto & ctx = ctxs[buft];
    if (!ctx) {
        ggml_init_params params = {
            /*.mem_size   =*/2 * (1 + n_stream) * n_layer * ggml_tensor_overhead(),
            /*.mem_buffer =*/NULL,
            /*.no_alloc   =*/true,
        };
        ctx.reset(ggml_init(params));
        if (!ctx) {
            throw std::runtime_error("failed to create ggml context for the precision tail");
        }
    }

    layer l = { il, nullptr, nullptr, {}, {}, false };

    l.k = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F16, n_embd_k, size, n_stream);
    l.v = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F16, n_embd_v, size, n_stream);

    ggml_format_name(l.k, "cache_tail_k_l%d", il);
    ggml_format_name(l.v, "cache_tail_v_l%d", il);

    for (uint32_t s = 0; s < n_stream; ++s) {
        l.k_stream.push_back(ggml_view_2d(ctx.get(), l.k, n_embd_k, size, l.k->nb[1], s * l.k->nb[2]));
        l.v_stream.push_back(ggml_view_2d(ctx.get(), l.v, n_embd_v, size, l.v->nb[1], s * l.v->nb[2]));
    }

    layers.push_back(l);
}

void llama_kv_tail::alloc(bool no_alloc) {
    for (auto & [buft, ctx] : ctxs) {
        ggml_backend_buffer_t buf;
        if (no_alloc) {
            buf = ggml_backend_buft_alloc_buffer(buft, /*size =*/0);  // dummy buffer
            for (ggml_tensor * t = ggml_get_first_tensor(ctx.get()); t != nullptr;
                 t               = ggml_get_next_tensor(ctx.get(), t)) {
                t->buffer = buf;
            }
        } else {
            buf = ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), buft);
        }
        if (!buf) {
            throw std::runtime_error("failed to allocate buffer for the precision tail");
        }

        ctxs_bufs.emplace_back(std::move(ctx), buf);

        LLAMA_LOG_INFO("%s: %10s KV tail buffer size = %8.2f MiB (%u tokens, %u sinks: %u slots, %u streams)\n",
                       __func__, ggml_backend_buffer_name(buf), ggml_backend_buffer_get_size(buf) / 1024.0 / 1024.0,
                       n_tail, n_sink, size, n_stream);

        ggml_backend_buffer_clear(buf, 0);
#ifdef LLAMA_KV_TAIL_NUMA
        if (!ggml_numa_mirror_buffer(buf, GGML_NUMA_MIRROR_KV, nullptr)) {
            throw std::runtime_error(ggml_numa_mirror_error());
        }
#endif
    }

    ctxs.clear();
}

void llama_kv_tail::add_memory(std::map<ggml_backend_buffer_type_t, size_t> & res) const {
    for (const auto & [ctx, buf] : ctxs_bufs) {
        ggml_backend_buffer_type_t buft = ggml_backend_buffer_get_type(buf.get());

        const size_t used = ggml_backend_buffer_get_size(buf.get());

        res[buft] += used > 0 ? used : ggml_backend_alloc_ctx_tensors_from_buft_size(ctx.get(), buft);
    }
}

void llama_kv_tail::find_fused(const llama_hparams & hparams, ggml_type type_k, ggml_type type_v) {
    for (auto & l : layers) {
        // host memory belongs to the CPU
        ggml_backend_dev_t dev = ggml_backend_buft_get_device(ggml_backend_buffer_get_type(l.k->buffer));
        if (!dev) {
            dev = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
        }

        ggml_init_params params = {
            /*.mem_size   =*/16 * ggml_tensor_overhead(),
            /*.mem_buffer =*/NULL,
            /*.no_alloc   =*/true,
        };
        ggml_context_ptr ctx{ ggml_init(params) };

        const int64_t n_embd_k = hparams.n_embd_head_k(l.il);
        const int64_t n_embd_v = hparams.n_embd_head_v(l.il);
        const int64_t n_head   = hparams.n_head(l.il);
        const int64_t n_head_k = hparams.n_head_kv(l.il);

        ggml_tensor * op =
            ggml_flash_attn_pair(ctx.get(), ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, n_embd_k, 1, n_head),
                                 ggml_new_tensor_3d(ctx.get(), type_k, n_embd_k, 256, n_head_k),
                                 ggml_new_tensor_3d(ctx.get(), type_v, n_embd_v, 256, n_head_k),
                                 ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F16, n_embd_k, 256, n_head_k),
                                 ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F16, n_embd_v, 256, n_head_k),
                                 ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F16, 512, 1), nullptr, 1.0f, 0.0f, 0.0f);

        l.fused = dev && ggml_backend_dev_supports_op(dev, op);

        if (dev && !l.fused && &l == &layers[0]) {
            LLAMA_LOG_WARN(
                "%s: %s has no attention with a precision tail in one kernel: each token converts the whole cache to "
                "f32, which is slow\n",
                __func__, ggml_backend_dev_name(dev));
        }
    }
}

uint32_t llama_kv_tail::get_n_used(uint32_t strm) const {
    const auto & cells = streams[strm].cells;

    uint32_t n = size;
    while (n > 0 && cells[n - 1] < 0) {
        --n;
    }

    return n;
}

uint32_t llama_kv_tail::get_slot(uint32_t strm, uint32_t cell) const {
    const int32_t slot = streams[strm].slots[cell];

    GGML_ASSERT(slot >= 0);

    return slot;
}

void llama_kv_tail::clear(bool data) {
    for (auto & s : streams) {
        std::fill(s.cells.begin(), s.cells.end(), -1);
        std::fill(s.slots.begin(), s.slots.end(), -1);
    }

    if (data) {
        for (auto & [_, buf] : ctxs_bufs) {
            ggml_backend_buffer_clear(buf.get(), 0);
        }
    }
}

void llama_kv_tail::forget(uint32_t strm, const std::vector<uint32_t> & idxs) {
    auto & s = streams[strm];

    for (const uint32_t cell : idxs) {
        if (s.slots[cell] >= 0) {
            s.cells[s.slots[cell]] = -1;
            s.slots[cell]          = -1;
        }
    }
}

void llama_kv_tail::place(uint32_t strm, const llama_kv_cells & cells, const std::vector<uint32_t> & idxs) {
    GGML_ASSERT(idxs.size() <= size);

    auto & s = streams[strm];

    forget(strm, idxs);

    // the next query of each sequence: its first one among these tokens, else the one after its last token
    std::vector<llama_pos> next(n_seq_max);
    for (uint32_t seq = 0; seq < n_seq_max; ++seq) {
        next[seq] = cells.seq_pos_max(seq) + 1;
    }
    for (const uint32_t cell : idxs) {
        for (uint32_t seq = 0; seq < n_seq_max; ++seq) {
            if (cells.seq_has(cell, seq)) {
                next[seq] = std::min(next[seq], cells.pos_get(cell));
            }
        }
    }

    // what it costs to lose a slot: nothing, a token that is no longer near, one that is, a sink; of each the oldest first
    struct candidate {
        int      rank;
        int64_t  age;
        uint32_t slot;

        bool operator<(const candidate & o) const {
            return rank != o.rank ? rank < o.rank : age != o.age ? age > o.age : slot < o.slot;
        }
    };

    std::vector<candidate> cands;
    cands.reserve(size);

    for (uint32_t i = 0; i < size; ++i) {
        const int32_t cell = s.cells[i];

        candidate c = { 0, 0, i };

        if (cell >= 0 && !cells.is_empty(cell)) {
            const llama_pos pos = cells.pos_get(cell);

            c.rank = 1;
            c.age  = std::numeric_limits<int64_t>::max();

            for (uint32_t seq = 0; seq < n_seq_max; ++seq) {
                if (cells.seq_has(cell, seq)) {
                    c.age = std::min<int64_t>(c.age, (int64_t) next[seq] - pos);
                    if (is_near(pos, next[seq])) {
                        c.rank = 2;
                    }
                }
            }

            if (c.rank == 2 && pos < (int64_t) n_sink) {
                c.rank = 3;
            }
        }

        cands.push_back(c);
    }

    std::partial_sort(cands.begin(), cands.begin() + idxs.size(), cands.end());

    for (size_t i = 0; i < idxs.size(); ++i) {
        const uint32_t slot = cands[i].slot;

        if (s.cells[slot] >= 0) {
            s.slots[s.cells[slot]] = -1;
        }

        s.cells[slot]    = idxs[i];
        s.slots[idxs[i]] = slot;
    }
}

void llama_kv_tail::copy_slots(uint32_t ssrc, uint32_t sdst) {
    streams[sdst] = streams[ssrc];
}

void llama_kv_tail::copy_data(uint32_t ssrc, uint32_t sdst) const {
    for (const auto & l : layers) {
        ggml_backend_tensor_copy(l.k_stream[ssrc], l.k_stream[sdst]);
        ggml_backend_tensor_copy(l.v_stream[ssrc], l.v_stream[sdst]);
    }
}

// no cache has as many streams
static const uint32_t KV_TAIL_MAGIC = 0xffff7a11;

void llama_kv_tail::state_write_head(llama_io_write_i & io) const {
    for (const uint32_t x : { KV_TAIL_MAGIC, n_tail, n_sink }) {
        io.write(&x, sizeof(x));
    }
}

uint32_t llama_kv_tail::state_read_head(llama_io_read_i & io, const llama_kv_tail * tail) {
    uint32_t n_stream;
    io.read(&n_stream, sizeof(n_stream));

    uint32_t opts[2] = { 0, 0 };

    if (n_stream == KV_TAIL_MAGIC) {
        io.read(opts, sizeof(opts));
        io.read(&n_stream, sizeof(n_stream));
    }

    const uint32_t n_tail = tail ? tail->n_tail : 0;
    const uint32_t n_sink = tail ? tail->n_sink : 0;

    if (opts[0] != n_tail || opts[1] != n_sink) {
        throw std::runtime_error(
            format("the state was saved with --kv-tail-tokens %u --kv-sink-tokens %u, this context has %u and %u",
                   opts[0], opts[1], n_tail, n_sink));
    }

    return n_stream;
}

// calls f(first, n) for each run of slots that follow one another
template <typename F> static void for_each_run(const std::vector<uint32_t> & slots, F f) {
    for (size_t i = 0; i < slots.size();) {
        size_t n = 1;
        while (i + n < slots.size() && slots[i + n] == slots[i] + n) {
            ++n;
        }
        f(slots[i], n);
        i += n;
    }
}

void llama_kv_tail::state_write(llama_io_write_i &            io,
                                uint32_t                      strm,
                                const llama_kv_cells &        cells,
                                const std::vector<uint32_t> & idxs) const {
    const auto & s = streams[strm];

    // only what the next query of a sequence sees: that fits into any cache with the same options
    std::vector<uint32_t> saved;
    for (uint32_t i = 0; i < idxs.size(); ++i) {
        if (s.slots[idxs[i]] < 0) {
            continue;
        }
        for (uint32_t seq = 0; seq < n_seq_max; ++seq) {
            if (cells.seq_has(idxs[i], seq) && is_near(cells.pos_get(idxs[i]), cells.seq_pos_max(seq) + 1)) {
                saved.push_back(i);
                break;
            }
        }
    }

    const uint32_t n_saved = saved.size();

    io.write(&n_saved, sizeof(n_saved));
    io.write(saved.data(), n_saved * sizeof(saved[0]));

    for (auto & i : saved) {
        i = get_slot(strm, idxs[i]);
    }

    for (const auto & l : layers) {
        for (auto * t : { l.k_stream[strm], l.v_stream[strm] }) {
            for_each_run(saved, [&](size_t slot, size_t n) { io.write_tensor(t, slot * t->nb[1], n * t->nb[1]); });
        }
    }
}

void llama_kv_tail::state_read(llama_io_read_i &             io,
                               uint32_t                      strm,
                               const llama_kv_cells &        cells,
                               const std::vector<uint32_t> & idxs) {
    uint32_t n_saved;
    io.read(&n_saved, sizeof(n_saved));

    if (n_saved > idxs.size() || n_saved > size) {
        throw std::runtime_error("the precision tail of the state does not fit");
    }

    std::vector<uint32_t> saved(n_saved);
    io.read(saved.data(), n_saved * sizeof(saved[0]));

    for (auto & i : saved) {
        if (i >= idxs.size()) {
            throw std::runtime_error("the precision tail of the state names a token that is not in it");
        }
        i = idxs[i];
    }

    place(strm, cells, saved);

    for (auto & cell : saved) {
        cell = get_slot(strm, cell);
    }

    for (const auto & l : layers) {
        for (auto * t : { l.k_stream[strm], l.v_stream[strm] }) {
            for_each_run(saved, [&](size_t slot, size_t n) { io.read_tensor(t, slot * t->nb[1], n * t->nb[1]); });
        }
    }
}
