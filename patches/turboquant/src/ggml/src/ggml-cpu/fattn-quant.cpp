#define GGML_COMMON_IMPL_CPP
#define GGML_COMMON_DECL_CPP
#include "fattn-quant.h"

#include "fattn-i8.h"
#include "ggml-common.h"
#include "ggml-cpu.h"
#include "ops.h"
#include "simd-gemm.h"
#include "vec.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

// dequantization
//
// The loops are plain so that the compiler uses what vectors it has; the same loops in ggml-base are compiled for the
// oldest CPU. The arithmetic is that of ggml-quants.c, and so are the values.

static void fattn_f16_to_float(const void * GGML_RESTRICT vx, float * GGML_RESTRICT y, int64_t n) {
    ggml_cpu_fp16_to_fp32((const ggml_fp16_t *) vx, y, n);
}

static void fattn_bf16_to_float(const void * GGML_RESTRICT vx, float * GGML_RESTRICT y, int64_t n) {
    ggml_cpu_bf16_to_fp32((const ggml_bf16_t *) vx, y, n);
}

static void fattn_f32_to_float(const void * GGML_RESTRICT vx, float * GGML_RESTRICT y, int64_t n) {
    memcpy(y, vx, n * sizeof(float));
}

static void fattn_q4_1_to_float(const void * GGML_RESTRICT vx, float * GGML_RESTRICT y, int64_t n) {
    const block_q4_1 * GGML_RESTRICT x = (const block_q4_1 *) vx;

    for (int64_t i = 0; i < n / QK4_1; i++, y += QK4_1) {
        const float d = GGML_CPU_FP16_TO_FP32(x[i].GGML_COMMON_AGGR_U.GGML_COMMON_AGGR_S.d);
        const float m = GGML_CPU_FP16_TO_FP32(x[i].GGML_COMMON_AGGR_U.GGML_COMMON_AGGR_S.m);
        for (int j = 0; j < QK4_1 / 2; ++j) {
            y[j]             = (x[i].qs[j] & 0x0F) * d + m;
            y[j + QK4_1 / 2] = (x[i].qs[j] >> 4) * d + m;
        }
    }
}

static void fattn_q5_1_to_float(const void * GGML_RESTRICT vx, float * GGML_RESTRICT y, int64_t n) {
    const block_q5_1 * GGML_RESTRICT x = (const block_q5_1 *) vx;

    for (int64_t i = 0; i < n / QK5_1; i++, y += QK5_1) {
        const float d = GGML_CPU_FP16_TO_FP32(x[i].GGML_COMMON_AGGR_U.GGML_COMMON_AGGR_S.d);
        const float m = GGML_CPU_FP16_TO_FP32(x[i].GGML_COMMON_AGGR_U.GGML_COMMON_AGGR_S.m);
        uint32_t    qh;
        memcpy(&qh, x[i].qh, sizeof(qh));
        for (uint32_t j = 0; j < QK5_1 / 2; ++j) {
            const uint32_t h0 = ((qh >> j) & 1) << 4;
            const uint32_t h1 = ((qh >> (j + 16)) & 1) << 4;
            y[j]              = (int32_t) ((x[i].qs[j] & 0x0F) | h0) * d + m;
            y[j + QK5_1 / 2]  = (int32_t) ((x[i].qs[j] >> 4) | h1) * d + m;
        }
    }
}

// out[j] = table[low nibble of q[j]], out[j + 16] = table[high nibble of q[j]]
static inline void fattn_lookup_nibbles(const int8_t * GGML_RESTRICT  table,
                                        const uint8_t * GGML_RESTRICT q,
                                        int8_t * GGML_RESTRICT        out) {
#if defined(__SSSE3__)
    const __m128i t = _mm_loadu_si128((const __m128i *) table);
    const __m128i x = _mm_loadu_si128((const __m128i *) q);
    const __m128i m = _mm_set1_epi8(0x0F);
    _mm_storeu_si128((__m128i *) out, _mm_shuffle_epi8(t, _mm_and_si128(x, m)));
    _mm_storeu_si128((__m128i *) (out + 16), _mm_shuffle_epi8(t, _mm_and_si128(_mm_srli_epi16(x, 4), m)));
#elif defined(__ARM_NEON)
    const int8x16_t  t = vld1q_s8(table);
    const uint8x16_t x = vld1q_u8(q);
    vst1q_s8(out, ggml_vqtbl1q_s8(t, vandq_u8(x, vdupq_n_u8(0x0F))));
    vst1q_s8(out + 16, ggml_vqtbl1q_s8(t, vshrq_n_u8(x, 4)));
#else
    for (int j = 0; j < 16; ++j) {
        out[j]      = table[q[j] & 0x0F];
        out[j + 16] = table[q[j] >> 4];
    }
#endif
}

