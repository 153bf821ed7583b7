#include "iqk_ftq.h"

#if defined IQK_IMPLEMENT

#    include "iqk_flash_impl.h"

#    include <algorithm>
#    include <cmath>
#    include <cstdint>
#    include <cstring>
#    include <vector>

// Positions that are unpacked at a time. With few rows of Q their K and V stay in the caches of a core; with many the
// kernel has more to do for each call.
static constexpr int FTQ_FEW_ROWS  = 8;
static constexpr int FTQ_TILE_FEW  = 512;
static constexpr int FTQ_TILE_MANY = 1024;

const char * iqk_ftq_to_q8_0(int type, int n, const void * x, size_t stride, int n_rows, iqk_ftq_slot slot) {
    thread_local std::vector<char> buffers[2];

    const size_t row_size = ggml_row_size(GGML_TYPE_Q8_0, n);
    auto &       buffer   = buffers[slot];
    if (buffer.size() < n_rows * row_size) {
        buffer.resize(n_rows * row_size);
    }
    ggml_ftq_rows_to_q8_0((ggml_type) type, x, stride, buffer.data(), n, n_rows);
    return buffer.data();
}

#    if defined GGML_IQK_FLASH_ATTENTION

static bool ftq_is_seen(const char * mask, int stride_m, int nq, int n) {
    for (int j = stride_m == 0 ? 0 : nq - 1; j >= 0; --j) {
        const uint16_t * m    = (const uint16_t *) (mask + (int64_t) j * stride_m);
        int              seen = 0;
        for (int i = 0; i < n; ++i) {
            seen |= m[i] == 0;
        }
        if (seen) {
            return true;
        }
    }
    return false;
}

// adds what a row got of other positions; M is -INFINITY where it saw none
static void ftq_add(int Dv, float * R, float & M, float & S, const float * R2, float M2, float S2) {
    if (M2 == -INFINITY) {
        return;
    }
    if (M == -INFINITY) {
        memcpy(R, R2, Dv * sizeof(float));
        M = M2;
        S = S2;
        return;
    }
    const float max = std::max(M, M2);
    const float w   = expf(M - max);
    const float w2  = expf(M2 - max);
    for (int i = 0; i < Dv; ++i) {
        R[i] = w * R[i] + w2 * R2[i];
    }
    M = max;
    S = w * S + w2 * S2;
}

bool iqk_ftq_flash_attn(int           type_k,
                        int           type_v,
                        int           Dk,
                        int           Dv,
                        int           nq,
                        int           nk,
                        int           stride_q,
                        int           stride_k,
                        int           stride_v,
                        int           stride_m,
                        int           stride_qkv,
                        const float * q,
                        const void *  k,
                        const void *  v,
                        const void *  mask,
                        const float * sink,
                        float         scale,
                        float         softcap,
                        float *       qkv,
                        float *       M,
                        float *       S) {
    thread_local std::vector<float> work;

    const bool is_whole = !M || !S;  // nobody else divides by the sums

    // The kernel takes three rows of Q as two and one, and seven as four and three times one, and goes through K and V
    // for each part. Heads that share them get one row or two more, whose results nobody reads.
    const int np = stride_m != 0 || nq > FTQ_FEW_ROWS ? nq : nq > 4 ? FTQ_FEW_ROWS : nq == 3 ? 4 : nq;

    const size_t want = (size_t) np * (Dv + 2) + 2 * nq + (np > nq ? (size_t) np * Dk : 0);
    if (work.size() < want) {
        work.resize(want);
    }
    float * R2 = work.data();
    float * M2 = R2 + (size_t) np * Dv;
    float * S2 = M2 + np;
    if (is_whole) {
        M = S2 + np;
        S = M + nq;
    }
    if (np > nq) {
        float * Q = S2 + np + 2 * nq;
        for (int j = 0; j < np; ++j) {
            memcpy(Q + (size_t) j * Dk, (const char *) q + (int64_t) std::min(j, nq - 1) * stride_q,
                   Dk * sizeof(float));
        }
        q        = Q;
        stride_q = Dk * sizeof(float);
    }
    for (int j = 0; j < nq; ++j) {
        M[j] = -INFINITY;
        S[j] = 0.0f;
    }

    const int tile = nq <= FTQ_FEW_ROWS ? FTQ_TILE_FEW : FTQ_TILE_MANY;

    // at least one tile is computed, so that what has no kernel is told to all threads
    bool any = false;
    for (int i = 0; i < nk; i += tile) {
        const int    n  = std::min(tile, nk - i);
        const char * m  = (const char *) mask + i * sizeof(uint16_t);
        const char * kt = (const char *) k + (int64_t) i * stride_k;
        const char * vt = (const char *) v + (int64_t) i * stride_v;
        if ((any || i + n < nk) && !ftq_is_seen(m, stride_m, nq, n)) {
            continue;
        }
        any = true;

        int tk = type_k, tv = type_v, sk = stride_k, sv = stride_v;
        if (iqk_is_ftq(type_k)) {
            kt = iqk_ftq_to_q8_0(type_k, Dk, kt, stride_k, n, IQK_FTQ_SLOT_K);
            tk = GGML_TYPE_Q8_0;
            sk = ggml_row_size(GGML_TYPE_Q8_0, Dk);
        }
        if (iqk_is_ftq(type_v)) {
            vt = iqk_ftq_to_q8_0(type_v, Dv, vt, stride_v, n, IQK_FTQ_SLOT_V);
            tv = GGML_TYPE_Q8_0;
            sv = ggml_row_size(GGML_TYPE_Q8_0, Dv);
        }
        if (!iqk_flash_attn_impl(tk, tv, Dk, Dv, np, n, stride_q, sk, sv, stride_m, Dv, q, kt, vt, m, nullptr, 0, scale,
                                 softcap, R2, M2, S2)) {
            return false;
        }
        for (int j = 0; j < nq; ++j) {
            ftq_add(Dv, qkv + (int64_t) j * stride_qkv, M[j], S[j], R2 + (int64_t) j * Dv, M2[j], S2[j]);
        }
    }

    for (int j = 0; j < nq; ++j) {
        float * R = qkv + (int64_t) j * stride_qkv;
        if (M[j] == -INFINITY) {
            memset(R, 0, Dv * sizeof(float));
        }
        if (!is_whole) {
            continue;
        }
        // a sink counts like one more position whose V is 0
        const float max  = sink ? std::max(M[j], *sink) : M[j];
        const float w    = M[j] == -INFINITY ? 0.0f : expf(M[j] - max);
        const float sum  = w * S[j] + (sink ? expf(*sink - max) : 0.0f);
        const float norm = sum > 0.0f ? w / sum : 0.0f;
        for (int d = 0; d < Dv; ++d) {
            R[d] *= norm;
        }
    }
    return true;
}

#    endif

#endif
