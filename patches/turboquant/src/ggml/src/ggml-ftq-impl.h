#pragma once

// The one implementation of the FTQ formats, for ggml-base (plain C, with GGML_FTQ_SCALAR) and for ggml-cpu (with what
// vectors it is compiled for). All do the same arithmetic on whole numbers, and write and read the same bytes.
//
// A block has 64 values. Its stream of bits are 7 - k bits of a start and then k bits for each value, k = 4, 3 or 2. The
// 7 bits that end with those of a value are its index:
//
//     value = half(scale) * table[index] / 32
//
// So a value has 128 choices, of which its own bits select 2^k and the bits before it the others. What those bits before
// a value are is its group: there are G = 2^(7-k). All indices that begin with the bits g lead to group g:
//
//     index = own << (7-k) | group before        group after = index >> k
//
// The writer finds the cheapest path through the block by Viterbi's algorithm, for some scales, and keeps the best.
// The bits of a block are its format and do not change; a writer may choose others.

#include "ggml-ftq.h"

#include <math.h>
#include <string.h>

#if !defined(GGML_FTQ_SCALAR)
#    if defined(__AVX2__)
#        include <immintrin.h>
#        define GGML_FTQ_AVX2
#    elif defined(__ARM_NEON) && defined(__aarch64__)
#        include <arm_neon.h>
#        define GGML_FTQ_NEON
#    endif
#endif

#if defined(_MSC_VER)
#    define GGML_FTQ_INLINE static __forceinline
#else
#    define GGML_FTQ_INLINE static inline __attribute__((always_inline))
#endif

enum {
    FTQ_STATES = 128,
    FTQ_HALF   = QK_FTQ / 2,  // values that share a scale
    FTQ_TRIES  = 3,           // scales tried for each half
    FTQ_TOP    = 247,         // the largest scale, of those that are finite
};

// Values of the indices 0 to 63. Those of 64 to 127 are the same backwards, with the other sign.
// clang-format off
static const int8_t ftq_table[3][64] = {
    {
      58,   -8,   18,  -41,  -62,  -19,   21,   62,   43,   -1,    9,  -49,   53,  -39,   13,  -13,
     105,   22,  -50,  -13,   -8,   25,   86, -107,   41,  -10,  -37,   10,  -72,   39,  -25,    6,
     -64,  -33,   50,    9,   82,    4,  -17,   27,    8,   48,  -71,  -20,  -29,  -89,   47,   18,
      64,   28,   -8,  -10,  -28,  -46,   44,   20,    3,   36,   62,  -34,   23,    3,  -71,  -27,
    },
    {
      36,  -92,  -55,   -2,   16,  -34,  -15,   61,  -22,   31, -102,   53,   76,   -2,   12,   18,
     -36,   -2,   12,   28,  -85,  -11,   44,  -58,    8,  -74,   57,   19,   39,  -27,   28,   -5,
      67,  -59,  -30,  -14,   -3,   31,  -44,   11,   39,  -20,   22,    6,  -10,  -75,  -37,  -51,
      91,   20,   44,  -23,  -44,   68,    1,  119,  -37,   71,  -52,   28,   50,   12,   -4,  -19,
    },
    {
      33,  -66,   -2,   43,   20,   26,   -9,  -51,  -35,   95,  -19,   58,  -24,   11,    5,  -75,
     -22,  -47,   -7,    6,  -73,   70,    0,   57,   41,   32,  -36,   -3,  -14,   91,   21,   13,
       2,   39,   10,   -7,   17,  -44,  -18,  104,   85,  -80,  -14,  -27,   64,  -29,   30,  125,
      15,  -10,  -54,  -44,  -31,  -65,   60,   27,  -48,   48,    4,  -35,   54,  -18,  -24,   39,
    },
};
// clang-format on

// the largest entry of a table, and the deviation of values that suits it
static const int   ftq_largest[3] = { 107, 119, 125 };
static const float ftq_suited[3]  = { 41.7f, 41.0f, 40.7f };

// value of a scale's code
GGML_FTQ_INLINE float ftq_scale(int code) {
    union {
        uint32_t u;
        float    f;
    } v;

    v.u = (uint32_t) (code + ((127 - 15) << 3)) << 20;
    return code < 8 ? (float) code * (1.0f / (1 << 17)) : v.f;
}