// the 32 whole numbers of a block; its scale is all that is missing

static inline void fattn_unpack(const block_q8_0 & x, int8_t * GGML_RESTRICT q) {
    memcpy(q, x.qs, QK8_0);
}

static inline void fattn_unpack(const block_q4_0 & x, int8_t * GGML_RESTRICT q) {
    static const int8_t values[16] = { -8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7 };
    fattn_lookup_nibbles(values, x.qs, q);
}

static inline void fattn_unpack(const block_q5_0 & x, int8_t * GGML_RESTRICT q) {
    uint32_t qh;
    memcpy(&qh, x.qh, sizeof(qh));
    for (uint32_t j = 0; j < QK5_0 / 2; ++j) {
        const uint32_t h0 = ((qh >> j) & 1) << 4;
        const uint32_t h1 = ((qh >> (j + 16)) & 1) << 4;
        q[j]              = (int8_t) ((x.qs[j] & 0x0F) | h0) - 16;
        q[j + QK5_0 / 2]  = (int8_t) ((x.qs[j] >> 4) | h1) - 16;
    }
}

static inline void fattn_unpack(const block_iq4_nl & x, int8_t * GGML_RESTRICT q) {
    fattn_lookup_nibbles(kvalues_iq4nl, x.qs, q);
}

static inline float fattn_scale(ggml_half d) {
#ifdef __F16C__
    return GGML_CPU_COMPUTE_FP16_TO_FP32(d);  // the table of the other macro does not stay in a cache
#else
    return GGML_CPU_FP16_TO_FP32(d);
#endif
}

template <typename block>
static void fattn_i8_to_float(const void * GGML_RESTRICT vx, float * GGML_RESTRICT y, int64_t n) {
    const block * GGML_RESTRICT x = (const block *) vx;

    for (int64_t i = 0; i < n / FATTN_I8_BLOCK; i++, y += FATTN_I8_BLOCK) {
        const float d = fattn_scale(x[i].d);
        int8_t      q[FATTN_I8_BLOCK];
        fattn_unpack(x[i], q);
        for (int j = 0; j < FATTN_I8_BLOCK; ++j) {
            y[j] = q[j] * d;
        }
    }
}

template <typename block>
static void fattn_to_i8(const char *    base,
                        size_t          stride,
                        const int64_t * at,
                        int64_t         n,
                        int8_t *        q,
                        float *         d,
                        int64_t         d_stride,
                        int64_t         D) {
    for (int64_t u = 0; u < n; ++u, q += D) {
        const block * x = (const block *) (base + at[u] * stride);
        for (int64_t i = 0; i < D / FATTN_I8_BLOCK; ++i) {
            d[i * d_stride + u] = fattn_scale(x[i].d);
            fattn_unpack(x[i], q + i * FATTN_I8_BLOCK);
        }
    }
}

ggml_to_float_t ggml_fattn_to_float(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F32:
            return fattn_f32_to_float;
        case GGML_TYPE_F16:
            return fattn_f16_to_float;
        case GGML_TYPE_BF16:
            return fattn_bf16_to_float;
        case GGML_TYPE_Q8_0:
            return fattn_i8_to_float<block_q8_0>;
        case GGML_TYPE_Q5_1:
            return fattn_q5_1_to_float;
        case GGML_TYPE_Q5_0:
            return fattn_i8_to_float<block_q5_0>;
        case GGML_TYPE_Q4_1:
            return fattn_q4_1_to_float;
        case GGML_TYPE_Q4_0:
            return fattn_i8_to_float<block_q4_0>;
        case GGML_TYPE_IQ4_NL:
            return fattn_i8_to_float<block_iq4_nl>;
        default:
            return ggml_get_type_traits(type)->to_float;
    }
}

