#pragma once

// Tiles of K and V as whole numbers of 8 bits, with a scale for each 32 values of a row.
//
// A tile is unpacked once for all rows of Q. With AVX2 a lane of a vector is a position of K, so that no sum goes across
// lanes, and a column of V. Q is rounded to 8 bits as for a dot product with Q8_0; the weights of V are not rounded.

#include "common.h"
#include "ggml-common.h"

#include <algorithm>
#include <cstring>

#if defined(__AVX2__) && defined(__FMA__)
#    define FATTN_I8_AVX2
#    if defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))
#        define FATTN_I8_VNNI
#    endif
#endif

static constexpr int64_t FATTN_I8_BLOCK  = 32;               // values that share a scale
static constexpr int64_t FATTN_I8_KV     = GGML_FA_TILE_KV;  // positions of a tile
static constexpr int64_t FATTN_I8_K_ROWS = 8;                // rows of K that are put into lanes together

// Unpacks n rows of D values, at base + at[i]*stride, to q + i*D, and the scale of each 32 values b to d[b*d_stride + i].
typedef void (*fattn_to_i8_t)(const char *    base,
                              size_t          stride,
                              const int64_t * at,
                              int64_t         n,
                              int8_t *        q,
                              float *         d,
                              int64_t         d_stride,
                              int64_t         D);

// Scales [D/32][KV], then the values: of V [KV][D], of K with AVX2 [D/4][KV][4], else like V; then room for rows of K.
static inline int64_t fattn_i8_tile_size(int64_t D) {
    return FATTN_I8_KV * (D + D / FATTN_I8_BLOCK * sizeof(float)) + FATTN_I8_K_ROWS * D;
}

static inline int8_t * fattn_i8_tile_values(void * tile, int64_t D) {
    return (int8_t *) tile + FATTN_I8_KV * D / FATTN_I8_BLOCK * sizeof(float);
}

// Sets a row of Q, of D values and less than 4*D bytes: the values, the values without their signs, D/32 scales, and
// D/32 sums that dot products begin with. VNNI wants one side without signs; K has 128 added there.
static inline void fattn_i8_set_row(const block_q8_0 * x, void * row, int64_t D) {
    int8_t *  q   = (int8_t *) row;
    float *   d   = (float *) (q + 2 * D);
    int32_t * sum = (int32_t *) (d + D / FATTN_I8_BLOCK);
    for (int64_t b = 0; b < D / FATTN_I8_BLOCK; ++b) {
        d[b]   = GGML_CPU_FP16_TO_FP32(x[b].d);
        sum[b] = 0;
        for (int64_t j = 0; j < FATTN_I8_BLOCK; ++j) {
            const int8_t v                = x[b].qs[j];
            q[b * FATTN_I8_BLOCK + j]     = v;
            q[D + b * FATTN_I8_BLOCK + j] = v < 0 ? -v : v;
#ifdef FATTN_I8_VNNI
            sum[b] -= 128 * v;
#endif
        }
    }
}

#ifdef FATTN_I8_AVX2

// adds four products to each 32 bits; abs is q without signs
static inline __m256i fattn_i8_dot4(__m256i sum, __m256i q, __m256i abs, __m256i k) {
#    if !defined(FATTN_I8_VNNI)
    const __m256i pairs = _mm256_maddubs_epi16(abs, _mm256_sign_epi8(k, q));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#    elif defined(__AVX512VNNI__) && defined(__AVX512VL__)
    GGML_UNUSED(abs);
    return _mm256_dpbusd_epi32(sum, k, q);
#    else
    GGML_UNUSED(abs);
    return _mm256_dpbusd_avx_epi32(sum, k, q);
#    endif
}