// bits of the half that is 1/32 of it; a half has room for a scale of 4 bits, down to 2^-24
GGML_FTQ_INLINE uint16_t ftq_scale_half(int code) {
    return (uint16_t) (code >= 48 ? (code - 40) << 7 : code < 8 ? code << 2 : (8 | (code & 7)) << ((code >> 3) + 1));
}

// nearest code of a scale, from 1 to FTQ_TOP
GGML_FTQ_INLINE int ftq_scale_code(float scale) {
    union {
        float    f;
        uint32_t u;
    } v;

    v.f            = scale;
    const int code = scale < 1.0f / (1 << 14) ? (int) lrintf(scale * (1 << 17)) :
                                                (int) ((v.u + (1 << 19)) >> 20) - ((127 - 15) << 3);
    return code < 1 ? 1 : code > FTQ_TOP ? FTQ_TOP : code;
}

// reading

// the 64 table values of a block, with a gap before the last 32; code0 and code1 are those of its scales
GGML_FTQ_INLINE void ftq_unpack(int k, const uint8_t * b, int8_t * out, int gap, int * code0, int * code1) {
    const int8_t *  table = ftq_table[k - 2];
    const uint8_t * p     = b + 1;

    // a file may hold any bytes
    const int d1 = b[0] + (p[0] & 7) - 4;
    *code0       = b[0];
    *code1       = d1 < 0 ? 0 : d1 > 255 ? 255 : d1;

#if defined(GGML_FTQ_AVX2) && defined(__AVX512VBMI__) && defined(__AVX512BW__)
    // each group of eight values to a quadword, eight indices out of each of them
    const int64_t ones  = 0x0101010101010101ll;
    const int64_t at    = 0x0706050403020100ll;
    const __m512i bytes = _mm512_maskz_loadu_epi8((1ull << (8 * k + 1)) - 1, p);
    const __m512i quads = _mm512_permutexvar_epi8(
        _mm512_setr_epi64(at, at + 1 * k * ones, at + 2 * k * ones, at + 3 * k * ones, at + 4 * k * ones,
                          at + 5 * k * ones, at + 6 * k * ones, at + 7 * k * ones),
        bytes);
    const __m512i   index = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(ones * (k + 1) + at * k), quads);
    const __mmask64 back  = _mm512_test_epi8_mask(index, _mm512_set1_epi8(64));
    const __m512i   i     = _mm512_xor_si512(index, _mm512_maskz_set1_epi8(back, 127));
    const __m512i   value = _mm512_permutexvar_epi8(i, _mm512_loadu_si512(table));
    const __m512i   sign  = _mm512_mask_sub_epi8(value, back, _mm512_setzero_si512(), value);
    _mm256_storeu_si256((__m256i *) out, _mm512_castsi512_si256(sign));
    _mm256_storeu_si256((__m256i *) (out + FTQ_HALF + gap), _mm512_extracti64x4_epi64(sign, 1));
#elif defined(GGML_FTQ_AVX2)
    for (int h = 0; h < QK_FTQ; h += 32) {
        __m256i index;
        if (k == 4) {
            // an even value's index ends with the lower half of a byte, an odd one's with the upper half
            const __m128i l = _mm_loadu_si128((const __m128i *) (p + h / 2));
            const __m128i c = _mm_loadu_si128((const __m128i *) (p + h / 2 + 1));
            const __m128i e = _mm_or_si128(_mm_and_si128(_mm_srli_epi16(l, 5), _mm_set1_epi8(0x07)),
                                           _mm_and_si128(_mm_slli_epi16(c, 3), _mm_set1_epi8(0x78)));
            const __m128i o = _mm_and_si128(_mm_srli_epi16(c, 1), _mm_set1_epi8(127));
            index           = _mm256_set_m128i(_mm_unpackhi_epi8(e, o), _mm_unpacklo_epi8(e, o));
        } else {
            // eight indices lie in 32 bits
            const __m256i first = _mm256_set1_epi32(k == 3 ? 4 : 11);
            const __m256i shift = _mm256_add_epi32(
                first, _mm256_mullo_epi32(_mm256_set1_epi32(k), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)));
            __m256i w[4];
            for (int j = 0; j < 4; ++j) {
                int32_t bits;
                memcpy(&bits, p + k * (h / 8 + j) - (k == 3 ? 0 : 1), sizeof(bits));
                w[j] = _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(bits), shift), _mm256_set1_epi32(127));
            }
            index = _mm256_packus_epi16(_mm256_packs_epi32(w[0], w[1]), _mm256_packs_epi32(w[2], w[3]));
            index = _mm256_permutevar8x32_epi32(index, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        }
        const __m256i back = _mm256_cmpgt_epi8(index, _mm256_set1_epi8(63));
        const __m256i i    = _mm256_xor_si256(index, _mm256_and_si256(back, _mm256_set1_epi8(127)));
        const __m256i bit4 = _mm256_slli_epi16(i, 3);
        const __m256i bit5 = _mm256_slli_epi16(i, 2);
        __m256i       value[4];
        for (int j = 0; j < 4; ++j) {
            value[j] = _mm256_shuffle_epi8(
                _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *) (table + 16 * j))), i);
        }
        value[0] = _mm256_blendv_epi8(value[0], value[1], bit4);
        value[2] = _mm256_blendv_epi8(value[2], value[3], bit4);
        value[0] = _mm256_blendv_epi8(value[0], value[2], bit5);
        value[0] = _mm256_sub_epi8(_mm256_xor_si256(value[0], back), back);
        _mm256_storeu_si256((__m256i *) (out + h + h / FTQ_HALF * gap), value[0]);
    }