// The function that unpacks a row of a type that is whole numbers and scales; NULL for other types.
static fattn_to_i8_t fattn_get_to_i8(ggml_type type) {
    switch (type) {
        case GGML_TYPE_Q8_0:
            return fattn_to_i8<block_q8_0>;
        case GGML_TYPE_Q5_0:
            return fattn_to_i8<block_q5_0>;
        case GGML_TYPE_Q4_0:
            return fattn_to_i8<block_q4_0>;
        case GGML_TYPE_IQ4_NL:
            return fattn_to_i8<block_iq4_nl>;
        default:
            return nullptr;
    }
}

// attention

// One K/V pair of a call; a position is a column of the mask, and the pair has those from `first` on.
struct fattn_quant_pair {
    const ggml_tensor * k;
    const ggml_tensor * v;
    int64_t             first;
};

// What all threads know of one call.
struct fattn_quant_call {
    fattn_quant_pair pairs[2];
    int              n_pairs;

    int64_t DK, DV;
    int64_t n_kv;      // positions of all pairs
    int64_t n_head_kv;
    int64_t n_gqa;     // heads of Q that share a head of K and V
    int64_t n_rows;    // rows of Q that share a head of K and V
    int64_t n_dst_rows;
    bool    tiles;     // K is unpacked to tiles, instead of dot products of rows
    int64_t n_per_block;
    int64_t n_blocks;  // of at most n_per_block rows
    int64_t n_groups;  // n_blocks for each head of K and each sequence
    int64_t n_chunks;  // parts of the positions: one for each thread, or 1
    int64_t scratch;   // floats of a thread
    int64_t partial;   // floats of M, S and the accumulator of a row
};

static fattn_quant_call fattn_quant_get_call(const ggml_tensor * dst, int64_t nth) {
    const ggml_tensor * q = dst->src[0];

    constexpr int64_t KV = GGML_FA_TILE_KV;

    fattn_quant_call c;
    c.pairs[0] = { dst->src[1], dst->src[2], 0 };
    c.pairs[1] = { nullptr, nullptr, 0 };
    c.n_pairs  = 1;
    c.n_kv     = c.pairs[0].k->ne[1];
    if (dst->src[5]) {
        c.pairs[1] = { dst->src[5], dst->src[6], c.n_kv };
        c.n_pairs  = 2;
        c.n_kv += c.pairs[1].k->ne[1];
    }

    c.DK          = c.pairs[0].k->ne[0];
    c.DV          = c.pairs[0].v->ne[0];
    c.n_head_kv   = c.pairs[0].k->ne[2];
    c.n_gqa       = q->ne[2] / c.n_head_kv;
    c.n_rows      = q->ne[1] * c.n_gqa;
    c.n_dst_rows  = q->ne[1] * q->ne[2] * q->ne[3];
    c.tiles       = q->ne[1] >= GGML_FA_TILE_Q;
    c.n_per_block = c.tiles ? GGML_FA_TILE_Q : GGML_FATTN_QUANT_ROWS;
    c.n_blocks    = (c.n_rows + c.n_per_block - 1) / c.n_per_block;
    c.n_groups    = c.n_blocks * c.n_head_kv * q->ne[3];
    c.n_chunks    = 1;
    c.scratch     = c.n_per_block * (c.DK + KV + c.DV) + KV * c.DV + CACHE_LINE_SIZE_F32;
    c.scratch += c.tiles ? KV * c.DK : fattn_i8_tile_size(c.DK) / sizeof(float);
    c.partial = 2 + c.DV;

    // with many groups every thread has whole ones to do; with few positions the second pass costs more than it gains
    const bool    split    = c.n_groups < 4 * nth && c.n_kv >= KV * nth;
    // what ggml_graph_plan() reserves for a thread
    const int64_t reserved = GGML_FA_TILE_Q * (c.DK + 2 * KV + c.DV) + KV * (c.DK + c.DV);
    if (split && c.n_dst_rows * c.partial <= reserved - c.scratch) {
        c.n_chunks = nth;
    }
    return c;
}

