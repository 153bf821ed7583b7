// What the kernels of ftq need of ggml-cuda's common.cuh, for a CPU.
#pragma once

#include "fibers.h"
#include "ggml.h"

#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <type_traits>

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __restrict__
#define __shared__ static
#define __launch_bounds__(...)
#define GGML_UNUSED(x)     (void) (x)
#define GGML_ASSERT(x)     ((x) ? (void) 0 : abort())
#define GGML_LOG_WARN(...) fprintf(stderr, __VA_ARGS__)
#define WARP_SIZE          32

struct uint2 {
    uint32_t x, y;
};

struct uint3 {
    uint32_t x, y, z;
};

struct float2 {
    float x, y;
};

struct dim3 {
    uint32_t x;

    dim3(uint32_t n) : x(n) {}
};
struct half;

struct thread_number {
    operator int() const { return thread_id; }
};

static struct {
    thread_number x;
} threadIdx;

static struct {
    uint32_t x;
} blockIdx;

static void ggml_cuda_pdl_sync() {}

static void __syncthreads() {
    wait_for_all();
}

static uint32_t __float_as_uint(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static float __uint_as_float(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static float __fmul_rn(float a, float b) {
    return a * b;
}

static float __fdiv_rn(float a, float b) {
    return a / b;
}

static float __fsqrt_rn(float a) {
    return sqrtf(a);
}

static int __float2int_rn(float a) {
    return (int) lrintf(a);
}

template <typename T> static T __shfl_sync(uint32_t, T value, int lane, int) {
    return of_lane(value, lane);
}

template <typename T> static T __shfl_xor_sync(uint32_t, T value, int mask, int) {
    return of_lane(value, (thread_id % LANES) ^ mask);
}

template <int width> static int warp_reduce_sum(int value) {
    int sum = 0;
    exchange(value, [&](int, int other) { sum += other; });
    return sum;
}

template <typename A, typename B> static std::common_type_t<A, B> min(A a, B b) {
    return a < b ? a : b;
}

template <typename A, typename B> static std::common_type_t<A, B> max(A a, B b) {
    return a < b ? b : a;
}

static int ggml_cuda_dp4a(int a, int b, int c) {
    for (int i = 0; i < 32; i += 8) {
        c += (int8_t) (a >> i) * (int8_t) (b >> i);
    }
    return c;
}

static uint3 init_fastdiv_values(uint64_t n) {
    return { 0, 0, (uint32_t) n };
}

static uint32_t fastmodulo(uint32_t n, uint3 by) {
    return n % by.z;
}

static uint2 fast_div_modulo(uint32_t n, uint3 by) {
    return { n / by.z, n % by.z };
}

struct ggml_tensor {
    ggml_type     type;
    int64_t       ne[4];
    size_t        nb[4];
    ggml_tensor * src[2];
    void *        data;
};

static int64_t ggml_nelements(const ggml_tensor * t) {
    return t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3];
}

static bool ggml_are_same_shape(const ggml_tensor * a, const ggml_tensor * b) {
    return !memcmp(a->ne, b->ne, sizeof(a->ne));
}

static size_t ggml_type_size(ggml_type type) {
    return type == GGML_TYPE_F32 ? 4 : 2 + 8 * (504 - type);
}

static const char * ggml_type_name(ggml_type) {
    return "a type";
}

#define GGML_TENSOR_BINARY_OP_LOCALS                \
    const auto [ne00, ne01, ne02, ne03] = src0->ne; \
    const auto [nb00, nb01, nb02, nb03] = src0->nb; \
    const auto [ne10, ne11, ne12, ne13] = src1->ne; \
    const auto [nb10, nb11, nb12, nb13] = src1->nb; \
    const auto [nb0, nb1, nb2, nb3]     = dst->nb;

struct ggml_backend_cuda_context {
    int stream() { return 0; }
};

struct ggml_cuda_kernel_launch_params {
    uint32_t blocks;
    int      threads;

    ggml_cuda_kernel_launch_params(dim3 blocks, int threads, int, int) : blocks(blocks.x), threads(threads) {}
};

template <typename Kernel, typename... Args>
static void ggml_cuda_kernel_launch(Kernel kernel, const ggml_cuda_kernel_launch_params & params, Args... args) {
    for (blockIdx.x = 0; blockIdx.x < params.blocks; ++blockIdx.x) {
        run_block(params.threads, [&] { kernel(args...); });
    }
}
