#pragma once

// The KV cache types ftq4, ftq3 and ftq2 on CUDA, HIP and MUSA; see ggml-ftq-impl.h for the format, whose names are here,
// too. k is 4, 3 or 2 everywhere. A block is read as 1 + 4k words of 16 bits.

#include "common.cuh"
#include "ggml-ftq.h"

static constexpr __host__ __device__ bool ggml_cuda_is_ftq(ggml_type type) {
    return type == GGML_TYPE_FTQ4 || type == GGML_TYPE_FTQ3 || type == GGML_TYPE_FTQ2;
}

static constexpr __host__ __device__ int ggml_cuda_ftq_bits(ggml_type type) {
    return type == GGML_TYPE_FTQ4 ? 4 : type == GGML_TYPE_FTQ3 ? 3 : 2;
}

void ggml_cuda_ftq_set_rows(ggml_backend_cuda_context & ctx, ggml_tensor * dst);

// copies from and to F32 of the same shape
bool ggml_cuda_ftq_cpy_supported(const ggml_tensor * src, const ggml_tensor * dst);
void ggml_cuda_ftq_cpy(ggml_backend_cuda_context & ctx, const ggml_tensor * src, ggml_tensor * dst);

// says once that FlashAttention converts K and V to f16
void ggml_cuda_ftq_warn_f16(ggml_type type_K, ggml_type type_V);

// The values of all 128 indices: those of 64 to 127 are those of 0 to 63 backwards, with the other sign.
struct ftq_table_128 {
    int8_t value[128];

    constexpr ftq_table_128(const int8_t (&lower)[64]) : value() {
        for (int i = 0; i < 64; ++i) {
            value[i]       = lower[i];
            value[127 - i] = (int8_t) -lower[i];
        }
    }
};

// clang-format off
// one line of a cache each, so that no load of a warp takes two
alignas(128) static const __device__ ftq_table_128 ftq_tables[3] = {
    { {
      58,   -8,   18,  -41,  -62,  -19,   21,   62,   43,   -1,    9,  -49,   53,  -39,   13,  -13,
     105,   22,  -50,  -13,   -8,   25,   86, -107,   41,  -10,  -37,   10,  -72,   39,  -25,    6,
     -64,  -33,   50,    9,   82,    4,  -17,   27,    8,   48,  -71,  -20,  -29,  -89,   47,   18,
      64,   28,   -8,  -10,  -28,  -46,   44,   20,    3,   36,   62,  -34,   23,    3,  -71,  -27,
    } },
    { {
      36,  -92,  -55,   -2,   16,  -34,  -15,   61,  -22,   31, -102,   53,   76,   -2,   12,   18,
     -36,   -2,   12,   28,  -85,  -11,   44,  -58,    8,  -74,   57,   19,   39,  -27,   28,   -5,
      67,  -59,  -30,  -14,   -3,   31,  -44,   11,   39,  -20,   22,    6,  -10,  -75,  -37,  -51,
      91,   20,   44,  -23,  -44,   68,    1,  119,  -37,   71,  -52,   28,   50,   12,   -4,  -19,
    } },
    { {
      33,  -66,   -2,   43,   20,   26,   -9,  -51,  -35,   95,  -19,   58,  -24,   11,    5,  -75,
     -22,  -47,   -7,    6,  -73,   70,    0,   57,   41,   32,  -36,   -3,  -14,   91,   21,   13,
       2,   39,   10,   -7,   17,  -44,  -18,  104,   85,  -80,  -14,  -27,   64,  -29,   30,  125,
      15,  -10,  -54,  -44,  -31,  -65,   60,   27,  -48,   48,    4,  -35,   54,  -18,  -24,   39,
    } },
};
// clang-format on

template <int k> static __device__ __forceinline__ int ftq_value(int index) {
    return ftq_tables[k - 2].value[index];
}

// value of a scale's code times 2^shift
static __device__ __forceinline__ float ftq_scale(int code, int shift) {
    const float step = __uint_as_float((uint32_t) (127 - 17 + shift) << 23);
    return code < 8 ? (float) code * step : __uint_as_float((uint32_t) (code + ((127 - 15 + shift) << 3)) << 20);
}

// a 32nd of the scale of value iqs
static __device__ __forceinline__ float ftq_scale_32nd(const uint16_t * block, int iqs) {
    const int head = block[0];
    int       code = head & 0xFF;
    if (iqs >= QK_FTQ / 2) {
        code += ((head >> 8) & 7) - 4;
        code = code < 0 ? 0 : code > 255 ? 255 : code;
    }
    return ftq_scale(code, -5);
}