bool ggml_fattn_quant_supported(const ggml_tensor * dst) {
    const ggml_tensor * q = dst->src[0];
    const ggml_tensor * k = dst->src[1];
    const ggml_tensor * v = dst->src[2];

    static const bool disabled = getenv("GGML_CPU_FATTN_QUANT_DISABLE") != nullptr;

    const bool plain = k->type == v->type && (k->type == GGML_TYPE_F16 || k->type == GGML_TYPE_F32);

    return !disabled && !plain && q->type == GGML_TYPE_F32 && ggml_get_type_traits_cpu(k->type)->vec_dot &&
           ggml_fattn_to_float(k->type) && ggml_fattn_to_float(v->type) && k->ne[2] == v->ne[2] && k->ne[3] == v->ne[3];
}

// The rows of Q that are computed together, with what they have come to so far.
struct fattn_quant_rows {
    int64_t n;
    int64_t head_kv;
    int64_t seq;

    const float *       q[GGML_FA_TILE_Q];
    const ggml_fp16_t * mask[GGML_FA_TILE_Q];
    const ggml_fp16_t * masks[GGML_FA_TILE_Q];  // those of mask that differ from the one before
    int64_t             n_masks;
    float               slope[GGML_FA_TILE_Q];

    float M[GGML_FA_TILE_Q];  // maximum of the scores
    float S[GGML_FA_TILE_Q];  // sum of exp(score - M)

    float * VKQ;              // sum of V*exp(score - M), DV values for each row
};

static void fattn_quant_get_bias(const ggml_fp16_t * mask, const int64_t * used, int64_t n, float * bias) {
    if (used[n - 1] - used[0] == n - 1) {
        ggml_cpu_fp16_to_fp32(mask + used[0], bias, n);
        return;
    }
    for (int64_t u = 0; u < n; ++u) {
        bias[u] = GGML_CPU_FP16_TO_FP32(mask[used[u]]);
    }
}

// ggml_vec_max_f32() in lanes
static float fattn_quant_max(int64_t n, const float * x) {
    constexpr int64_t N = 16;

    float lanes[N];
    for (int64_t i = 0; i < N; ++i) {
        lanes[i] = -INFINITY;
    }
    int64_t u = 0;
    for (; u + N <= n; u += N) {
        for (int64_t i = 0; i < N; ++i) {
            lanes[i] = x[u + i] > lanes[i] ? x[u + i] : lanes[i];
        }
    }
    for (; u < n; ++u) {
        lanes[0] = x[u] > lanes[0] ? x[u] : lanes[0];
    }
    return *std::max_element(lanes, lanes + N);
}

