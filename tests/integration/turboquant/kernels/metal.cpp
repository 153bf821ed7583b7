// The kernels of ggml-metal for ftq on a CPU. FTQ_METAL is their text, with what threads share as C++ has it.
#include FTQ_METAL

// a threadgroup for each block of values, as ggml-metal-ops.cpp starts them
template <typename F> static void groups(uint x, uint y, uint z, F f) {
    for (uint3 at = { 0, 0, 0 }; at.z < z; ++at.z) {
        for (at.y = 0; at.y < y; ++at.y) {
            for (at.x = 0; at.x < x; ++at.x) {
                run_block(FTQ_THREADS, [&] { f(at, (ushort) thread_id); });
            }
        }
    }
}

// ne and nb of the values, nb_index of 64-bit numbers (of [ne[2]][ne[1]] rows), nb_out
template <short k>
static void set_rows(const int64_t *  ne,
                     const char *     x,
                     const uint64_t * nb,
                     const char *     index,
                     const uint64_t * nb_index,
                     char *           y,
                     const uint64_t * nb_out) {
    const ggml_metal_kargs_set_rows args = {
        (int) ne[0] / 64, (int) ne[1], (int) ne[2], 1,         nb[1],     nb[2],    nb[3],
        nb_index[0],      nb_index[1], 0,           nb_out[1], nb_out[2], nb_out[3]
    };
    groups(args.nk0 * ne[1], ne[2], ne[3],
           [&](uint3 at, ushort id) { kernel_set_rows_ftq<int64_t, k>(args, x, index, y, at, id); });
}

template <short k>
static void write_copy(const int64_t * ne, const char * x, const uint64_t * nb, char * y, const uint64_t * nb_out) {
    const ggml_metal_kargs_cpy args = {
        ne[0] / 64, ne[1], nb[0], nb[1], nb[2], nb[3], nb_out[1], nb_out[2], nb_out[3]
    };
    groups(args.nk0 * ne[1], ne[2], ne[3], [&](uint3 at, ushort id) { kernel_cpy_f32_ftq<k>(args, x, y, at, id); });
}

// A copy, rows by number, and what attention takes; each reader has values, of one head's rows one after the other.
template <short k>
static void read(const int64_t *  ne,
                 const char *     x,
                 const uint64_t * nb,
                 const int32_t *  index,
                 float *          copy,
                 float *          rows,
                 float *          f16) {
    const uint64_t                  width = ne[0] * sizeof(float);
    const uint                      parts = ne[0] / 16;
    const ggml_metal_kargs_cpy      cpy   = { parts, ne[1],         nb[0],
                                              nb[1], nb[2],         nb[3],
                                              width, ne[1] * width, ne[2] * ne[1] * width };
    const ggml_metal_kargs_get_rows get   = { (int) parts,   (int) ne[1],          nb[1], nb[2], nb[3], 4, 0, 0, width,
                                              ne[1] * width, ne[2] * ne[1] * width };
    for (uint i3 = 0; i3 < ne[3]; ++i3) {
        for (uint i2 = 0; i2 < ne[2]; ++i2) {
            for (uint i1 = 0; i1 < ne[1]; ++i1) {
                for (ushort i0 = 0; i0 < parts; ++i0) {
                    const ushort per_group = parts / 2;
                    const uint3  at        = { i0 / per_group * (uint) ne[1] + i1, i2, i3 };
                    const ushort id        = i0 % per_group;
                    kernel_cpy_ftq<float4x4, k>(cpy, x, (char *) copy, at, { id, 0, 0 }, { per_group, 1, 1 });
                    kernel_get_rows_ftq<k>(get, x, (const char *) index, (char *) rows, at, id, { per_group, 1, 1 });
                }
            }
        }
    }
    const uint                                   n_blocks = ne[0] / 64 * ne[1] * ne[2] * ne[3];
    const ggml_metal_kargs_flash_attn_ext_kv_f16 kv       = { (int) ne[0], (int) ne[1], (int) ne[2], (int) n_blocks,
                                                              nb[0],       nb[1],       nb[2],       nb[3] };
    for (uint i = 0; i < n_blocks + 1; ++i) {
        kernel_flash_attn_ext_kv_ftq_f16<k>(kv, x, (half *) f16, i);
    }
}

#define EXPORT(k)                                                                                           \
    extern "C" int set_rows_ftq##k(const int64_t * ne, const char * x, const uint64_t * nb, const char * i, \
                                   const uint64_t * nb_i, char * y, const uint64_t * nb_y) {                \
        set_rows<k>(ne, x, nb, i, nb_i, y, nb_y);                                                           \
        return 0;                                                                                           \
    }                                                                                                       \
    extern "C" int write_ftq##k(const int64_t * ne, const char * x, const uint64_t * nb, char * y,          \
                                const uint64_t * nb_y) {                                                    \
        write_copy<k>(ne, x, nb, y, nb_y);                                                                  \
        return 0;                                                                                           \
    }                                                                                                       \
    extern "C" int read_ftq##k(const int64_t * ne, const char * x, const uint64_t * nb, const int32_t * i,  \
                               float * copy, float * rows, float * f16) {                                   \
        read<k>(ne, x, nb, i, copy, rows, f16);                                                             \
        return 0;                                                                                           \
    }

EXPORT(4)
EXPORT(3)
EXPORT(2)
