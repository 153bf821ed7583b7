#include "common.h"

// The KV cache types ftq4, ftq3 and ftq2; see ggml-ftq-impl.h for the format, whose names are used here, and
// ggml-cuda/ftq.cu for the search, which is the same. k is 4, 3 or 2. A block is 1 + 4k words of 16 bits.
//
// Any GPU reads the same values. The scales that are tried come from a sum in single precision, so a few blocks have other
// bytes than a CPU's.

#define FTQ_LANES   32
#define FTQ_THREADS 96
#define FTQ_TOP     247
#define FTQ_VALUES  64

constant int8_t ftq_table[3][64] = {
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

template <short k>
inline int ftq_value(uint index) {
    const int value = ftq_table[k - 2][index < 64 ? index : 127 - index];
    return index < 64 ? value : -value;
}

// value of a scale's code times 2^shift
inline float ftq_scale(int code, int shift) {
    return code < 8 ? (float) code * as_type<float>((uint) (127 - 17 + shift) << 23) :
                      as_type<float>((uint) (code + ((127 - 15 + shift) << 3)) << 20);
}

// values 16*il to 16*il + 15 of a block
template <short k, typename type4x4>
void dequantize_ftq(device const ushort * block, short il, thread type4x4 & reg) {
    const int head = block[0];
    const int code = il < 2 ? head & 0xFF : clamp((head & 0xFF) + ((head >> 8) & 7) - 4, 0, 255);
    const float d  = ftq_scale(code, -5);

    float4x4 reg_f;
    for (short i = 0; i < 4; ++i) {
        const short at   = k*(16*il + 4*i) + k + 9;
        const short word = at/16;
        // the block's last bits need no word after them
        const uint  bits = ((uint) block[word] | ((uint) block[min(word + 1, 4*k)] << 16)) >> (at % 16);
        for (short j = 0; j < 4; ++j) {
            reg_f[i][j] = d * ftq_value<k>((bits >> (k*j)) & 127);
        }
    }
    reg = (type4x4) reg_f;
}

// what the threads of a block share
template <short k>
struct ftq_shared {
    float  x[FTQ_VALUES];
    float  guess[2];
    uint   any[2];                             // whether a value is not 0
    uint   costs[3][128 >> k];                 // of the groups after the first half
    uint   decisions[2][3][4][128 >> k];       // k bits for each of 8 values
    ulong  total[3];
    ushort words[1 + 4*k];
};

inline int ftq_code_of_try(float guess, int i, int least, int most) {
#pragma METAL fp math_mode(safe)
    const float scale = guess * (i == 0 ? 1.0f : i == 1 ? 1.0f/1.15f : 1.15f);
    const int   code  = scale < 1.0f/16384 ? (int) rint(scale * 131072.0f) :
                                             (int) ((as_type<uint>(scale) + (1 << 19)) >> 20) - ((127 - 15) << 3);
    return clamp(clamp(code, 1, FTQ_TOP), least, most);
}

// the best of three scales for half a block, one for each simdgroup
template <short k>
int ftq_quantize_half(threadgroup ftq_shared<k> & s, ushort id, int half_block, float guess, int least, int most, int after, int after_code) {
#pragma METAL fp math_mode(safe)
    constexpr uint  G       = 128 >> k;
    constexpr uint  low     = (1 << k) - 1;
    constexpr int   parts   = k == 2 ? 2 : 4;
    constexpr int   limit   = k == 2 ? 254 : 252;
    constexpr int   largest = k == 4 ? 125 : k == 3 ? 119 : 107;

    const uint  lane  = id % FTQ_LANES;
    const uint  i     = id / FTQ_LANES;
    const uint  group = lane % G;
    const uint  first = lane / G * 4;  // of the four last bits of indices that a lane tries
    const int   code  = ftq_code_of_try(guess, i, least, most);
    const float scale = ftq_scale(code, 0);

    int table[4];
    for (uint j = 0; j < 4; ++j) {
        table[j] = ftq_value<k>((group << k) | (first + j)) * parts;
    }

    uint cost = 0;
    if (half_block > 0) {
        float ratio = ftq_scale(after_code, 0) / scale;
        ratio = ratio * ratio;
        cost  = (uint) rint(min((float) s.costs[after][group] * ratio, 65535.0f)) & ~low;
    }

    const int  units  = (int) rint(clamp(s.x[half_block*FTQ_LANES + lane] * (32.0f/scale), -4096.0f, 4096.0f));
    const int  inside = clamp(units, -largest, largest);
    const int  part   = inside * parts;
    const uint beyond = simd_sum((uint) ((units - inside) * (units - inside)));

    uint taken = 0;
    uint word  = 0;
    for (ushort t = 0; t < FTQ_LANES; ++t) {
        const int v = simd_shuffle(part, t);
        uint best = 0xFFFF;
        for (uint j = 0; j < 4; ++j) {
            const uint before = simd_shuffle(cost, (ushort) (((group << k) | (first + j)) & (G - 1)));
            const int  d      = min(abs(v - table[j]), limit);
            best = min(best, (uint) (d*d) + before + first + j);
        }
        for (ushort offset = G; offset < FTQ_LANES; offset *= 2) {
            best = min(best, simd_shuffle_xor(best, offset));
        }
        word |= (best & low) << (k * (t & 7));
        cost  = best & ~low;
        if ((t & 7) == 7) {
            if (lane < G) {
                s.decisions[half_block][i][t/8][lane] = word;
            }
            word = 0;
            const uint less = simd_min(cost);
            cost  -= less;
            taken += less;
        }
    }

    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (lane < G) {
        s.costs[i][lane] = cost;
    }
    if (lane == 0) {
        // in parts of the squares of the smallest scale that is tried
        const uint mantissa = code < 8 ? code : 8 + (code & 7);
        const int  shift    = max(code >> 3, 1) - max(ftq_code_of_try(guess, 0, least, most) >> 3, 1) + 1;
        s.total[i] = ((ulong) (beyond * (uint) (parts*parts)) + taken) * (mantissa*mantissa) << (2*shift);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    int best = 0;
    for (int j = 1; j < 3; ++j) {
        best = s.total[j] < s.total[best] ? j : best;
    }
    return best;
}

// 96 threads write a block
template <short k>
void quantize_ftq(threadgroup ftq_shared<k> & s, ushort id, device const char * x, uint64_t stride, device ushort * y) {
#pragma METAL fp math_mode(safe)
    constexpr uint G = 128 >> k;

    if (id < FTQ_VALUES) {
        const uint bits = *(device const uint *) (x + id*stride);
        const uint size = bits & 0x7FFFFFFF;
        const uint most = 0x47600000; // 57344
        s.x[id] = as_type<float>(size > 0x7F800000 ? 0u : size > most ? (bits ^ size) | most : bits);
    }
    if (id < 1 + 4*k) {
        s.words[id] = 0;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (id < 2*FTQ_LANES) {
        const float v    = s.x[id];
        const float sum  = simd_sum(v*v);
        const uint  any  = simd_or(as_type<uint>(v) & 0x7FFFFFFF);
        const float unit = (k == 4 ? 40.7f : k == 3 ? 41.0f : 41.7f)/32;
        if (id % FTQ_LANES == 0) {
            s.guess[id/FTQ_LANES] = sqrt(sum/FTQ_LANES)/unit;
            s.any  [id/FTQ_LANES] = any;
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    const float guess1 = s.guess[1];
    const float guess0 = max(s.guess[0], guess1*0.7f);

    const int try0  = ftq_quantize_half<k>(s, id, 0, guess0, 1, FTQ_TOP - 3, 0, 0);
    const int code0 = ftq_code_of_try(guess0, try0, 1, FTQ_TOP - 3);
    const int least = max(code0 - 4, 1);
    const int try1  = ftq_quantize_half<k>(s, id, 1, guess1, least, code0 + 3, try0, code0);
    const int code1 = ftq_code_of_try(guess1, try1, least, code0 + 3);

    if (id == 0) {
        uint head = 4 << 8;
        if (s.any[0] != 0 || s.any[1] != 0) {
            uint group = 0;
            for (uint g = 1; g < G; ++g) {
                group = s.costs[try1][g] < s.costs[try1][group] ? g : group;
            }
            for (int t = FTQ_VALUES - 1; t >= 0; --t) {
                const uint word  = s.decisions[t/FTQ_LANES][t < FTQ_LANES ? try0 : try1][t%FTQ_LANES/8][group];
                const uint index = (group << k) | ((word >> (k*(t & 7))) & ((1 << k) - 1));
                const uint at    = k*t;
                const uint own   = (index >> (7 - k)) << (at & 15);
                s.words[1 + at/16] |= (ushort) own;
                if ((at & 15) + k > 16) {
                    s.words[2 + at/16] |= (ushort) (own >> 16);
                }
                group = index & (G - 1);
            }
            head = code0 | (((code1 - code0 + 4) | (group << (k + 1))) << 8);
        }
        s.words[0] = (ushort) head;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (id < 1 + 4*k) {
        y[id] = s.words[id];
    }
}

// a threadgroup for each block of a row
template <typename TI, short k>
kernel void kernel_set_rows_ftq(
        constant ggml_metal_kargs_set_rows & args,
        device const char * src0,
        device const char * src1,
        device       char * dst,
        uint3  tgpig[[threadgroup_position_in_grid]],
        ushort tiitg[[thread_index_in_threadgroup]]) {
    threadgroup ftq_shared<k> shared;

    const int32_t ib  = tgpig.x % args.nk0;
    const int32_t i01 = tgpig.x / args.nk0;
    const int32_t i02 = tgpig.y;
    const int32_t i03 = tgpig.z;

    const TI i1 = *(device const TI *) (src1 + i01*args.nb10 + (i02%args.ne11)*args.nb11 + (i03%args.ne12)*args.nb12);

    quantize_ftq<k>(shared, tiitg,
            src0 + i01*args.nb01 + i02*args.nb02 + i03*args.nb03 + (uint64_t) ib*FTQ_VALUES*sizeof(float), sizeof(float),
            (device ushort *) (dst + i1*args.nb1 + i02*args.nb2 + i03*args.nb3) + ib*(1 + 4*k));
}

// of tensors of the same shape
template <short k>
kernel void kernel_cpy_f32_ftq(
        constant ggml_metal_kargs_cpy & args,
        device const char * src0,
        device       char * dst,
        uint3  tgpig[[threadgroup_position_in_grid]],
        ushort tiitg[[thread_index_in_threadgroup]]) {
    threadgroup ftq_shared<k> shared;

    const int32_t ib  = tgpig.x % args.nk0;
    const int32_t i01 = tgpig.x / args.nk0;
    const int32_t i02 = tgpig.y;
    const int32_t i03 = tgpig.z;

    quantize_ftq<k>(shared, tiitg,
            src0 + i01*args.nb01 + i02*args.nb02 + i03*args.nb03 + (uint64_t) ib*FTQ_VALUES*args.nb00, args.nb00,
            (device ushort *) (dst + i01*args.nb1 + i02*args.nb2 + i03*args.nb3) + ib*(1 + 4*k));
}

template <typename T4x4, short k>
kernel void kernel_cpy_ftq(
        constant ggml_metal_kargs_cpy & args,
        device const char * src0,
        device       char * dst,
        uint3   tgpig[[threadgroup_position_in_grid]],
        ushort3 tpitg[[thread_position_in_threadgroup]],
        ushort3   ntg[[threads_per_threadgroup]]) {
    const int32_t i03 = tgpig[2];
    const int32_t i02 = tgpig[1];
    const int32_t i01 = tgpig[0]%args.ne01;
    const int32_t i00 = tgpig[0]/args.ne01*ntg[0] + tpitg.x;
    if (i00 >= args.nk0) {
        return;
    }

    T4x4 temp;
    dequantize_ftq<k>((device const ushort *) (src0 + i03*args.nb03 + i02*args.nb02 + i01*args.nb01) + i00/4*(1 + 4*k), i00%4, temp);
    ((device T4x4 *) (dst + i03*args.nb3 + i02*args.nb2 + i01*args.nb1))[i00] = temp;
}

template <short k>
kernel void kernel_get_rows_ftq(
        constant ggml_metal_kargs_get_rows & args,
        device const char * src0,
        device const char * src1,
        device       char * dst,
        uint3   tgpig[[threadgroup_position_in_grid]],
        ushort  tiitg[[thread_index_in_threadgroup]],
        ushort3   ntg[[threads_per_threadgroup]]) {
    const int32_t i00 = tgpig.x/args.ne10*ntg.x + tiitg;
    const int32_t i10 = tgpig.x%args.ne10;
    const int32_t i11 = tgpig.y;
    const int32_t i12 = tgpig.z;
    if (i00 >= args.ne00t) {
        return;
    }

    const int32_t r = *(device const int32_t *) (src1 + i12*args.nb12 + i11*args.nb11 + i10*args.nb10);

    float4x4 temp;
    dequantize_ftq<k>((device const ushort *) (src0 + i12*args.nb03 + i11*args.nb02 + r*args.nb01) + i00/4*(1 + 4*k), i00%4, temp);
    ((device float4x4 *) (dst + i12*args.nb3 + i11*args.nb2 + i10*args.nb1))[i00] = temp;
}

// one thread for each block, as in fa_aux.metal
template <short k>
kernel void kernel_flash_attn_ext_kv_ftq_f16(
        constant ggml_metal_kargs_flash_attn_ext_kv_f16 & args,
        device const char * x,
        device       half * x_dst,
        uint gid [[thread_position_in_grid]]) {
    if (gid >= (uint) args.nblocks) {
        return;
    }

    const uint nb = args.ne0/FTQ_VALUES;
    const uint i0 = gid%nb;
    const uint i1 = gid/nb%args.ne1;
    const uint i2 = gid/nb/args.ne1%args.ne2;
    const uint i3 = gid/nb/args.ne1/args.ne2;

    device const ushort * block = (device const ushort *) (x + i0*args.nb0 + i1*args.nb1 + i2*args.nb2 + i3*args.nb3);
    for (short i = 0; i < 4; ++i) {
        half4x4 reg;
        dequantize_ftq<k>(block, i, reg);
        ((device half4x4 *) x_dst)[4*gid + i] = reg;
    }
}

typedef decltype(kernel_set_rows_ftq<int64_t, 4>)     set_rows_ftq_t;
typedef decltype(kernel_cpy_f32_ftq<4>)               cpy_f32_ftq_t;
typedef decltype(kernel_cpy_ftq<float4x4, 4>)         cpy_ftq_t;
typedef decltype(kernel_get_rows_ftq<4>)              get_rows_ftq_t;
typedef decltype(kernel_flash_attn_ext_kv_ftq_f16<4>) kv_ftq_f16_t;

#define FTQ_KERNELS(k)                                                                                                         \
    template [[host_name("kernel_set_rows_f32_i64_ftq" #k)]]          kernel set_rows_ftq_t kernel_set_rows_ftq<int64_t, k>;   \
    template [[host_name("kernel_set_rows_f32_i32_ftq" #k)]]          kernel set_rows_ftq_t kernel_set_rows_ftq<int32_t, k>;   \
    template [[host_name("kernel_cpy_f32_ftq" #k)]]                   kernel cpy_f32_ftq_t  kernel_cpy_f32_ftq<k>;             \
    template [[host_name("kernel_cpy_ftq" #k "_f32")]]                kernel cpy_ftq_t      kernel_cpy_ftq<float4x4, k>;       \
    template [[host_name("kernel_cpy_ftq" #k "_f16")]]                kernel cpy_ftq_t      kernel_cpy_ftq<half4x4, k>;        \
    template [[host_name("kernel_get_rows_ftq" #k)]]                  kernel get_rows_ftq_t kernel_get_rows_ftq<k>;            \
    template [[host_name("kernel_flash_attn_ext_kv_ftq" #k "_f16")]]  kernel kv_ftq_f16_t   kernel_flash_attn_ext_kv_ftq_f16<k>;

FTQ_KERNELS(4)
FTQ_KERNELS(3)
FTQ_KERNELS(2)