// the bits that hold the indices of value iqs, at the bottom, and of those after it as far as a multiple of 4
template <int k> static __device__ __forceinline__ uint32_t ftq_window(const uint16_t * block, int iqs) {
    const int      at    = k * iqs + k + 9;
    const int      word  = at >> 4;
    const uint32_t after = block[word < 4 * k ? word + 1 : word];  // not beyond the block, whose last bits need no more
    return (block[word] | (after << 16)) >> (at & 15);
}

// table values of iqs to iqs + 3 as four bytes; iqs is a multiple of 4
template <int k> static __device__ __forceinline__ int ftq_values_4(const uint16_t * block, int iqs) {
    const uint32_t bits   = ftq_window<k>(block, iqs);
    uint32_t       result = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        result |= (uint32_t) (uint8_t) ftq_value<k>((bits >> (k * i)) & 127) << (8 * i);
    }
    return (int) result;
}

// value iqs
template <int k> static __device__ __forceinline__ float ftq_dequantize(const uint16_t * block, int iqs) {
    return ftq_scale_32nd(block, iqs) * (float) ftq_value<k>(ftq_window<k>(block, iqs) & 127);
}

// values iqs to iqs + 3 times four bytes
template <int k> static __device__ __forceinline__ float ftq_dot_4(const uint16_t * block, int iqs, int bytes) {
    return ftq_scale_32nd(block, iqs) * (float) ggml_cuda_dp4a(ftq_values_4<k>(block, iqs), bytes, 0);
}

template <int k> static __device__ __forceinline__ auto ftq_block(const void * x, int64_t ib) {
    return (const uint16_t *) x + ib * (1 + 4 * k);
}

// a dequantize_kernel_t
template <int k>
static __device__ __forceinline__ void dequantize_ftq(const void * vx, const int64_t ib, const int iqs, float2 & v) {
    v.x = ftq_dequantize<k>(ftq_block<k>(vx, ib), iqs + 0);
    v.y = ftq_dequantize<k>(ftq_block<k>(vx, ib), iqs + 1);
}

// entries of the switches in convert.cu
#define GGML_CUDA_FTQ_CONVERT(convert)                \
    case GGML_TYPE_FTQ4:                              \
        return convert<QK_FTQ, 1, dequantize_ftq<4>>; \
    case GGML_TYPE_FTQ3:                              \
        return convert<QK_FTQ, 1, dequantize_ftq<3>>; \
    case GGML_TYPE_FTQ2:                              \
        return convert<QK_FTQ, 1, dequantize_ftq<2>>

// FlashAttention vector kernels

template <int k, int D, int nthreads>
static __device__ __forceinline__ float vec_dot_fattn_vec_KQ_ftq(const char * __restrict__ K_c,
                                                                 const void * __restrict__ Q_v,
                                                                 const int * __restrict__ Q_q8,
                                                                 const void * __restrict__ Q_ds_v) {
    GGML_UNUSED(Q_v);

    float sum = 0.0f;

#pragma unroll
    for (int k_KQ_0 = 0; k_KQ_0 < int(D / sizeof(int)); k_KQ_0 += nthreads) {
        const int k_KQ = k_KQ_0 + (nthreads == WARP_SIZE ? threadIdx.x : threadIdx.x % nthreads);
        const int i    = 4 * k_KQ;

        const float2 Q_ds = ((const float2 *) Q_ds_v)[k_KQ_0 / nthreads];
        sum += Q_ds.x * ftq_dot_4<k>(ftq_block<k>(K_c, i / QK_FTQ), i % QK_FTQ, Q_q8[k_KQ_0 / nthreads]);
    }

    return sum;
}

template <int k, typename T, int ne>
static __device__ __forceinline__ void dequantize_V_ftq(const void * __restrict__ vx,
                                                        void * __restrict__ dst,
                                                        const int64_t i0) {
    static_assert(ne == 4, "bad ne");
    const uint16_t * block = ftq_block<k>(vx, i0 / QK_FTQ);
    const int        iqs   = i0 % QK_FTQ;

    const float    d  = ftq_scale_32nd(block, iqs);
    const int      q  = ftq_values_4<k>(block, iqs);
    const int8_t * q8 = (const int8_t *) &q;

#ifdef FP16_AVAILABLE
    if constexpr (std::is_same_v<T, half>) {
        const half2 d2 = __float2half2_rn(d);

#    pragma unroll
        for (int l0 = 0; l0 < ne; l0 += 2) {
            ((half2 *) dst)[l0 / 2] = d2 * make_half2(q8[l0 + 0], q8[l0 + 1]);
        }
    } else
#endif  // FP16_AVAILABLE
        if constexpr (std::is_same_v<T, float>) {
#pragma unroll
            for (int l = 0; l < ne; ++l) {
                ((float *) dst)[l] = d * q8[l];
            }
        } else {
            static_assert(std::is_same_v<T, void>, "bad type");
        }
}