#elif defined(GGML_FTQ_NEON)
    const int8x16x4_t values = vld1q_s8_x4(table);
    for (int h = 0; h < QK_FTQ; h += 32) {
        uint8x16_t index[2];
        if (k == 4) {
            // an even value's index ends with the lower half of a byte, an odd one's with the upper half
            const uint8x16_t l = vld1q_u8(p + h / 2);
            const uint8x16_t c = vld1q_u8(p + h / 2 + 1);
            const uint8x16_t e = vandq_u8(vorrq_u8(vshrq_n_u8(l, 5), vshlq_n_u8(c, 3)), vdupq_n_u8(127));
            const uint8x16_t o = vshrq_n_u8(c, 1);
            index[0]           = vzip1q_u8(e, o);
            index[1]           = vzip2q_u8(e, o);
        } else {
            // eight indices lie in 32 bits
            const int32_t   at[8]  = { 0, 1, 2, 3, 4, 5, 6, 7 };
            const int32x4_t first  = vdupq_n_s32(k == 3 ? -4 : -11);
            const int32x4_t shift0 = vsubq_s32(first, vmulq_n_s32(vld1q_s32(at), k));
            const int32x4_t shift1 = vsubq_s32(first, vmulq_n_s32(vld1q_s32(at + 4), k));
            uint8x8_t       w[4];
            for (int j = 0; j < 4; ++j) {
                uint32_t bits;
                memcpy(&bits, p + k * (h / 8 + j) - (k == 3 ? 0 : 1), sizeof(bits));
                const uint32x4_t v = vdupq_n_u32(bits);
                w[j] = vmovn_u16(vcombine_u16(vmovn_u32(vshlq_u32(v, shift0)), vmovn_u32(vshlq_u32(v, shift1))));
            }
            index[0] = vandq_u8(vcombine_u8(w[0], w[1]), vdupq_n_u8(127));
            index[1] = vandq_u8(vcombine_u8(w[2], w[3]), vdupq_n_u8(127));
        }
        for (int j = 0; j < 2; ++j) {
            const uint8x16_t back  = vcgtq_u8(index[j], vdupq_n_u8(63));
            const uint8x16_t i     = veorq_u8(index[j], vandq_u8(back, vdupq_n_u8(127)));
            const int8x16_t  value = vqtbl4q_s8(values, i);
            vst1q_s8(out + h + h / FTQ_HALF * gap + 16 * j,
                     vsubq_s8(veorq_s8(value, vreinterpretq_s8_u8(back)), vreinterpretq_s8_u8(back)));
        }
    }
#else
    for (int t = 0; t < QK_FTQ; ++t) {
        const int at                = k * t + k + 1;
        const int i                 = ((p[at / 8] | p[at / 8 + (at % 8 > 1)] << 8) >> (at % 8)) & 127;
        out[t + t / FTQ_HALF * gap] = i < 64 ? table[i] : (int8_t) -table[127 - i];
    }
#endif
}

// writing

