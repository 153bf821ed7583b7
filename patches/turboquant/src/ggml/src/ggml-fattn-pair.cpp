#include "ggml-fattn-pair.h"

#include "iqk/iqk_config.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined GGML_USE_IQK_MULMAT && defined IQK_IMPLEMENT && defined GGML_IQK_FLASH_ATTENTION
#    define FATTN_PAIR_IQK
#    include "iqk/iqk_flash_impl.h"
#endif

// Positions are looked at in steps of as many as IQK's kernels want.
static constexpr int64_t FATTN_PAIR_STEP = 32;

// As many unseen positions are skipped.
static constexpr int64_t FATTN_PAIR_GAP = 128;

// The most tokens of a head that are computed together.
static constexpr int64_t FATTN_PAIR_ROWS = 64;

struct fattn_pair_part {
    const ggml_tensor * k;
    const ggml_tensor * v;
    const ggml_tensor * mask;
    int64_t             n_chunks;
};

// What all threads know of one call.
//
// A group is what is computed together: the tokens of a head of Q, up to FATTN_PAIR_ROWS of them, or of a single token the
// heads that share a head of K. The positions of both parts are divided into chunks. The result of a group and a chunk is,
// for each row, the maximum M of its scores, the sum S of exp(score - M) and the sum R of V*exp(score - M).
struct fattn_pair_call {
    fattn_pair_part parts[2];

    int64_t DK, DV;
    int64_t n_rows;      // of a group, at most
    int64_t n_blocks;    // groups of a head
    int64_t n_groups;
    int64_t chunk_size;  // positions
    int64_t n_chunks;    // of both parts
    bool    shared;      // chunks of a group are divided among the threads
    int64_t partial;     // floats of the result of a group and a chunk
    int64_t scratch;     // floats of a thread
};

static int64_t fattn_pair_pad(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
}

static fattn_pair_call fattn_pair_get_call(const ggml_tensor * dst, int64_t nth) {
    const ggml_tensor * q = dst->src[0];

    fattn_pair_call c;
    c.parts[0] = { dst->src[1], dst->src[2], dst->src[3], 0 };
    c.parts[1] = { dst->src[5], dst->src[6], dst->src[7], 0 };

    const int64_t n_heads = q->ne[1] == 1 ? c.parts[0].k->ne[2] : q->ne[2];
    const int64_t n_kv0   = c.parts[0].k->ne[1];
    const int64_t n_kv1   = c.parts[1].k->ne[1];

    c.DK       = c.parts[0].k->ne[0];
    c.DV       = c.parts[0].v->ne[0];
    c.n_rows   = q->ne[1] == 1 ? q->ne[2] / n_heads : std::min(q->ne[1], FATTN_PAIR_ROWS);
    c.n_blocks = q->ne[1] == 1 ? 1 : (q->ne[1] + c.n_rows - 1) / c.n_rows;
    c.n_groups = n_heads * q->ne[3] * c.n_blocks;

    // with few groups the threads would wait for each other
    const int64_t wanted = q->ne[1] == 1 ? (4 * nth + c.n_groups - 1) / c.n_groups : 1;

    c.shared     = wanted > 1;
    c.chunk_size = c.shared ? fattn_pair_pad((n_kv0 + n_kv1 + wanted - 1) / wanted, FATTN_PAIR_STEP) : std::max(n_kv0, n_kv1);
    c.n_chunks   = 0;
    for (auto & part : c.parts) {
        part.n_chunks = (part.k->ne[1] + c.chunk_size - 1) / c.chunk_size;
        c.n_chunks += part.n_chunks;
    }

    // threads do not write to the same cache line
    c.partial = fattn_pair_pad(c.n_rows * (c.DV + 2), 16);
    c.scratch = fattn_pair_pad(c.DK + c.DV, 16) + c.partial;
    return c;
}

size_t ggml_fattn_pair_work_size(const ggml_tensor * dst, int nth) {
    const fattn_pair_call c = fattn_pair_get_call(dst, nth);

    return sizeof(float) * (nth * c.scratch + (c.shared ? c.n_groups : nth) * c.n_chunks * c.partial);
}

// The rows of Q of a group.
struct fattn_pair_rows {
    int64_t n;
    int64_t token;     // of the first row
    int64_t n_tokens;  // 1: the rows are heads
    int64_t head;      // of the first row
    int64_t seq;

