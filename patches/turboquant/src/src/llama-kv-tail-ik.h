#pragma once

#include "ggml-backend.h"
#include "llama-kv-tail-slots.h"

#include <functional>
#include <memory>
#include <utility>

struct llama_batch;
struct llama_context;
struct llama_kv_cell;

//
// llama_kv_tail
//

// f16 copies of the newest n_tail tokens and of the tokens at the first n_sink positions of each sequence
//
// every token is in the KV cache; some of them are in a slot here as well, see llama_kv_tail_slots. Each query sees each
// token once: here if its position is among the newest n_tail or the first n_sink of that query and the token has a slot,
// else in the cache. The buffer belongs to the cache.
class llama_kv_tail {
  public:
    // gives the cache of the context a tail if it has use for one; false, and the reason in the log, if it cannot have one
    static bool init(llama_context & lctx, uint32_t n_tail, uint32_t n_sink);

    //
    // graphs: the copies that are written, the masks and the positions are inputs
    //

    void begin_graph();

    void build_store(ggml_context * ctx, ggml_cgraph * gf, ggml_tensor * k_cur, ggml_tensor * v_cur, int il);

    // let the attention fa over the cache tensor k_cache see the copies as well, if its mask is one of the context's
    void build_attn(ggml_context * ctx, const llama_context & lctx, ggml_tensor * fa, const ggml_tensor * k_cache);

    void build_shift(ggml_context *                                              ctx,
                     ggml_cgraph *                                               gf,
                     int                                                         il,
                     bool                                                        hadamard,
                     std::function<ggml_tensor *(ggml_tensor *, ggml_tensor *)> rope);

    // after the masks of the cells
    void set_inputs(const llama_context & lctx, const llama_batch & batch);
    void set_shift(const std::vector<llama_kv_cell> & cells);

    //
    // slots
    //

    void clear() { slots.clear(); }

    // the n cells from head on are a batch
    void place(const std::vector<llama_kv_cell> & cells, uint32_t head, uint32_t n);

    // cell i moves to ids[i], if that is another one and less than ids.size()
    void move(const std::vector<uint32_t> & ids);

    //
    // state: the cells are those of the saved ranges in their order, or the ones they are restored to
    //

    template <typename W> void state_write_head(W & io) const {
        for (const uint32_t x : { MAGIC, slots.n_tail, slots.n_sink }) {
            io.write(&x, sizeof(x));
        }
    }

    // the number of cells that follows; throws if the state was saved with other options
    template <typename R> static uint32_t state_read_head(R & io, const llama_kv_tail * tail) {
        uint32_t n_cells;
        io.read_to(&n_cells, sizeof(n_cells));

        uint32_t opts[2] = { 0, 0 };

        if (n_cells == MAGIC) {
            io.read_to(opts, sizeof(opts));
            io.read_to(&n_cells, sizeof(n_cells));
        }

        check_options(tail, opts);

        return n_cells;
    }

    template <typename W>
    void state_write(W &                                                io,
                     const std::vector<llama_kv_cell> &                 cells,
                     const std::vector<std::pair<uint32_t, uint32_t>> & ranges) const {
        std::vector<uint32_t>       idxs;
        const std::vector<uint32_t> saved   = needed(cells, ranges, idxs);
        const uint32_t              n_saved = saved.size();

        io.write(&n_saved, sizeof(n_saved));
        io.write(saved.data(), n_saved * sizeof(saved[0]));

        for (const auto & l : layers) {
            for (ggml_tensor * t : { l.k, l.v }) {
                for (uint32_t i = 0; t && i < n_saved; ++i) {
                    io.write_tensor_data(t, slots.slots[idxs[saved[i]]] * t->nb[1], t->nb[1], t->nb[1]);
                }
            }
        }
    }

    template <typename R>
    void state_read(R & io, const std::vector<llama_kv_cell> & cells, uint32_t head, uint32_t n) {
        uint32_t n_saved;
        io.read_to(&n_saved, sizeof(n_saved));

        std::vector<uint32_t> saved(std::min(n_saved, n));
        io.read_to(saved.data(), saved.size() * sizeof(uint32_t));

        restore(cells, saved, n_saved, head, n);

        for (const auto & l : layers) {
            for (ggml_tensor * t : { l.k, l.v }) {
                for (uint32_t i = 0; t && i < n_saved; ++i) {
                    ggml_backend_tensor_set(t, io.read(t->nb[1]), slots.slots[saved[i]] * t->nb[1], t->nb[1]);
                }
            }
        }
    }

    // the n cells from head on are written by other means
    void forget(uint32_t head, uint32_t n);

  private:
    // no cache has as many cells
    static constexpr uint32_t MAGIC = 0xffff7a11;

    struct layer {
        const ggml_tensor * k_cache;
        ggml_tensor *       k;  // [n_embd, size], null if the layer has no cache of its own
        ggml_tensor *       v;
    };

    struct mask {
        ggml_tensor * of_cells;
        ggml_tensor * of_slots;
    };

    llama_kv_tail_slots slots;
    std::vector<layer>  layers;

    ggml_tensor *     inp_slots = nullptr;  // I64 [n_tokens]
    ggml_tensor *     inp_shift = nullptr;  // I32 [size]
    std::vector<mask> inp_masks;            // F16 [size, n_tokens, padded]

    static void check_options(const llama_kv_tail * tail, const uint32_t * opts);

    std::vector<uint32_t> needed(const std::vector<llama_kv_cell> &                 cells,
                                 const std::vector<std::pair<uint32_t, uint32_t>> & ranges,
                                 std::vector<uint32_t> &                            idxs) const;

    void restore(const std::vector<llama_kv_cell> & cells, std::vector<uint32_t> & saved, uint32_t n_saved, uint32_t head, uint32_t n);
};