// The trellis of one call in an order that makes lanes of groups: place l*G + g is index g << k | l.
typedef struct {
    int16_t  table[FTQ_STATES];   // values, in parts of a unit so that their squares leave the lowest k bits free
    uint16_t before[FTQ_STATES];  // group before
    uint16_t low[FTQ_STATES];     // l
} ftq_trellis;

GGML_FTQ_INLINE int ftq_parts(int k) {
    return k == 2 ? 2 : 4;
}

GGML_FTQ_INLINE void ftq_trellis_init(int k, ftq_trellis * tr) {
    const int G = FTQ_STATES >> k;
    for (int i = 0; i < FTQ_STATES; ++i) {
        const int at    = (i & ((1 << k) - 1)) * G + (i >> k);
        const int value = i < 64 ? ftq_table[k - 2][i] : -ftq_table[k - 2][127 - i];
        tr->table[at]   = (int16_t) (value * ftq_parts(k));
        tr->before[at]  = (uint16_t) (i & (G - 1));
        tr->low[at]     = (uint16_t) (i & ((1 << k) - 1));
    }
}

// Takes the costs of the groups before half a block to those after it, and keeps the decisions: in the lowest k bits of
// [t*G + g] what the last k bits of the best index are that leads to group g. Returns what was taken off all costs.
// A cost has its index' lowest k bits below it, so that the least one tells them.
GGML_FTQ_INLINE uint32_t
ftq_forward(int k, const ftq_trellis * tr, const int16_t * x, uint16_t * costs, uint16_t * decisions) {
    const int G    = FTQ_STATES >> k;
    const int most = k == 2 ? 254 : 252;  // its square has 16 bits, of which the lowest k are 0

#if defined(GGML_FTQ_AVX2)
    const __m256i clear = _mm256_set1_epi16((short) (0xFFFF << k));
    const __m256i limit = _mm256_set1_epi16((short) most);

    uint32_t taken = 0;
    __m256i  c0    = _mm256_loadu_si256((const __m256i *) costs);
    __m256i  c1    = _mm256_loadu_si256((const __m256i *) (costs + 16));
    for (int t = 0; t < FTQ_HALF; ++t) {
        const __m256i v = _mm256_set1_epi16(x[t]);

        // costs of the groups before the indices of each vector
        __m256i before[8];
        if (k == 4) {
            // two l of eight groups in each; 8 + l comes from where l does
            const __m256i c = _mm256_permute2x128_si256(c0, c0, 0x00);
            for (int i = 0; i < 4; ++i) {
                const __m256i at = _mm256_set_m128i(_mm_set1_epi16((short) (0x0100 + 0x0202 * (2 * i + 1))),
                                                    _mm_set1_epi16((short) (0x0100 + 0x0202 * (2 * i))));
                before[i] = before[i + 4] = _mm256_shuffle_epi8(c, at);
            }
        } else if (k == 3) {
            // groups l and 8 + l by turns
            const __m256i at =
                _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
            const __m256i c = _mm256_shuffle_epi8(_mm256_permute4x64_epi64(c0, 0xD8), at);
            for (int i = 0; i < 8; ++i) {
                before[i] = _mm256_permutevar8x32_epi32(c, _mm256_set1_epi32(i));
            }
        } else {
            // groups l, 4 + l, ... 28 + l in each lane
            const __m256i at =
                _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
            const __m256i a  = _mm256_shuffle_epi8(c0, at);
            const __m256i b  = _mm256_shuffle_epi8(c1, at);
            const __m256i a0 = _mm256_permute4x64_epi64(a, 0x88);  // groups 0 to 15: l = 0, 1
            const __m256i b0 = _mm256_permute4x64_epi64(b, 0x88);
            const __m256i a1 = _mm256_permute4x64_epi64(a, 0xDD);  // l = 2, 3
            const __m256i b1 = _mm256_permute4x64_epi64(b, 0xDD);
            before[0]        = before[1] =
                _mm256_unpacklo_epi64(_mm256_shuffle_epi32(a0, 0x88), _mm256_shuffle_epi32(b0, 0x88));
            before[2] = before[3] =
                _mm256_unpacklo_epi64(_mm256_shuffle_epi32(a0, 0xDD), _mm256_shuffle_epi32(b0, 0xDD));
            before[4] = before[5] =
                _mm256_unpacklo_epi64(_mm256_shuffle_epi32(a1, 0x88), _mm256_shuffle_epi32(b1, 0x88));
            before[6] = before[7] =
                _mm256_unpacklo_epi64(_mm256_shuffle_epi32(a1, 0xDD), _mm256_shuffle_epi32(b1, 0xDD));
        }

        __m256i w[8];
        for (int i = 0; i < 8; ++i) {
            const __m256i table = _mm256_loadu_si256((const __m256i *) (tr->table + 16 * i));
            const __m256i low   = _mm256_loadu_si256((const __m256i *) (tr->low + 16 * i));
            const __m256i d     = _mm256_min_epi16(_mm256_abs_epi16(_mm256_sub_epi16(v, table)), limit);
            w[i]                = _mm256_or_si256(_mm256_adds_epu16(_mm256_mullo_epi16(d, d), before[i]), low);
        }
        // 32 groups need two vectors, even and odd ones
        __m256i best0 = _mm256_min_epu16(_mm256_min_epu16(w[0], w[2]), _mm256_min_epu16(w[4], w[6]));
        __m256i best1 = _mm256_min_epu16(_mm256_min_epu16(w[1], w[3]), _mm256_min_epu16(w[5], w[7]));
        if (k >= 3) {
            best0 = _mm256_min_epu16(best0, best1);
        }
        if (k == 4) {
            best0 = _mm256_min_epu16(best0, _mm256_permute2x128_si256(best0, best0, 0x01));
            _mm_storeu_si128((__m128i *) (decisions + t * G), _mm256_castsi256_si128(best0));
        } else {
            _mm256_storeu_si256((__m256i *) (decisions + t * G), best0);
        }
        if (k == 2) {
            _mm256_storeu_si256((__m256i *) (decisions + t * G + 16), best1);
        }
        c0 = _mm256_and_si256(best0, clear);
        c1 = k == 2 ? _mm256_and_si256(best1, clear) : c0;
        if (t % 8 == 7) {
            const __m256i m256 = _mm256_min_epu16(c0, c1);
            const __m128i m128 = _mm_min_epu16(_mm256_castsi256_si128(m256), _mm256_extracti128_si256(m256, 1));
            const int     less = _mm_extract_epi16(_mm_minpos_epu16(m128), 0);
            c0                 = _mm256_sub_epi16(c0, _mm256_set1_epi16((short) less));
            c1                 = _mm256_sub_epi16(c1, _mm256_set1_epi16((short) less));
            taken += less;
        }
    }
    _mm256_storeu_si256((__m256i *) costs, c0);
    _mm256_storeu_si256((__m256i *) (costs + 16), c1);
    return taken;
#elif defined(GGML_FTQ_NEON)
    const uint16x8_t clear = vdupq_n_u16((uint16_t) (0xFFFF << k));
    const uint16x8_t limit = vdupq_n_u16((uint16_t) most);

    uint32_t taken = 0;
    for (int t = 0; t < FTQ_HALF; ++t) {
        const int16x8_t v = vdupq_n_s16(x[t]);

        uint16x8_t best[4];
        for (int i = 0; i < 4; ++i) {
            best[i] = vdupq_n_u16(0xFFFF);
        }
        // the octets of groups l, 4 + l, ... or the pairs of l and 8 + l
        const uint16x8x4_t octets = vld4q_u16(costs);
        const uint16x8x2_t pairs  = vzipq_u16(vld1q_u16(costs), vld1q_u16(costs + 8));
        uint16_t           pair[16];
        vst1q_u16(pair, pairs.val[0]);
        vst1q_u16(pair + 8, pairs.val[1]);
        for (int i = 0; i < FTQ_STATES / 8; ++i) {
            const int  l = i * 8 / G;
            uint16x8_t before;
            if (k == 4) {
                before = vld1q_dup_u16(costs + (l & 7));
            } else if (k == 3) {
                uint32_t p;
                memcpy(&p, pair + 2 * l, sizeof(p));
                before = vreinterpretq_u16_u32(vdupq_n_u32(p));
            } else {
                before = octets.val[l];
            }
            uint16x8_t d       = vreinterpretq_u16_s16(vabdq_s16(v, vld1q_s16(tr->table + 8 * i)));
            d                  = vminq_u16(d, limit);
            const uint16x8_t w = vorrq_u16(vqaddq_u16(vmulq_u16(d, d), before), vdupq_n_u16((uint16_t) l));
            best[i % (G / 8)]  = vminq_u16(best[i % (G / 8)], w);
        }
        uint16x8_t least = vdupq_n_u16(0xFFFF);
        for (int i = 0; i < G / 8; ++i) {
            vst1q_u16(decisions + t * G + 8 * i, best[i]);
            best[i] = vandq_u16(best[i], clear);
            least   = vminq_u16(least, best[i]);
        }
        const uint16_t less = t % 8 == 7 ? vminvq_u16(least) : 0;
        for (int i = 0; i < G / 8; ++i) {
            vst1q_u16(costs + 8 * i, vsubq_u16(best[i], vdupq_n_u16(less)));
        }
        taken += less;
    }
    return taken;
#else
    uint32_t taken = 0;

    for (int t = 0; t < FTQ_HALF; ++t) {
        uint16_t best[32];
        memset(best, 0xFF, sizeof(best));
        for (int at = 0; at < FTQ_STATES; ++at) {
            int d      = x[t] - tr->table[at];
            d          = d < 0 ? -d : d;
            d          = d > most ? most : d;
            uint32_t c = (uint32_t) (d * d) + costs[tr->before[at]];
            c          = (c > 0xFFFF ? 0xFFFF : c) | tr->low[at];
            if (c < best[at & (G - 1)]) {
                best[at & (G - 1)] = (uint16_t) c;
            }
        }
        memcpy(decisions + t * G, best, G * sizeof(uint16_t));
        for (int g = 0; g < G; ++g) {
            costs[g] = (uint16_t) (best[g] & (0xFFFF << k));
        }
        if (t % 8 == 7) {
            uint16_t least = 0xFFFF;
            for (int g = 0; g < G; ++g) {
                least = costs[g] < least ? costs[g] : least;
            }
            for (int g = 0; g < G; ++g) {
                costs[g] = (uint16_t) (costs[g] - least);
            }
            taken += least;
        }
    }
    return taken;
#endif
}