    const char * q;
    size_t       q_stride;
};

static fattn_pair_rows fattn_pair_get_rows(const ggml_tensor * dst, const fattn_pair_call & c, int64_t group) {
    const ggml_tensor * q = dst->src[0];

    const int64_t n_heads = c.n_groups / c.n_blocks / q->ne[3];
    const int64_t block   = group % c.n_blocks;
    const int64_t head    = group / c.n_blocks % n_heads;

    fattn_pair_rows r;
    r.seq = group / c.n_blocks / n_heads;
    if (q->ne[1] == 1) {
        r.n        = c.n_rows;
        r.token    = 0;
        r.n_tokens = 1;
        r.head     = head * c.n_rows;
        r.q_stride = q->nb[2];
    } else {
        r.token    = block * c.n_rows;
        r.n        = std::min(c.n_rows, q->ne[1] - r.token);
        r.n_tokens = r.n;
        r.head     = head;
        r.q_stride = q->nb[1];
    }
    r.q = (const char *) q->data + r.token * q->nb[1] + r.head * q->nb[2] + r.seq * q->nb[3];
    return r;
}

static const uint16_t * fattn_pair_mask(const fattn_pair_part & part, int64_t token) {
    return (const uint16_t *) ((const char *) part.mask->data + token * part.mask->nb[1]);
}

static bool fattn_pair_is_seen(const fattn_pair_part & part, const fattn_pair_rows & rows, int64_t i0) {
    for (int64_t t = rows.n_tokens - 1; t >= 0; --t) {
        const uint16_t * mask = fattn_pair_mask(part, rows.token + t) + i0;
        int              seen = 0;
        for (int64_t i = 0; i < FATTN_PAIR_STEP; ++i) {
            seen |= mask[i] != 0xFC00;  // -INFINITY
        }
        if (seen) {
            return true;
        }
    }
    return false;
}

// One position after the other, for whatever IQK has no kernel for.
static void fattn_pair_plain(const ggml_tensor *     dst,
                             const fattn_pair_call & c,
                             const fattn_pair_part & part,
                             const fattn_pair_rows & rows,
                             const char *            k_base,
                             const char *            v_base,
                             int64_t                 i0,
                             int64_t                 i1,
                             float                   scale,
                             float                   softcap,
                             float *                 R,
                             float *                 M,
                             float *                 S,
                             float *                 scratch) {
    float max_bias;
    memcpy(&max_bias, (const float *) dst->op_params + 1, sizeof(float));

    const uint32_t n_head_log2 = 1u << (uint32_t) floor(log2((double) dst->src[0]->ne[2]));
    const float    m0          = powf(2.0f, -(max_bias) / n_head_log2);
    const float    m1          = powf(2.0f, -(max_bias / 2.0f) / n_head_log2);

    const auto k_to_float = ggml_internal_get_type_traits(part.k->type).to_float;
    const auto v_to_float = ggml_internal_get_type_traits(part.v->type).to_float;

    float * K = scratch;
    float * V = scratch + c.DK;

    for (int64_t r = 0; r < rows.n; ++r) {
        const uint32_t h     = rows.head + (rows.n_tokens == 1 ? r : 0);
        const float    slope = max_bias <= 0.0f ? 1.0f : h < n_head_log2 ? powf(m0, h + 1) : powf(m1, 2 * (h - n_head_log2) + 1);
        const uint16_t * mask = fattn_pair_mask(part, rows.token + (rows.n_tokens == 1 ? 0 : r));

        float * acc = R + r * c.DV;
        memset(acc, 0, c.DV * sizeof(float));
        M[r] = -INFINITY;
        S[r] = 0.0f;

        const float * Q = (const float *) (rows.q + r * rows.q_stride);

        for (int64_t i = i0; i < i1; ++i) {
            if (mask[i] == 0xFC00) {
                continue;
            }
            float s = 0.0f;
            k_to_float(k_base + i * part.k->nb[1], K, c.DK);
            for (int64_t d = 0; d < c.DK; ++d) {
                s += Q[d] * K[d];
            }
            s = (softcap == 0.0f ? s * scale : softcap * tanhf(s * scale)) + slope * ggml_fp16_to_fp32(mask[i]);

            if (s > M[r]) {
                const float ms = expf(M[r] - s);
                for (int64_t d = 0; d < c.DV; ++d) {
                    acc[d] *= ms;
                }
                S[r] *= ms;
                M[r] = s;
            }
            const float vs = expf(s - M[r]);
            v_to_float(v_base + i * part.v->nb[1], V, c.DV);
            for (int64_t d = 0; d < c.DV; ++d) {
                acc[d] += vs * V[d];
            }
            S[r] += vs;
        }
    }
}