// Takes positions [ic0, ic1), counted within the pair, into the results of the rows.
static void fattn_quant_add(const ggml_tensor *      dst,
                            const fattn_quant_call & call,
                            const fattn_quant_pair & pair,
                            fattn_quant_rows &       rows,
                            float *                  scratch,
                            int64_t                  ic0,
                            int64_t                  ic1) {
    constexpr int64_t KV = GGML_FA_TILE_KV;

    const ggml_tensor * k  = pair.k;
    const ggml_tensor * v  = pair.v;
    const int64_t       DK = call.DK;
    const int64_t       DV = call.DV;

    float       scale         = ggml_get_op_params_f32(dst, 0);
    const float logit_softcap = ggml_get_op_params_f32(dst, 2);

    if (logit_softcap != 0.0f) {
        scale /= logit_softcap;
    }

    const fattn_to_i8_t k_to_i8 = call.tiles ? nullptr : fattn_get_to_i8(k->type);
#ifdef FATTN_I8_AVX2
    const fattn_to_i8_t v_to_i8 = fattn_get_to_i8(v->type);
#endif
    const ggml_type         vec_dot_type = k_to_i8 ? GGML_TYPE_Q8_0 : ggml_get_type_traits_cpu(k->type)->vec_dot_type;
    const ggml_vec_dot_t    vec_dot      = ggml_get_type_traits_cpu(k->type)->vec_dot;
    const ggml_from_float_t q_convert    = ggml_get_type_traits_cpu(vec_dot_type)->from_float;
    const ggml_to_float_t   k_to_float   = ggml_fattn_to_float(k->type);
    const ggml_to_float_t   v_to_float   = ggml_fattn_to_float(v->type);

    float * Q   = scratch;                     // DK floats for each row, or what the dot product takes instead
    float * KQ  = Q + call.n_per_block * DK;
    float * V32 = KQ + call.n_per_block * KV;  // or whole numbers
    float * K32 = V32 + KV * DV;               // or whole numbers

    for (int64_t r = 0; r < rows.n; ++r) {
        if (call.tiles || q_convert == nullptr) {
            memcpy(Q + r * DK, rows.q[r], DK * sizeof(float));
        } else if (k_to_i8) {
            q_convert(rows.q[r], K32, DK);  // not in use yet
            fattn_i8_set_row((const block_q8_0 *) K32, Q + r * DK, DK);
        } else {
            q_convert(rows.q[r], Q + r * DK, DK);
        }
    }

    const int64_t seq_kv = rows.seq / (dst->src[0]->ne[3] / k->ne[3]);
    const char *  k_base = (const char *) k->data + rows.head_kv * k->nb[2] + seq_kv * k->nb[3];
    const char *  v_base = (const char *) v->data + rows.head_kv * v->nb[2] + seq_kv * v->nb[3];

    for (int64_t ic = ic0; ic < ic1;) {
        // a tile is of the next positions that at least one row sees, so the sums do not depend on what lies between
        int64_t used[KV];
        int64_t n_used = 0;
        for (; ic < ic1 && n_used < KV; ++ic) {
            bool seen = rows.n_masks == 0;
            for (int64_t i = 0; i < rows.n_masks && !seen; ++i) {
                seen = rows.masks[i][pair.first + ic] != 0xFC00;  // -INFINITY
            }
            used[n_used] = ic;
            n_used += seen;
        }
        if (n_used == 0) {
            break;
        }

        if (call.tiles) {
            for (int64_t u = 0; u < n_used; ++u) {
                float * row = V32;  // not in use yet
                k_to_float(k_base + used[u] * k->nb[1], row, DK);
                for (int64_t d = 0; d < DK; ++d) {
                    K32[d * n_used + u] = row[d];
                }
            }
            memset(KQ, 0, rows.n * n_used * sizeof(float));
            simd_gemm(KQ, Q, K32, rows.n, DK, n_used);
        } else if (k_to_i8) {
            fattn_i8_set_k(k_to_i8, k_base, k->nb[1], used, n_used, K32, DK);
            for (int64_t r = 0; r < rows.n; ++r) {
                fattn_i8_dots(Q + r * DK, K32, n_used, DK, KQ + r * n_used);
            }
        } else {
            for (int64_t u = 0; u < n_used; ++u) {
                for (int64_t r = 0; r < rows.n; ++r) {
                    vec_dot(DK, KQ + r * n_used + u, 0, k_base + used[u] * k->nb[1], 0, Q + r * DK, 0, 1);
                }
            }
        }

        ggml_vec_scale_f32(rows.n * n_used, KQ, scale);
        if (logit_softcap != 0.0f) {
            ggml_vec_tanh_f32(rows.n * n_used, KQ, KQ);
            ggml_vec_scale_f32(rows.n * n_used, KQ, logit_softcap);
        }

        float bias[KV];
        for (int64_t r = 0; r < rows.n; ++r) {
            float * s = KQ + r * n_used;
            if (rows.mask[r]) {
                if (r == 0 || rows.mask[r] != rows.mask[r - 1]) {
                    fattn_quant_get_bias(rows.mask[r] + pair.first, used, n_used, bias);
                }
                for (int64_t u = 0; u < n_used; ++u) {
                    s[u] += rows.slope[r] * bias[u];
                }
            }
            const float max = fattn_quant_max(n_used, s);
            if (max == -INFINITY) {
                memset(s, 0, n_used * sizeof(float));
                continue;
            }
            if (max > rows.M[r]) {
                const float ms = expf(rows.M[r] - max);
                ggml_vec_scale_f32(DV, rows.VKQ + r * DV, ms);
                rows.S[r] *= ms;
                rows.M[r] = max;
            }
            rows.S[r] += ggml_vec_soft_max_f32(n_used, s, s, rows.M[r]);
        }

#ifdef FATTN_I8_AVX2
        if (v_to_i8) {
            v_to_i8(v_base, v->nb[1], used, n_used, fattn_i8_tile_values(V32, DV), V32, KV, DV);
            fattn_i8_add_v(KQ, rows.n, V32, n_used, DV, rows.VKQ);
            continue;
        }
#endif
        for (int64_t u = 0; u < n_used; ++u) {
            v_to_float(v_base + used[u] * v->nb[1], V32 + u * DV, DV);
        }
        simd_gemm(rows.VKQ, KQ, V32, rows.n, n_used, DV);
    }
}