// x in parts of a unit, and as far as a table goes; returns the squares of what lies beyond
GGML_FTQ_INLINE uint32_t ftq_to_parts(int k, const float * x, float scale, int16_t * out) {
    const int   largest = ftq_largest[k - 2];
    const int   parts   = ftq_parts(k);
    const float inv     = 32.0f / scale;

    uint32_t beyond = 0;
#if defined(GGML_FTQ_AVX2)
    const __m256  far  = _mm256_set1_ps(4096.0f);
    const __m256i most = _mm256_set1_epi32(largest);
    __m256i       sum  = _mm256_setzero_si256();
    for (int t = 0; t < FTQ_HALF; t += 8) {
        __m256 v           = _mm256_mul_ps(_mm256_loadu_ps(x + t), _mm256_set1_ps(inv));
        v                  = _mm256_max_ps(_mm256_min_ps(v, far), _mm256_sub_ps(_mm256_setzero_ps(), far));
        const __m256i i    = _mm256_cvtps_epi32(v);
        const __m256i abs  = _mm256_abs_epi32(i);
        const __m256i in   = _mm256_min_epi32(abs, most);
        const __m256i over = _mm256_sub_epi32(abs, in);
        sum                = _mm256_add_epi32(sum, _mm256_mullo_epi32(over, over));
        const __m256i r    = _mm256_mullo_epi32(_mm256_sign_epi32(in, i), _mm256_set1_epi32(parts));
        const __m256i w    = _mm256_permute4x64_epi64(_mm256_packs_epi32(r, r), 0xD8);
        _mm_storeu_si128((__m128i *) (out + t), _mm256_castsi256_si128(w));
    }
    uint32_t sums[8];
    _mm256_storeu_si256((__m256i *) sums, sum);
    for (int i = 0; i < 8; ++i) {
        beyond += sums[i];
    }
#elif defined(GGML_FTQ_NEON)
    const int32x4_t most = vdupq_n_s32(largest);
    uint32x4_t      sum  = vdupq_n_u32(0);
    for (int t = 0; t < FTQ_HALF; t += 4) {
        float32x4_t v         = vmulq_n_f32(vld1q_f32(x + t), inv);
        v                     = vmaxq_f32(vminq_f32(v, vdupq_n_f32(4096.0f)), vdupq_n_f32(-4096.0f));
        const int32x4_t  i    = vcvtnq_s32_f32(v);
        const int32x4_t  in   = vmaxq_s32(vminq_s32(i, most), vnegq_s32(most));
        const uint32x4_t over = vreinterpretq_u32_s32(vabdq_s32(i, in));
        sum                   = vmlaq_u32(sum, over, over);
        vst1_s16(out + t, vmovn_s32(vmulq_n_s32(in, parts)));
    }
    beyond = vaddvq_u32(sum);
#else
    for (int t = 0; t < FTQ_HALF; ++t) {
        float v        = x[t] * inv;
        v              = v > 4096.0f ? 4096.0f : v < -4096.0f ? -4096.0f : v;
        int       i    = (int) lrintf(v);
        const int over = (i < 0 ? -i : i) - largest;
        if (over > 0) {
            beyond += (uint32_t) (over * over);
            i = i < 0 ? -largest : largest;
        }
        out[t] = (int16_t) (i * parts);
    }
#endif
    return beyond * (uint32_t) (parts * parts);
}