static void fattn_pair_run(const ggml_tensor *     dst,
                           const fattn_pair_call & c,
                           const fattn_pair_part & part,
                           const fattn_pair_rows & rows,
                           int64_t                 i0,
                           int64_t                 i1,
                           float *                 partial,
                           float *                 scratch) {
    const ggml_tensor * q = dst->src[0];
    const ggml_tensor * k = part.k;
    const ggml_tensor * v = part.v;

    float * R = partial;
    float * M = R + c.n_rows * c.DV;
    float * S = M + c.n_rows;

    float scale, max_bias, softcap;
    memcpy(&scale,    (const float *) dst->op_params + 0, sizeof(float));
    memcpy(&max_bias, (const float *) dst->op_params + 1, sizeof(float));
    memcpy(&softcap,  (const float *) dst->op_params + 2, sizeof(float));
    if (softcap != 0.0f) {
        scale /= softcap;
    }

    const int64_t head_k = rows.head / (q->ne[2] / k->ne[2]);
    const int64_t head_v = rows.head / (q->ne[2] / v->ne[2]);
    const int64_t seq_k  = rows.seq / (q->ne[3] / k->ne[3]);
    const int64_t seq_v  = rows.seq / (q->ne[3] / v->ne[3]);
    const char *  k_base = (const char *) k->data + head_k * k->nb[2] + seq_k * k->nb[3];
    const char *  v_base = (const char *) v->data + head_v * v->nb[2] + seq_v * v->nb[3];

#ifdef FATTN_PAIR_IQK
    const size_t mask_stride = rows.n_tokens == 1 ? 0 : part.mask->nb[1];

    if (max_bias <= 0.0f &&
        iqk_flash_attn_impl(k->type, v->type, c.DK, c.DV, rows.n, i1 - i0, rows.q_stride, k->nb[1], v->nb[1], mask_stride,
                            c.DV, (const float *) rows.q, k_base + i0 * k->nb[1], v_base + i0 * v->nb[1],
                            fattn_pair_mask(part, rows.token) + i0, nullptr, 0, scale, softcap, R, M, S)) {
        return;
    }
#endif

    fattn_pair_plain(dst, c, part, rows, k_base, v_base, i0, i1, scale, softcap, R, M, S, scratch);
}

// The runs of positions that a row sees, one after the other.
static void fattn_pair_chunk(const ggml_tensor *     dst,
                             const fattn_pair_call & c,
                             const fattn_pair_rows & rows,
                             int64_t                 chunk,
                             float *                 partial,
                             float *                 scratch) {
    const bool              first = chunk < c.parts[0].n_chunks;
    const fattn_pair_part & part  = c.parts[first ? 0 : 1];

    float * R = partial;
    float * M = R + c.n_rows * c.DV;
    float * S = M + c.n_rows;

    float * R2 = scratch;
    float * M2 = R2 + c.n_rows * c.DV;
    float * S2 = M2 + c.n_rows;
    scratch += c.partial;

    for (int64_t r = 0; r < rows.n; ++r) {
        M[r] = -INFINITY;
        S[r] = 0.0f;
    }

    int64_t       i   = (first ? chunk : chunk - c.parts[0].n_chunks) * c.chunk_size;
    const int64_t end = std::min(i + c.chunk_size, part.k->ne[1]);
    bool          any = false;

    while (i < end) {
        if (!fattn_pair_is_seen(part, rows, i)) {
            i += FATTN_PAIR_STEP;
            continue;
        }
        // a short gap costs less than another run
        int64_t i1 = i + FATTN_PAIR_STEP;
        for (int64_t j = i1; j < end && j < i1 + FATTN_PAIR_GAP; j += FATTN_PAIR_STEP) {
            if (fattn_pair_is_seen(part, rows, j)) {
                i1 = j + FATTN_PAIR_STEP;
            }
        }
        fattn_pair_run(dst, c, part, rows, i, i1, any ? R2 : R, scratch);
        for (int64_t r = 0; any && r < rows.n; ++r) {
            if (M2[r] == -INFINITY) {
                continue;
            }
            const float max = std::max(M[r], M2[r]);
            const float w   = M[r] == -INFINITY ? 0.0f : expf(M[r] - max);
            const float w2  = expf(M2[r] - max);
            for (int64_t d = 0; d < c.DV; ++d) {
                // what a row without anything seen holds is not a number that counts
                R[r * c.DV + d] = (w == 0.0f ? 0.0f : w * R[r * c.DV + d]) + w2 * R2[r * c.DV + d];
            }
            M[r] = max;
            S[r] = w * S[r] + w2 * S2[r];
        }
        any = true;
        i   = i1;
    }
}

