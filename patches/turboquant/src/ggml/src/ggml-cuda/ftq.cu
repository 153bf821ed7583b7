#include "ftq.cuh"

// A block of 96 threads writes a block of values. 32 threads ("lanes") follow the trellis with one of the three scales
// that are tried for a half. 4, 2 or 1 lanes have a group, and each tries 4 of the indices that lead to it. Lanes know the
// costs of other groups by shuffles, also where a warp has 64 threads.
//
// What decides is whole numbers, double precision, or rounded by intrinsics as on a CPU, so that the bytes are a CPU's
// with any options of the compiler.

#define FTQ_TRIES   3
#define FTQ_LANES   32
#define FTQ_THREADS (FTQ_TRIES * FTQ_LANES)
#define FTQ_TOP     247  // the largest scale, of those that are finite

// what the threads of a block share
template <int k> struct ftq_shared {
    float    x[QK_FTQ];
    float    guess[2];
    int      any;                                               // whether a value is not 0
    uint32_t costs[FTQ_TRIES][128 >> k];                        // of the groups after the first half
    uint32_t decisions[2][FTQ_TRIES][FTQ_LANES / 8][128 >> k];  // k bits for each of 8 values
    double   total[FTQ_TRIES];
    uint16_t words[1 + 4 * k];
};

// nearest code of a scale, from 1 to FTQ_TOP
static __device__ __forceinline__ int ftq_scale_code(float scale) {
    const int code = scale < 1.0f / (1 << 14) ? __float2int_rn(scale * (1 << 17)) :
                                                (int) ((__float_as_uint(scale) + (1 << 19)) >> 20) - ((127 - 15) << 3);
    return min(max(code, 1), FTQ_TOP);
}

// code of a scale that is tried
static __device__ __forceinline__ int ftq_code_of_try(float guess, int i, int least, int most) {
    // 1, 1 / 1.15 and 1.15
    const float factor = __uint_as_float(i == 0 ? 0x3F800000 : i == 1 ? 0x3F5E9BD3 : 0x3F933333);
    return min(max(ftq_scale_code(__fmul_rn(guess, factor)), least), most);
}

// No number counts as 0, and an endless one as the largest.
static __device__ __forceinline__ float ftq_number(float f) {
    const uint32_t bits = __float_as_uint(f);
    const uint32_t size = bits & 0x7FFFFFFF;
    const uint32_t most = 0x47600000;  // 57344
    return size > 0x7F800000 ? 0.0f : size > most ? __uint_as_float((bits ^ size) | most) : f;
}

// the scale that suits the values of a half
template <int k> static __device__ __forceinline__ float ftq_guess(const float * x) {
    // The CPU adds the squares in this order, too: they have 48 bits, and a sum may lose some.
    double sum = 0.0;
    for (int t = 0; t < FTQ_LANES; ++t) {
        sum += (double) x[t] * (double) x[t];
    }
    const float suited = k == 4 ? 40.7f : k == 3 ? 41.0f : 41.7f;
    return __fdiv_rn(__fsqrt_rn((float) (sum / FTQ_LANES)), suited * (1.0f / 32));
}

template <int from, int to> static __device__ __forceinline__ uint32_t ftq_least_of_lanes(uint32_t x) {
#pragma unroll
    for (int offset = from; offset < to; offset *= 2) {
        x = min(x, __shfl_xor_sync(0xFFFFFFFF, x, offset, FTQ_LANES));
    }
    return x;
}