typedef struct {
    uint16_t costs[32];
    uint16_t decisions[FTQ_HALF * 32];
    int      code;
    double   total;  // in the unit of the values
} ftq_half;

// Quantizes half a block with the best of some scales near a guess. before: costs of the groups with the scale of code
// code_before, or NULL. The best of halves[0] and halves[1] is returned.
GGML_FTQ_INLINE int ftq_quantize_half(int                 k,
                                      const ftq_trellis * tr,
                                      const float *       x,
                                      float               guess,
                                      int                 least,
                                      int                 most,
                                      const uint16_t *    before,
                                      int                 code_before,
                                      ftq_half *          halves) {
    const int G = FTQ_STATES >> k;

    static const float factors[FTQ_TRIES] = { 1.0f, 1.0f / 1.15f, 1.15f };

    int best = 0;
    int n    = 0;
    for (int i = 0; i < FTQ_TRIES; ++i) {
        int code = ftq_scale_code(guess * factors[i]);
        code     = code < least ? least : code > most ? most : code;
        if (i > 0 && code == halves[best].code) {
            continue;
        }
        ftq_half *  h     = &halves[n == 0 ? 0 : 1 - best];
        const float scale = ftq_scale(code);

        if (before) {
            float ratio = ftq_scale(code_before) / scale;
            ratio       = ratio * ratio;
            for (int g = 0; g < G; ++g) {
                const float c = (float) before[g] * ratio;
                h->costs[g]   = (uint16_t) (c > 65535.0f ? 0xFFFF : lrintf(c)) & (uint16_t) ~((1 << k) - 1);
            }
        } else {
            memset(h->costs, 0, sizeof(h->costs));
        }
        int16_t  parts[FTQ_HALF];
        uint64_t total = ftq_to_parts(k, x, scale, parts);
        total += ftq_forward(k, tr, parts, h->costs, h->decisions);
        uint16_t rest = h->costs[0];
        for (int g = 1; g < G; ++g) {
            rest = h->costs[g] < rest ? h->costs[g] : rest;
        }
        h->code  = code;
        h->total = (double) (total + rest) * ((double) scale * (double) scale);
        if (n == 0 || h->total < halves[best].total) {
            best = (int) (h - halves);
        }
        n++;
    }
    return best;
}