// Begins rows [r0, r1) of a head of K and V. Row r belongs to token r/n_gqa, and to head r%n_gqa of those that share it.
static void fattn_quant_begin(const ggml_tensor *      dst,
                              const fattn_quant_call & call,
                              fattn_quant_rows &       rows,
                              int64_t                  r0,
                              int64_t                  r1) {
    const ggml_tensor * q    = dst->src[0];
    const ggml_tensor * mask = dst->src[3];

    const float    max_bias    = ggml_get_op_params_f32(dst, 1);
    const uint32_t n_head_log2 = 1u << (uint32_t) floor(log2((double) q->ne[2]));

    const float m0 = powf(2.0f, -(max_bias) / n_head_log2);
    const float m1 = powf(2.0f, -(max_bias / 2.0f) / n_head_log2);

    rows.n       = r1 - r0;
    rows.n_masks = 0;
    for (int64_t r = 0; r < rows.n; ++r) {
        const int64_t  iq1 = (r0 + r) / call.n_gqa;
        const int64_t  iq2 = (r0 + r) % call.n_gqa + rows.head_kv * call.n_gqa;
        const uint32_t h   = iq2;

        const float slope = h < n_head_log2 ? powf(m0, h + 1) : powf(m1, 2 * (h - n_head_log2) + 1);

        rows.q[r] = (const float *) ((const char *) q->data + iq1 * q->nb[1] + iq2 * q->nb[2] + rows.seq * q->nb[3]);
        rows.slope[r] = max_bias > 0.0f ? slope : 1.0f;
        rows.M[r]     = -INFINITY;
        rows.S[r]     = 0.0f;
        rows.mask[r]  = nullptr;
        if (mask) {
            rows.mask[r] =
                (const ggml_fp16_t *) ((const char *) mask->data + iq1 * mask->nb[1] +
                                       (iq2 % mask->ne[2]) * mask->nb[2] + (rows.seq % mask->ne[3]) * mask->nb[3]);
            if (r == 0 || rows.mask[r] != rows.mask[r - 1]) {
                rows.masks[rows.n_masks++] = rows.mask[r];
            }
        }
    }
    memset(rows.VKQ, 0, rows.n * call.DV * sizeof(float));
}

// The sink of a head counts like one more position whose V is 0.
static void fattn_quant_add_sinks(const ggml_tensor *      dst,
                                  const fattn_quant_call & call,
                                  fattn_quant_rows &       rows,
                                  int64_t                  r0) {
    const float * sinks = (const float *) dst->src[4]->data;

    for (int64_t r = 0; r < rows.n; ++r) {
        const float s = sinks[(r0 + r) % call.n_gqa + rows.head_kv * call.n_gqa];
        if (s > rows.M[r]) {
            const float ms = expf(rows.M[r] - s);
            ggml_vec_scale_f32(call.DV, rows.VKQ + r * call.DV, ms);
            rows.S[r] = rows.S[r] * ms + 1.0f;
            rows.M[r] = s;
        } else {
            rows.S[r] += expf(s - rows.M[r]);
        }
    }
}