// Finds the best path through half ih of a block for each scale, and returns the best scale's try. after is that of the
// half before with its scale's code.
template <int k>
static __device__ __forceinline__ int
ftq_quantize_half(ftq_shared<k> & s, int ih, float guess, int least, int most, int after, int after_code) {
    constexpr int      G       = 128 >> k;
    constexpr uint32_t low     = (1 << k) - 1;
    constexpr int      parts   = k == 2 ? 2 : 4;
    constexpr int      limit   = k == 2 ? 254 : 252;
    constexpr int      largest = k == 4 ? 125 : k == 3 ? 119 : 107;

    const int lane  = threadIdx.x % FTQ_LANES;
    const int i     = threadIdx.x / FTQ_LANES;
    const int group = lane % G;
    const int first = lane / G * 4;  // of the four last bits of indices that this lane tries

    const int   code  = ftq_code_of_try(guess, i, least, most);
    const float scale = ftq_scale(code, 0);

    int table[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        table[j] = ftq_value<k>(group << k | (first + j)) * parts;
    }

    uint32_t cost = 0;
    if (ih > 0) {
        float ratio   = __fdiv_rn(ftq_scale(after_code, 0), scale);
        ratio         = __fmul_rn(ratio, ratio);
        const float c = __fmul_rn((float) s.costs[after][group], ratio);
        cost          = (c > 65535.0f ? 0xFFFF : (uint32_t) __float2int_rn(c)) & ~low;
    }

    // the value that has the lane's number in parts of a unit, and the square of what lies beyond the table
    const float v      = __fmul_rn(s.x[ih * FTQ_LANES + lane], __fdiv_rn(32.0f, scale));
    const int   units  = __float2int_rn(fminf(fmaxf(v, -4096.0f), 4096.0f));
    const int   inside = min(max(units, -largest), largest);
    const int   part   = inside * parts;

    const uint32_t beyond = warp_reduce_sum<FTQ_LANES>((units - inside) * (units - inside));

    uint32_t taken = 0;
    uint32_t word  = 0;
    for (int t = 0; t < FTQ_LANES; ++t) {
        const int now  = __shfl_sync(0xFFFFFFFF, part, t, FTQ_LANES);
        uint32_t  best = 0xFFFF;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const uint32_t before = __shfl_sync(0xFFFFFFFF, cost, (group << k | (first + j)) & (G - 1), FTQ_LANES);
            const int      d      = min(abs(now - table[j]), limit);
            best                  = min(best, d * d + before + first + j);
        }
        best = ftq_least_of_lanes<G, FTQ_LANES>(best);
        word |= (best & low) << (k * (t & 7));
        cost = best & ~low;
        if ((t & 7) == 7) {
            if (lane < G) {
                s.decisions[ih][i][t / 8][lane] = word;
            }
            word                = 0;
            const uint32_t less = ftq_least_of_lanes<1, G>(cost);
            cost -= less;
            taken += less;
        }
    }

    // The least cost is 0 now.
    __syncthreads();
    if (lane < G) {
        s.costs[i][lane] = cost;
    }
    if (lane == 0) {
        s.total[i] =
            (double) ((uint64_t) (beyond * (uint32_t) (parts * parts)) + taken) * ((double) scale * (double) scale);
    }
    __syncthreads();

    // A scale that was tried already is no better.
    int best = 0;
    for (int j = 1; j < FTQ_TRIES; ++j) {
        best = s.total[j] < s.total[best] ? j : best;
    }
    return best;
}

// stride: bytes from one value to the next
template <int k> static __device__ __forceinline__ void ftq_quantize_block(const char * x, int64_t stride, char * y) {
    constexpr int G = 128 >> k;

    __shared__ ftq_shared<k> s;

    const int id = threadIdx.x;
    if (id < QK_FTQ) {
        s.x[id] = ftq_number(*(const float *) (x + id * stride));
    }
    if (id < 1 + 4 * k) {
        s.words[id] = 0;
    }
    __syncthreads();
    if (id % FTQ_LANES == 0) {
        if (id < QK_FTQ) {
            s.guess[id / FTQ_LANES] = ftq_guess<k>(s.x + id);
        } else {
            uint32_t any = 0;
            for (int t = 0; t < QK_FTQ; ++t) {
                any |= __float_as_uint(s.x[t]) & 0x7FFFFFFF;
            }
            s.any = any != 0;
        }
    }
    __syncthreads();

    const float guess1   = s.guess[1];
    const float smallest = __fmul_rn(guess1, __uint_as_float(0x3F333333));  // 0.7
    const float guess0   = s.guess[0] < smallest ? smallest : s.guess[0];

    const int try0  = ftq_quantize_half<k>(s, 0, guess0, 1, FTQ_TOP - 3, 0, 0);
    const int code0 = ftq_code_of_try(guess0, try0, 1, FTQ_TOP - 3);
    const int least = max(code0 - 4, 1);
    const int try1  = ftq_quantize_half<k>(s, 1, guess1, least, code0 + 3, try0, code0);
    const int code1 = ftq_code_of_try(guess1, try1, least, code0 + 3);

    if (id == 0) {
        int head = 4 << 8;
        if (s.any) {
            int group = 0;
            for (int g = 1; g < G; ++g) {
                group = s.costs[try1][g] < s.costs[try1][group] ? g : group;
            }
            for (int t = QK_FTQ - 1; t >= 0; --t) {
                const int      ih    = t / FTQ_LANES;
                const uint32_t word  = s.decisions[ih][ih ? try1 : try0][t % FTQ_LANES / 8][group];
                const int      index = group << k | ((word >> (k * (t & 7))) & ((1 << k) - 1));
                const int      at    = k * t;
                const uint32_t own   = (uint32_t) (index >> (7 - k)) << (at & 15);
                s.words[1 + at / 16] |= (uint16_t) own;
                if ((at & 15) + k > 16) {
                    s.words[2 + at / 16] |= (uint16_t) (own >> 16);
                }
                group = index & (G - 1);
            }
            head = code0 | ((code1 - code0 + 4) | group << (k + 1)) << 8;
        }
        s.words[0] = (uint16_t) head;
    }
    __syncthreads();
    if (id < 1 + 4 * k) {
        ((uint16_t *) y)[id] = s.words[id];
    }
}