GGML_FTQ_INLINE void ftq_quantize_block(int k, const ftq_trellis * tr, const float * x, uint8_t * y) {
    const int G = FTQ_STATES >> k;

    float  v[QK_FTQ];
    double sums[2] = { 0.0, 0.0 };
    for (int t = 0; t < QK_FTQ; ++t) {
        float f = x[t] == x[t] ? x[t] : 0.0f;  // no NaN
        f       = f > 57344.0f ? 57344.0f : f < -57344.0f ? -57344.0f : f;
        v[t]    = f;
        sums[t / FTQ_HALF] += (double) f * (double) f;
    }
    memset(y, 0, 2 + 8 * k);
    if (sums[0] + sums[1] == 0.0) {
        y[1] = 4;
        return;
    }

    const float suited = ftq_suited[k - 2] * (1.0f / 32);
    const float guess1 = sqrtf((float) (sums[1] / FTQ_HALF)) / suited;
    float       guess0 = sqrtf((float) (sums[0] / FTQ_HALF)) / suited;
    const float smallest =
        guess1 * 0.7f;  // a half that is much smaller than the other takes the least scale that the other allows
    guess0 = guess0 < smallest ? smallest : guess0;

    ftq_half         first[2];
    ftq_half         second[2];
    const ftq_half * h0 = &first[ftq_quantize_half(k, tr, v, guess0, 1, FTQ_TOP - 3, NULL, 0, first)];

    const int        least = h0->code - 4 < 1 ? 1 : h0->code - 4;
    const ftq_half * h1 =
        &second[ftq_quantize_half(k, tr, v + FTQ_HALF, guess1, least, h0->code + 3, h0->costs, h0->code, second)];

    int group = 0;
    for (int g = 1; g < G; ++g) {
        group = h1->costs[g] < h1->costs[group] ? g : group;
    }
    for (int t = QK_FTQ - 1; t >= 0; --t) {
        const uint16_t * decisions = (t < FTQ_HALF ? h0 : h1)->decisions + t % FTQ_HALF * G;
        const int        index     = group << k | (decisions[group] & ((1 << k) - 1));
        const int        at        = k * t;
        const int        own       = (index >> (7 - k)) << (at % 8);
        y[2 + at / 8] |= (uint8_t) own;
        if (at % 8 + k > 8) {
            y[3 + at / 8] |= (uint8_t) (own >> 8);
        }
        group = index & (G - 1);
    }
    y[0] = (uint8_t) h0->code;
    y[1] = (uint8_t) ((h1->code - h0->code + 4) | group << (k + 1));
}