void ggml_fattn_quant(const ggml_compute_params * params, ggml_tensor * dst) {
    const int64_t ith = params->ith;
    const int64_t nth = params->nth;

    const fattn_quant_call call     = fattn_quant_get_call(dst, nth);
    const int64_t          n_tokens = dst->src[0]->ne[1];
    const int64_t          n_head   = dst->src[0]->ne[2];
    const int64_t          DV       = call.DV;
    const bool             split    = call.n_chunks > 1;

    GGML_ASSERT(dst->nb[0] == sizeof(float) && dst->nb[1] == DV * sizeof(float) && ggml_is_contiguous(dst));
    GGML_ASSERT(dst->ne[0] == DV && dst->ne[1] == n_head && dst->ne[2] == n_tokens);
    GGML_ASSERT(params->wsize >=
                sizeof(float) * (nth * call.scratch + (split ? nth * call.n_dst_rows * call.partial : 0)));

    float * scratch  = (float *) params->wdata + ith * call.scratch;
    float * partials = (float *) params->wdata + nth * call.scratch;  // [row of dst][chunk][M, S, VKQ]
    float * out      = (float *) dst->data;

    fattn_quant_rows rows;
    rows.VKQ = scratch;
    scratch += call.n_per_block * DV;

    const int64_t chunk_size = (call.n_kv + call.n_chunks - 1) / call.n_chunks;
    const int64_t ic0        = split ? std::min(ith * chunk_size, call.n_kv) : 0;
    const int64_t ic1        = std::min(ic0 + chunk_size, call.n_kv);

    // a thread does its chunk of every group, or whole groups, each as it comes free
    const bool by_turns = !split && ggml_is_numa();
    if (!split && !by_turns) {
        if (ith == 0) {
            ggml_threadpool_chunk_set(params->threadpool, nth);
        }
        ggml_barrier(params->threadpool);
    }

    int64_t group = split ? 0 : ith;
    while (group < call.n_groups) {
        const int64_t r0 = group % call.n_blocks * call.n_per_block;
        const int64_t r1 = std::min(r0 + call.n_per_block, call.n_rows);

        rows.head_kv = group / call.n_blocks % call.n_head_kv;
        rows.seq     = group / (call.n_blocks * call.n_head_kv);
        fattn_quant_begin(dst, call, rows, r0, r1);
        for (int p = 0; p < call.n_pairs; ++p) {
            const fattn_quant_pair & pair = call.pairs[p];
            fattn_quant_add(dst, call, pair, rows, scratch, std::max<int64_t>(ic0 - pair.first, 0),
                            std::min(ic1 - pair.first, pair.k->ne[1]));
        }
        if (dst->src[4] && ic0 == 0) {
            fattn_quant_add_sinks(dst, call, rows, r0);
        }

        for (int64_t r = 0; r < rows.n; ++r) {
            const int64_t iq1   = (r0 + r) / call.n_gqa;
            const int64_t iq2   = (r0 + r) % call.n_gqa + rows.head_kv * call.n_gqa;
            const int64_t i_dst = (rows.seq * n_tokens + iq1) * n_head + iq2;  // permute(0, 2, 1, 3)
            const float * VKQ   = rows.VKQ + r * DV;
            if (split) {
                float * partial = partials + (i_dst * call.n_chunks + ith) * call.partial;
                partial[0]      = rows.M[r];
                partial[1]      = rows.S[r];
                memcpy(partial + 2, VKQ, DV * sizeof(float));
            } else {
                memcpy(out + i_dst * DV, VKQ, DV * sizeof(float));
                ggml_vec_scale_f32(DV, out + i_dst * DV, rows.S[r] == 0.0f ? 0.0f : 1.0f / rows.S[r]);
            }
        }

        group = split ? group + 1 : by_turns ? group + nth : ggml_threadpool_chunk_add(params->threadpool, 1);
    }

    if (!split) {
        return;
    }

    ggml_barrier(params->threadpool);

    for (int64_t i = ith; i < call.n_dst_rows; i += nth) {
        const float * first = partials + i * call.n_chunks * call.partial;

        float M = -INFINITY;
        for (int64_t c = 0; c < call.n_chunks; ++c) {
            M = std::max(M, first[c * call.partial]);
        }

        float * row = out + i * DV;
        float   S   = 0.0f;
        memset(row, 0, DV * sizeof(float));
        for (int64_t c = 0; c < call.n_chunks && M != -INFINITY; ++c) {
            const float * partial = first + c * call.partial;
            const float   weight  = expf(partial[0] - M);
            ggml_vec_mad_f32(DV, row, partial + 2, weight);
            S += weight * partial[1];
        }
        ggml_vec_scale_f32(DV, row, S == 0.0f ? 0.0f : 1.0f / S);
    }
}
