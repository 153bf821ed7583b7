#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

//
// llama_kv_tail_slots
//

// which cells of a KV cache have an f16 copy, and in which slot
//
// a slot holds the copy of one cell and lives as long as that cell is not written again. The cells stay the only record of
// positions and sequences. They are given as something with is_empty(cell), pos_get(cell), seq_has(cell, seq) and
// seq_pos_max(seq).
struct llama_kv_tail_slots {
    uint32_t n_tail    = 0;
    uint32_t n_sink    = 0;
    uint32_t n_seq_max = 0;

    std::vector<int32_t> cells;  // of each slot, -1 if there is none
    std::vector<int32_t> slots;  // of each cell, -1 if there is none

    // whether the query at p1 reads the token at p0 from its copy
    bool is_near(int64_t p0, int64_t p1) const { return p0 < n_sink || p1 - p0 < n_tail; }

    void clear() {
        std::fill(cells.begin(), cells.end(), -1);
        std::fill(slots.begin(), slots.end(), -1);
    }

    // the cell is written by other means
    void forget(uint32_t cell) {
        if (slots[cell] >= 0) {
            cells[slots[cell]] = -1;
            slots[cell]        = -1;
        }
    }

    // give each of the cells a slot, at the expense of tokens that no later query needs, the oldest first
    template <typename C> void place(const C & kv, const std::vector<uint32_t> & idxs) {
        for (const uint32_t cell : idxs) {
            forget(cell);
        }

        // the next query of each sequence: its first one among these tokens, else the one after its last token
        std::vector<int64_t> next(n_seq_max, -1);
        for (const uint32_t cell : idxs) {
            for (uint32_t seq = 0; seq < n_seq_max; ++seq) {
                const int64_t pos = kv.pos_get(cell);
                if (kv.seq_has(cell, seq) && (next[seq] < 0 || pos < next[seq])) {
                    next[seq] = pos;
                }
            }
        }
        for (uint32_t seq = 0; seq < n_seq_max; ++seq) {
            if (next[seq] < 0) {
                next[seq] = (int64_t) kv.seq_pos_max(seq) + 1;
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
        cands.reserve(cells.size());

        for (uint32_t i = 0; i < cells.size(); ++i) {
            const int32_t cell = cells[i];

            candidate c = { 0, 0, i };

            if (cell >= 0 && !kv.is_empty(cell)) {
                const int64_t pos = kv.pos_get(cell);

                c.rank = 1;
                c.age  = std::numeric_limits<int64_t>::max();

                for (uint32_t seq = 0; seq < n_seq_max; ++seq) {
                    if (kv.seq_has(cell, seq)) {
                        c.age = std::min<int64_t>(c.age, next[seq] - pos);
                        if (is_near(pos, next[seq])) {
                            c.rank = 2;
                        }
                    }
                }

                if (c.rank == 2 && pos < n_sink) {
                    c.rank = 3;
                }
            }

            cands.push_back(c);
        }

        std::partial_sort(cands.begin(), cands.begin() + idxs.size(), cands.end());

        for (size_t i = 0; i < idxs.size(); ++i) {
            const uint32_t slot = cands[i].slot;

            if (cells[slot] >= 0) {
                slots[cells[slot]] = -1;
            }

            cells[slot]    = idxs[i];
            slots[idxs[i]] = slot;
        }
    }

    // move the mask values of the query at pos from the columns of the n_kv first cells to those of the n_slots first slots
    template <typename T, typename C>
    void split_mask(T * of_cells, int64_t n_kv, T * of_slots, int64_t n_slots, T drop, const C & kv, int64_t pos) const {
        for (int64_t i = 0; i < n_slots; ++i) {
            const int32_t cell = cells[i];

            of_slots[i] = drop;

            if (cell < 0 || cell >= n_kv || of_cells[cell] == drop || !is_near(kv.pos_get(cell), pos)) {
                continue;
            }

            of_slots[i]    = of_cells[cell];
            of_cells[cell] = drop;
        }
    }

    // which of the cells the next query of a sequence reads from their copies: that fits into any cache with the same options
    template <typename C> std::vector<uint32_t> needed(const C & kv, const std::vector<uint32_t> & idxs) const {
        std::vector<int64_t> next(n_seq_max);
        for (uint32_t seq = 0; seq < n_seq_max; ++seq) {
            next[seq] = (int64_t) kv.seq_pos_max(seq) + 1;
        }

        std::vector<uint32_t> result;
        for (uint32_t i = 0; i < idxs.size(); ++i) {
            for (uint32_t seq = 0; slots[idxs[i]] >= 0 && seq < n_seq_max; ++seq) {
                if (kv.seq_has(idxs[i], seq) && is_near(kv.pos_get(idxs[i]), next[seq])) {
                    result.push_back(i);
                    break;
                }
            }
        }
        return result;
    }
};