// Rows [r0, r1) of a group from the results of its chunks.
static void fattn_pair_merge(const ggml_tensor *     dst,
                             const fattn_pair_call & c,
                             const fattn_pair_rows & rows,
                             const float *           partials,
                             int64_t                 r0,
                             int64_t                 r1) {
    for (int64_t r = r0; r < r1; ++r) {
        const int64_t token = rows.token + (rows.n_tokens == 1 ? 0 : r);
        const int64_t head  = rows.head + (rows.n_tokens == 1 ? r : 0);

        float * out = (float *) ((char *) dst->data + ((rows.seq * dst->ne[2] + token) * dst->ne[1] + head) * dst->nb[1]);
        float   max = -INFINITY;
        float   sum = 0.0f;

        for (int64_t chunk = 0; chunk < c.n_chunks; ++chunk) {
            max = std::max(max, partials[chunk * c.partial + c.n_rows * c.DV + r]);
        }
        // the sink of a head counts like one more position whose V is 0
        if (dst->src[4]) {
            const float sink = ((const float *) dst->src[4]->data)[head];
            max = std::max(max, sink);
            sum = expf(sink - max);
        }

        memset(out, 0, c.DV * sizeof(float));
        for (int64_t chunk = 0; chunk < c.n_chunks; ++chunk) {
            const float * R = partials + chunk * c.partial;
            const float   m = R[c.n_rows * c.DV + r];
            if (m == -INFINITY) {
                continue;
            }
            const float weight = expf(m - max);
            sum += weight * R[c.n_rows * (c.DV + 1) + r];
            for (int64_t d = 0; d < c.DV; ++d) {
                out[d] += weight * R[r * c.DV + d];
            }
        }

        const float norm = sum > 0.0f ? 1.0f / sum : 0.0f;
        for (int64_t d = 0; d < c.DV; ++d) {
            out[d] *= norm;
        }
    }
}

void ggml_fattn_pair(ggml_tensor * dst, void * work, void (*barrier)(void *), void * barrier_data, int ith, int nth) {
    const fattn_pair_call c = fattn_pair_get_call(dst, nth);

    float * scratch  = (float *) work + ith * c.scratch;
    float * partials = (float *) work + nth * c.scratch;

    if (!c.shared) {
        partials += ith * c.n_chunks * c.partial;
        for (int64_t group = ith; group < c.n_groups; group += nth) {
            const fattn_pair_rows rows = fattn_pair_get_rows(dst, c, group);
            for (int64_t chunk = 0; chunk < c.n_chunks; ++chunk) {
                fattn_pair_chunk(dst, c, rows, chunk, partials + chunk * c.partial, scratch);
            }
            fattn_pair_merge(dst, c, rows, partials, 0, rows.n);
        }
        return;
    }

    for (int64_t i = ith; i < c.n_groups * c.n_chunks; i += nth) {
        fattn_pair_chunk(dst, c, fattn_pair_get_rows(dst, c, i / c.n_chunks), i % c.n_chunks, partials + i * c.partial, scratch);
    }

    barrier(barrier_data);

    for (int64_t i = ith; i < c.n_groups * c.n_rows; i += nth) {
        const int64_t group = i / c.n_rows;
        fattn_pair_merge(dst, c, fattn_pair_get_rows(dst, c, group), partials + group * c.n_chunks * c.partial, i % c.n_rows,
                         i % c.n_rows + 1);
    }
}