template <int k, typename idx_t>
static __global__ void __launch_bounds__(FTQ_THREADS) k_set_rows_ftq(const char * __restrict__ src0,
                                                                     const char * __restrict__ src1,
                                                                     char * __restrict__ dst,
                                                                     const uint3   nblocks,
                                                                     const uint3   ne01,
                                                                     const uint3   ne02,
                                                                     const uint3   ne11,
                                                                     const uint3   ne12,
                                                                     const int64_t nb00,
                                                                     const int64_t nb01,
                                                                     const int64_t nb02,
                                                                     const int64_t nb03,
                                                                     const int64_t nb10,
                                                                     const int64_t nb11,
                                                                     const int64_t nb12,
                                                                     const int64_t nb1,
                                                                     const int64_t nb2,
                                                                     const int64_t nb3) {
    const uint2 i0 = fast_div_modulo(blockIdx.x, nblocks);
    const uint2 i1 = fast_div_modulo(i0.x, ne01);
    const uint2 i2 = fast_div_modulo(i1.x, ne02);

    const int64_t ib  = i0.y;
    const int64_t i01 = i1.y;
    const int64_t i02 = i2.y;
    const int64_t i03 = i2.x;

    const int64_t i11 = fastmodulo(i2.y, ne11);
    const int64_t i12 = fastmodulo(i2.x, ne12);

    ggml_cuda_pdl_sync();
    const int64_t row = *(const idx_t *) (src1 + i01 * nb10 + i11 * nb11 + i12 * nb12);

    ftq_quantize_block<k>(src0 + ib * QK_FTQ * nb00 + i01 * nb01 + i02 * nb02 + i03 * nb03, nb00,
                          dst + ib * (2 + 8 * k) + row * nb1 + i02 * nb2 + i03 * nb3);
}

template <int k>
static __global__ void __launch_bounds__(FTQ_THREADS) k_cpy_f32_ftq(const char * __restrict__ src,
                                                                    char * __restrict__ dst,
                                                                    const uint3   nblocks,
                                                                    const uint3   ne1,
                                                                    const uint3   ne2,
                                                                    const int64_t nb00,
                                                                    const int64_t nb01,
                                                                    const int64_t nb02,
                                                                    const int64_t nb03,
                                                                    const int64_t nb1,
                                                                    const int64_t nb2,
                                                                    const int64_t nb3) {
    const uint2 i0 = fast_div_modulo(blockIdx.x, nblocks);
    const uint2 i1 = fast_div_modulo(i0.x, ne1);
    const uint2 i2 = fast_div_modulo(i1.x, ne2);

    ggml_cuda_pdl_sync();
    ftq_quantize_block<k>(src + i0.y * QK_FTQ * nb00 + i1.y * nb01 + i2.y * nb02 + i2.x * nb03, nb00,
                          dst + i0.y * (int64_t) (2 + 8 * k) + i1.y * nb1 + i2.y * nb2 + i2.x * nb3);
}

// A block of threads reads a block of values.
template <int k>
static __global__ void __launch_bounds__(QK_FTQ) k_cpy_ftq_f32(const char * __restrict__ src,
                                                               char * __restrict__ dst,
                                                               const uint3   nblocks,
                                                               const uint3   ne1,
                                                               const uint3   ne2,
                                                               const int64_t nb01,
                                                               const int64_t nb02,
                                                               const int64_t nb03,
                                                               const int64_t nb0,
                                                               const int64_t nb1,
                                                               const int64_t nb2,
                                                               const int64_t nb3) {
    const uint2 i0 = fast_div_modulo(blockIdx.x, nblocks);
    const uint2 i1 = fast_div_modulo(i0.x, ne1);
    const uint2 i2 = fast_div_modulo(i1.x, ne2);

    ggml_cuda_pdl_sync();
    const char * row = src + i1.y * nb01 + i2.y * nb02 + i2.x * nb03;
    char *       out = dst + (i0.y * QK_FTQ + threadIdx.x) * nb0 + i1.y * nb1 + i2.y * nb2 + i2.x * nb3;
    *(float *) out   = ftq_dequantize<k>(ftq_block<k>(row, i0.y), threadIdx.x);
}