GGML_FTQ_INLINE void ftq_quantize_row(int k, const float * x, uint8_t * y, int64_t n) {
    assert(n % QK_FTQ == 0);
    ftq_trellis tr;
    ftq_trellis_init(k, &tr);
    for (int64_t i = 0; i < n / QK_FTQ; ++i) {
        ftq_quantize_block(k, &tr, x + i * QK_FTQ, y + i * (2 + 8 * k));
    }
}

GGML_FTQ_INLINE void ftq_dequantize_row(int k, const uint8_t * x, float * y, int64_t n) {
    assert(n % QK_FTQ == 0);
    for (int64_t i = 0; i < n / QK_FTQ; ++i) {
        int8_t q[QK_FTQ];
        int    code0, code1;
        ftq_unpack(k, x + i * (2 + 8 * k), q, 0, &code0, &code1);
        const float d0 = ftq_scale(code0) * (1.0f / 32);
        const float d1 = ftq_scale(code1) * (1.0f / 32);
        for (int j = 0; j < FTQ_HALF; ++j) {
            y[i * QK_FTQ + j] = q[j] * d0;
        }
        for (int j = FTQ_HALF; j < QK_FTQ; ++j) {
            y[i * QK_FTQ + j] = q[j] * d1;
        }
    }
}

// as whole numbers, and two scales for each block
GGML_FTQ_INLINE void ftq_row_to_i8(int k, const uint8_t * x, int8_t * q, float * d, int64_t d_stride, int64_t n) {
    assert(n % QK_FTQ == 0);
    for (int64_t i = 0; i < n / QK_FTQ; ++i) {
        int code0, code1;
        ftq_unpack(k, x + i * (2 + 8 * k), q + i * QK_FTQ, 0, &code0, &code1);
        d[2 * i * d_stride]       = ftq_scale(code0) * (1.0f / 32);
        d[(2 * i + 1) * d_stride] = ftq_scale(code1) * (1.0f / 32);
    }
}

// as blocks of q8_0, which hold the values exactly: a half and 32 bytes
GGML_FTQ_INLINE void ftq_row_to_q8_0(int k, const uint8_t * x, uint8_t * y, int64_t n) {
    assert(n % QK_FTQ == 0);
    for (int64_t i = 0; i < n / QK_FTQ; ++i, y += 2 * (2 + FTQ_HALF)) {
        int code0, code1;
        ftq_unpack(k, x + i * (2 + 8 * k), (int8_t *) y + 2, 2, &code0, &code1);
        const uint16_t d0 = ftq_scale_half(code0);
        const uint16_t d1 = ftq_scale_half(code1);
        memcpy(y, &d0, 2);
        memcpy(y + 2 + FTQ_HALF, &d1, 2);
    }
}