// 32 values of 8 positions: [8][stride] to [8][KV][4]
static inline void fattn_i8_transpose(const int8_t * GGML_RESTRICT x, int64_t stride, int8_t * GGML_RESTRICT y) {
    __m256i a[8];
    __m256i b[8];
    for (int i = 0; i < 8; ++i) {
        a[i] = _mm256_loadu_si256((const __m256i *) (x + i * stride));
    }
    for (int i = 0; i < 8; i += 2) {
        b[i]     = _mm256_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        a[i]     = _mm256_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm256_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm256_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        b[i]     = _mm256_permute2x128_si256(a[i], a[i + 4], 0x20);
        b[i + 4] = _mm256_permute2x128_si256(a[i], a[i + 4], 0x31);
    }
    for (int i = 0; i < 8; ++i) {
#    ifdef FATTN_I8_VNNI
        b[i] = _mm256_xor_si256(b[i], _mm256_set1_epi8((char) 128));
#    endif
        _mm256_storeu_si256((__m256i *) (y + i * 4 * FATTN_I8_KV), b[i]);
    }
}

#endif

// Unpacks rows of K like fattn_to_i8_t.
static inline void fattn_i8_set_k(fattn_to_i8_t   to_i8,
                                  const char *    base,
                                  size_t          stride,
                                  const int64_t * at,
                                  int64_t         n,
                                  void *          tile,
                                  int64_t         D) {
    float *  d = (float *) tile;
    int8_t * q = fattn_i8_tile_values(tile, D);
#ifdef FATTN_I8_AVX2
    int8_t * rows = q + FATTN_I8_KV * D;
    for (int64_t u = 0; u < n; u += FATTN_I8_K_ROWS) {
        // lanes of positions that are not there are not used
        to_i8(base, stride, at + u, std::min(FATTN_I8_K_ROWS, n - u), rows, d + u, FATTN_I8_KV, D);
        for (int64_t b = 0; b < D; b += FATTN_I8_BLOCK) {
            fattn_i8_transpose(rows + b, D, q + b * FATTN_I8_KV + 4 * u);
        }
    }
#else
    to_i8(base, stride, at, n, q, d, FATTN_I8_KV, D);
#endif
}

// The products of a row of Q with n rows of K. The sum of a position does not depend on the others.
static inline void fattn_i8_dots(const void * row, const void * tile, int64_t n, int64_t D, float * out) {
    const int8_t * q  = (const int8_t *) row;
    const float *  qd = (const float *) (q + 2 * D);
    const float *  d  = (const float *) tile;
    const int8_t * k  = fattn_i8_tile_values((void *) tile, D);
#ifdef FATTN_I8_AVX2
    constexpr int64_t N = 4;  // vectors at once

    const int32_t * begin = (const int32_t *) (qd + D / FATTN_I8_BLOCK);
    float           sums[FATTN_I8_KV];
    for (int64_t u = 0; u < n; u += 8 * N) {
        __m256 sum[N];
        for (int64_t i = 0; i < N; ++i) {
            sum[i] = _mm256_setzero_ps();
        }
        for (int64_t b = 0; b < D / FATTN_I8_BLOCK; ++b) {
            __m256i acc[N];
            for (int64_t i = 0; i < N; ++i) {
                acc[i] = _mm256_set1_epi32(begin[b]);
            }
            for (int64_t g = b * FATTN_I8_BLOCK; g < (b + 1) * FATTN_I8_BLOCK; g += 4) {
                int32_t four[2];
                memcpy(&four[0], q + g, 4);
                memcpy(&four[1], q + D + g, 4);
                const __m256i sign = _mm256_set1_epi32(four[0]);
                const __m256i abs  = _mm256_set1_epi32(four[1]);
                for (int64_t i = 0; i < N; ++i) {
                    const int8_t * at = k + g * FATTN_I8_KV + 4 * (u + 8 * i);
                    acc[i]            = fattn_i8_dot4(acc[i], sign, abs, _mm256_loadu_si256((const __m256i *) at));
                }
            }
            const __m256 s = _mm256_set1_ps(qd[b]);
            for (int64_t i = 0; i < N; ++i) {
                const __m256 kd = _mm256_loadu_ps(d + b * FATTN_I8_KV + u + 8 * i);
                sum[i]          = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[i]), _mm256_mul_ps(s, kd), sum[i]);
            }
        }
        for (int64_t i = 0; i < N; ++i) {
            _mm256_storeu_ps(sums + u + 8 * i, sum[i]);
        }
    }
    memcpy(out, sums, n * sizeof(float));
