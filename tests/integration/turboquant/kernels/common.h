// What the kernels of ftq need of Metal and of ggml-metal's common.h, for a CPU.
#pragma once

#include "fibers.h"

#include <cmath>
#include <cstdlib>
#include <type_traits>

#define kernel
#define device
#define thread
#define threadgroup
#define constant const

// some C libraries have these names, of other types
#define ushort metal_ushort
#define uint   metal_uint
#define ulong  metal_ulong
typedef uint16_t ushort;
typedef uint32_t uint;
typedef uint64_t ulong;

struct half {
    float value;

    half(float value = 0.0f) : value(value) {}

    operator float() const { return value; }
};

template <typename T> struct matrix4x4 {
    T columns[4][4];

    matrix4x4() {}

    template <typename U> explicit matrix4x4(const matrix4x4<U> & other) {
        for (int i = 0; i < 16; ++i) {
            columns[i / 4][i % 4] = (T) other.columns[i / 4][i % 4];
        }
    }

    T * operator[](int i) { return columns[i]; }
};

typedef matrix4x4<float> float4x4;
typedef matrix4x4<half>  half4x4;

template <typename T> struct three {
    T x, y, z;

    T operator[](int i) const { return i == 0 ? x : i == 1 ? y : z; }
};

typedef three<uint>   uint3;
typedef three<ushort> ushort3;

template <typename T, typename U> T as_type(U value) {
    static_assert(sizeof(T) == sizeof(U), "another size");
    T result;
    memcpy(&result, &value, sizeof(T));
    return result;
}

template <typename T> T min(T a, T b) {
    return a < b ? a : b;
}

template <typename T> T max(T a, T b) {
    return a < b ? b : a;
}

template <typename T> T clamp(T a, T least, T most) {
    return min(max(a, least), most);
}

enum class mem_flags { mem_threadgroup };

static void threadgroup_barrier(mem_flags) {
    wait_for_all();
}

template <typename T> T simd_shuffle(T value, ushort lane) {
    return of_lane(value, lane);
}

template <typename T> T simd_shuffle_xor(T value, ushort mask) {
    return of_lane(value, (thread_id % LANES) ^ mask);
}

template <typename T> T simd_min(T value) {
    exchange(value, [&](int, T other) { value = min(value, other); });
    return value;
}

template <typename T> T simd_or(T value) {
    exchange(value, [&](int, T other) { value |= other; });
    return value;
}

template <typename T> T simd_sum(T value) {
    T sum = 0;
    exchange(value, [&](int, T other) { sum += other; });
    return sum;
}

struct ggml_metal_kargs_set_rows {
    int      nk0, ne01, ne11, ne12;
    uint64_t nb01, nb02, nb03, nb10, nb11, nb12, nb1, nb2, nb3;
};

struct ggml_metal_kargs_cpy {
    int64_t  nk0, ne01;
    uint64_t nb00, nb01, nb02, nb03, nb1, nb2, nb3;
};

struct ggml_metal_kargs_get_rows {
    int      ne00t, ne10;
    uint64_t nb01, nb02, nb03, nb10, nb11, nb12, nb1, nb2, nb3;
};

struct ggml_metal_kargs_flash_attn_ext_kv_f16 {
    int      ne0, ne1, ne2, nblocks;
    uint64_t nb0, nb1, nb2, nb3;
};