template <int k> static void ftq_set_rows(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    const ggml_tensor * src0 = dst->src[0];
    const ggml_tensor * src1 = dst->src[1];

    GGML_TENSOR_BINARY_OP_LOCALS

    const int64_t n = ggml_nelements(src0) / QK_FTQ;
    if (n == 0) {
        return;
    }
    GGML_ASSERT(n <= INT_MAX);

    const auto kernel = src1->type == GGML_TYPE_I64 ? k_set_rows_ftq<k, int64_t> : k_set_rows_ftq<k, int32_t>;
    const ggml_cuda_kernel_launch_params params((dim3) n, FTQ_THREADS, 0, ctx.stream());
    ggml_cuda_kernel_launch(kernel, params, (const char *) src0->data, (const char *) src1->data, (char *) dst->data,
                            init_fastdiv_values(ne00 / QK_FTQ), init_fastdiv_values(ne01), init_fastdiv_values(ne02),
                            init_fastdiv_values(ne11), init_fastdiv_values(ne12), nb00, nb01, nb02, nb03, nb10, nb11,
                            nb12, nb1, nb2, nb3);
}

void ggml_cuda_ftq_set_rows(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    const int  k        = ggml_cuda_ftq_bits(dst->type);
    const auto set_rows = k == 4 ? ftq_set_rows<4> : k == 3 ? ftq_set_rows<3> : ftq_set_rows<2>;
    set_rows(ctx, dst);
}

bool ggml_cuda_ftq_cpy_supported(const ggml_tensor * src, const ggml_tensor * dst) {
    const bool write =
        src->type == GGML_TYPE_F32 && ggml_cuda_is_ftq(dst->type) && dst->nb[0] == ggml_type_size(dst->type);
    const bool read =
        dst->type == GGML_TYPE_F32 && ggml_cuda_is_ftq(src->type) && src->nb[0] == ggml_type_size(src->type);
    return (write || read) && ggml_are_same_shape(src, dst);
}

template <int k> static void ftq_cpy(ggml_backend_cuda_context & ctx, const ggml_tensor * src, ggml_tensor * dst) {
    const int64_t n = ggml_nelements(src) / QK_FTQ;
    if (n == 0) {
        return;
    }
    GGML_ASSERT(n <= INT_MAX);

    const char * x       = (const char *) src->data;
    char *       y       = (char *) dst->data;
    const uint3  nblocks = init_fastdiv_values(src->ne[0] / QK_FTQ);
    const uint3  ne1     = init_fastdiv_values(src->ne[1]);
    const uint3  ne2     = init_fastdiv_values(src->ne[2]);
    if (src->type == GGML_TYPE_F32) {
        const ggml_cuda_kernel_launch_params params((dim3) n, FTQ_THREADS, 0, ctx.stream());
        ggml_cuda_kernel_launch(k_cpy_f32_ftq<k>, params, x, y, nblocks, ne1, ne2, src->nb[0], src->nb[1], src->nb[2],
                                src->nb[3], dst->nb[1], dst->nb[2], dst->nb[3]);
    } else {
        const ggml_cuda_kernel_launch_params params((dim3) n, QK_FTQ, 0, ctx.stream());
        ggml_cuda_kernel_launch(k_cpy_ftq_f32<k>, params, x, y, nblocks, ne1, ne2, src->nb[1], src->nb[2], src->nb[3],
                                dst->nb[0], dst->nb[1], dst->nb[2], dst->nb[3]);
    }
}

void ggml_cuda_ftq_cpy(ggml_backend_cuda_context & ctx, const ggml_tensor * src, ggml_tensor * dst) {
    const int  k   = ggml_cuda_ftq_bits(src->type == GGML_TYPE_F32 ? dst->type : src->type);
    const auto cpy = k == 4 ? ftq_cpy<4> : k == 3 ? ftq_cpy<3> : ftq_cpy<2>;
    cpy(ctx, src, dst);
}

void ggml_cuda_ftq_warn_f16(ggml_type type_K, ggml_type type_V) {
    static bool warned = false;
    if (!warned) {
        GGML_LOG_WARN(
            "%s: no FlashAttention vector kernel for K/V types %s-%s, converting K and V to f16 instead (slow)\n",
            __func__, ggml_type_name(type_K), ggml_type_name(type_V));
        warned = true;
    }
}