#else
    for (int64_t u = 0; u < n; ++u) {
        float sum = 0.0f;
        for (int64_t b = 0; b < D / FATTN_I8_BLOCK; ++b) {
            const int8_t * x = q + b * FATTN_I8_BLOCK;
            const int8_t * y = k + u * D + b * FATTN_I8_BLOCK;

            int32_t acc = 0;
            for (int64_t j = 0; j < FATTN_I8_BLOCK; ++j) {
                acc += x[j] * y[j];
            }
            sum += acc * (qd[b] * d[b * FATTN_I8_KV + u]);
        }
        out[u] = sum;
    }
#endif
}

#ifdef FATTN_I8_AVX2

// values of V
static inline GGML_F32_VEC fattn_i8_load(const int8_t * x) {
#    if defined(__AVX512F__)
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *) x)));
#    else
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *) x)));
#    endif
}

// Adds n rows of V with the weights [R][n] of R rows of Q.
template <int R>
static inline void fattn_i8_add_v_rows(const float * weights, const void * tile, int64_t n, int64_t D, float * out) {
    constexpr int N = FATTN_I8_BLOCK / GGML_F32_EPR;

    const float *  d = (const float *) tile;
    const int8_t * v = fattn_i8_tile_values((void *) tile, D);

    for (int64_t b = 0; b < D / FATTN_I8_BLOCK; ++b) {
        float w[R][FATTN_I8_KV];
        for (int r = 0; r < R; ++r) {
            for (int64_t u = 0; u < n; ++u) {
                w[r][u] = weights[r * n + u] * d[b * FATTN_I8_KV + u];
            }
        }
        GGML_F32_VEC acc[R][N];
        for (int r = 0; r < R; ++r) {
            for (int i = 0; i < N; ++i) {
                acc[r][i] = GGML_F32_VEC_LOAD(out + r * D + b * FATTN_I8_BLOCK + i * GGML_F32_EPR);
            }
        }
        for (int64_t u = 0; u < n; ++u) {
            for (int i = 0; i < N; ++i) {
                const GGML_F32_VEC x = fattn_i8_load(v + u * D + b * FATTN_I8_BLOCK + i * GGML_F32_EPR);
                for (int r = 0; r < R; ++r) {
                    acc[r][i] = GGML_F32_VEC_FMA(acc[r][i], x, GGML_F32_VEC_SET1(w[r][u]));
                }
            }
        }
        for (int r = 0; r < R; ++r) {
            for (int i = 0; i < N; ++i) {
                GGML_F32_VEC_STORE(out + r * D + b * FATTN_I8_BLOCK + i * GGML_F32_EPR, acc[r][i]);
            }
        }
    }
}

// The same for any number of rows of Q.
static inline void fattn_i8_add_v(const float * weights,
                                  int64_t       n_rows,
                                  const void *  tile,
                                  int64_t       n,
                                  int64_t       D,
                                  float *       out) {
    // as many rows as leave the sums in registers
    while (n_rows >= 3) {
        fattn_i8_add_v_rows<3>(weights, tile, n, D, out);
        weights += 3 * n;
        out += 3 * D;
        n_rows -= 3;
    }
    if (n_rows == 2) {
        fattn_i8_add_v_rows<2>(weights, tile, n, D, out);
    } else if (n_rows == 1) {
        fattn_i8_add_v_rows<1>(weights, tile, n, D, out);
    }
}

#endif
