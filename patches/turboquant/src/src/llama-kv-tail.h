#pragma once

#include "ggml-cpp.h"
#include "llama-io.h"
#include "llama-kv-cells.h"

#include <map>
#include <vector>

struct llama_hparams;

//
// llama_kv_tail
//

// f16 copies of the newest n_tail tokens and of the tokens at the first n_sink positions of each sequence
//
// every token is in the KV cache; some of them are in a slot here as well. The cells of the cache stay the only record of
// positions and sequences: a slot holds the copy of one cell and lives as long as that cell is not written again, so
// removing, keeping and shifting sequences needs nothing from this class. Each query sees each token once: here if its
// position is among the newest n_tail or the first n_sink of that query and the token has a slot, else in the cache.
class llama_kv_tail {
  public:
    // n_batch: the most tokens of one stream that are placed at once
    llama_kv_tail(uint32_t n_tail,
                  uint32_t n_sink,
                  uint32_t n_stream,
                  uint32_t n_seq_max,
                  uint32_t n_batch,
                  uint32_t n_cells,
                  size_t   n_layer);

    void add_layer(uint32_t il, ggml_backend_buffer_type_t buft, int64_t n_embd_k, int64_t n_embd_v);

    // allocates the tensors of all layers
    void alloc(bool no_alloc);

    void add_memory(std::map<ggml_backend_buffer_type_t, size_t> & res) const;

    uint32_t get_size() const { return size; }

    // slots in use, from 0
    uint32_t get_n_used(uint32_t strm) const;

    uint32_t get_slot(uint32_t strm, uint32_t cell) const;

    // the cell of a slot, -1 if there is none
    int32_t get_cell(uint32_t strm, uint32_t slot) const { return streams[strm].cells[slot]; }

    // copies of layer ikv [n_embd, size, n_stream]
    ggml_tensor * get_k(size_t ikv) const { return layers[ikv].k; }

    ggml_tensor * get_v(size_t ikv) const { return layers[ikv].v; }

    // whether the device of the layer computes attention over cache and copies in one op
    bool is_fused(size_t ikv) const { return layers[ikv].fused; }

    void find_fused(const llama_hparams & hparams, ggml_type type_k, ggml_type type_v);

    //
    // slots
    //

    void clear(bool data);

    // give each of the cells a slot, at the expense of tokens that no later query needs, the oldest first
    void place(uint32_t strm, const llama_kv_cells & cells, const std::vector<uint32_t> & idxs);

    // the cells are written by other means
    void forget(uint32_t strm, const std::vector<uint32_t> & idxs);

    // the stream becomes a copy of another one
    void copy_slots(uint32_t ssrc, uint32_t sdst);
    void copy_data(uint32_t ssrc, uint32_t sdst) const;

    // move the mask values of one query from the columns of the cells to those of the slots, [n_kv, n_kv + n_slots)
    template <typename T>
    void split_mask(T *                    row,
                    int64_t                n_kv,
                    int64_t                n_slots,
                    T                      drop,
                    uint32_t               strm,
                    const llama_kv_cells & cells,
                    llama_pos              pos) const {
        const auto & slots = streams[strm].cells;

        for (int64_t i = 0; i < n_slots; ++i) {
            const int32_t cell = slots[i];

            T & dst = row[n_kv + i];

            dst = drop;

            if (cell < 0 || cell >= n_kv || row[cell] == drop || !is_near(cells.pos_get(cell), pos)) {
                continue;
            }

            dst       = row[cell];
            row[cell] = drop;
        }
    }

    //
    // state: the cells are those of a saved stream in the order they are saved, or the ones they are restored to
    //

    void state_write_head(llama_io_write_i & io) const;

    // the number of streams that follows; throws if the state was saved with other options
    static uint32_t state_read_head(llama_io_read_i & io, const llama_kv_tail * tail);

    void state_write(llama_io_write_i &            io,
                     uint32_t                      strm,
                     const llama_kv_cells &        cells,
                     const std::vector<uint32_t> & idxs) const;
    void state_read(llama_io_read_i &             io,
                    uint32_t                      strm,
                    const llama_kv_cells &        cells,
                    const std::vector<uint32_t> & idxs);

  private:
    struct layer {
        uint32_t il;

        ggml_tensor * k;
        ggml_tensor * v;

        std::vector<ggml_tensor *> k_stream;
        std::vector<ggml_tensor *> v_stream;

        bool fused;
    };

    struct stream {
        std::vector<int32_t> cells;  // of each slot, -1 if there is none
        std::vector<int32_t> slots;  // of each cell, -1 if there is none
    };

    const uint32_t n_tail;
    const uint32_t n_sink;
    const uint32_t n_stream;
    const uint32_t n_seq_max;
    const size_t   n_layer;

    uint32_t size;  // slots of a stream

    std::vector<stream> streams;
    std::vector<layer>  layers;

    std::map<ggml_backend_buffer_type_t, ggml_context_ptr>            ctxs;
    std::vector<std::pair<ggml_context_ptr, ggml_backend_buffer_ptr>> ctxs_bufs;

    bool is_near(llama_pos p0, llama_pos p1) const { return p0 < (int64_t) n_sink || p1 - p0 < (int64_t) n_tail; }
};
