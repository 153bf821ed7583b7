#version 450

// copy_to_quant.comp for ftq4, ftq3 and ftq2: one workgroup writes one block.
//
// It writes the bytes that ggml-ftq-impl.h writes. The search is the same arithmetic on whole numbers, and all that
// comes before it is as exact as on the CPU, by whole numbers where Vulkan allows a GPU to round otherwise. Only the
// squares of the values are summed here without an error, and there in double precision.

#include "types.glsl"

const uint TRIES = 3;                // scales tried for each half
const uint G = 128 >> FTQ_BITS;      // groups
const uint LOW = (1 << FTQ_BITS) - 1;
const uint HALF = QUANT_K_FTQ / 2;
const uint TOP = 247;                // the largest scale
const uint WORDS = HALF * FTQ_BITS / 32;

// an invocation for each try and group
layout(local_size_x = 3 * (128 >> FTQ_BITS), local_size_y = 1, local_size_z = 1) in;

#if FTQ_BITS == 4
const int LARGEST = 125;
const uint SUITED = 0x4222CCCD;      // 40.7
#elif FTQ_BITS == 3
const int LARGEST = 119;
const uint SUITED = 0x42240000;      // 41.0
#else
const int LARGEST = 107;
const uint SUITED = 0x4226CCCD;      // 41.7
#endif
const int PARTS = FTQ_BITS == 2 ? 2 : 4;
const int MOST = FTQ_BITS == 2 ? 254 : 252;

layout (binding = 0) readonly buffer S {S_TYPE data_s[];};

#if defined(SET_ROWS)
#include "generic_binary_head.glsl"
layout (binding = 1) readonly buffer C {B_TYPE data_i[];};
layout (binding = 2) writeonly buffer Q {A_TYPE data_q[];};

#if B_SIZE == 64
#define DATA_I_SWIZZLE .x
#else
#define DATA_I_SWIZZLE
#endif
#else
#include "generic_unary_head.glsl"
layout (binding = 1) writeonly buffer Q {A_TYPE data_q[];};
#endif

shared float x[QUANT_K_FTQ];
shared bool zero[2];
shared float guesses[2];
shared int parts[TRIES][HALF];
shared uint beyond[TRIES];
shared uint costs[2][TRIES][G];
shared uint decisions[2][TRIES][HALF / 8][G];
shared uvec2 totals[TRIES];
shared uint stream[2 * WORDS];
shared uint head;

// the float nearest to (v, and a little more) * 2^exponent; v has more than 24 bits
float nearest(uint v, bool more, int exponent) {
    const int shift = findMSB(v) - 23;
    const uint rest = v & ((1u << shift) - 1u);
    const uint tie = 1u << (shift - 1);
    uint mantissa = v >> shift;
    mantissa += uint(rest > tie || (rest == tie && (more || (mantissa & 1u) != 0u)));
    return uintBitsToFloat((uint(127 + 23 + shift + exponent) << 23) + (mantissa - (1u << 23)));
}

// a / b * 2^exponent, both from 1 to 15
float quotient(uint a, uint b, int exponent) {
    return nearest((a << 28) / b, (a << 28) % b != 0u, exponent - 28);
}

// scale = scale_mantissa * 2^(scale_exponent - 17)
uint scale_mantissa(uint code) {
    return code < 8u ? code : 8u + (code & 7u);
}

int scale_exponent(uint code) {
    return max(int(code >> 3), 1) - 1;
}

uint scale_code(float scale) {
    const int code = scale < 1.0f / 16384.0f ? int(roundEven(scale * 131072.0f)) :
                                               int((floatBitsToUint(scale) + (1u << 19)) >> 20) - ((127 - 15) << 3);
    return uint(clamp(code, 1, int(TOP)));
}

// the root of the mean square of half a block, in units of the deviation that suits a table; 0 if it is very small
float guess_scale(uint first) {
    uint largest = 0;
    for (uint t = 0; t < HALF; ++t) {
        largest = max(largest, floatBitsToUint(x[first + t]) & 0x7FFFFFFFu);
    }
    zero[first / HALF] = largest == 0;
    const int top = int(largest >> 23);
    if (top < 127 - 40) {
        return 0.0f;
    }

    // the sum in 64 bits
    uint hi = 0;
    uint lo = 0;
    for (uint t = 0; t < HALF; ++t) {
        const uint u = floatBitsToUint(x[first + t]);
        const int exponent = int((u >> 23) & 0xFFu);
        const uint mantissa = exponent == 0 ? 0u : (u & 0x7FFFFFu) | 0x800000u;
        uint h, l;
        umulExtended(mantissa << 5, mantissa << 5, h, l);
        const int shift = 2 * (top - exponent);
        if (shift >= 32) {
            l = shift >= 64 ? 0u : h >> (shift - 32);
            h = 0;
        } else if (shift > 0) {
            l = (l >> shift) | (h << (32 - shift));
            h >>= shift;
        }
        uint carry;
        lo = uaddCarry(lo, l, carry);
        hi += h + carry;
    }
    const float mean = nearest(hi, lo != 0u, 32 - 10 - 5 + 2 * (top - 127 - 23));

    // a = mantissa * 2^46 or 2^47, whose root has 24 bits; the differences of products are small, so 32 bits hold them
    const int exponent = int(floatBitsToUint(mean) >> 23) - 127;
    const uint odd = uint(exponent & 1);
    const uint mantissa = (floatBitsToUint(mean) & 0x7FFFFFu) | 0x800000u;
    const uint a = mantissa << (23u + odd);
    uint root = uint(sqrt(float(mantissa << odd)) * 2896.3093757f + 0.5f);
    while (int(a - root * root) > int(root)) {
        root++;
    }
    while (int(a - root * root) <= -int(root)) {
        root--;
    }

    // a 32nd of SUITED has the exponent 0
    const uint divisor = (SUITED & 0x7FFFFFu) | 0x800000u;
    const uint shift = root >= divisor ? 23u : 24u;
    uint result = uint(float(root) / float(divisor) * float(1u << shift) + 0.5f);
    int rest = int((root << shift) - result * divisor);
    while (2 * rest > int(divisor)) {
        result++;
        rest -= int(divisor);
    }
    while (2 * rest < -int(divisor)) {
        result--;
        rest += int(divisor);
    }
    return uintBitsToFloat((uint(127 + 23 + (exponent >> 1) - int(shift)) << 23) + (result - (1u << 23)));
}

uint code_of_try(float guess, uint i, uint least, uint most) {
    // 1, 1 / 1.15 and 1.15
    precise float scale = guess * (i == 0u ? 1.0f : uintBitsToFloat(i == 1u ? 0x3F5E9BD4u : 0x3F933333u));
    return clamp(scale_code(scale), least, most);
}

// Finds the best path through half a block for each try, and returns the best try. after_try and after_code are those
// of the half before, if there is one, whose costs are in costs[0].
uint quantize_half(uint half_block, float guess, uint least, uint most, uint after_try, uint after_code) {
    const uint i = gl_LocalInvocationIndex / G;
    const uint g = gl_LocalInvocationIndex % G;
    const uint code = code_of_try(guess, i, least, most);

    int table[1 << FTQ_BITS];
    [[unroll]] for (uint l = 0; l <= LOW; ++l) {
        table[l] = ftq_value(FTQ_BITS, (g << FTQ_BITS) | l) * PARTS;
    }

    uint cost = 0;
    if (half_block > 0) {
        precise float ratio = quotient(scale_mantissa(after_code), scale_mantissa(code),
                                       scale_exponent(after_code) - scale_exponent(code));
        ratio = ratio * ratio;
        precise float c = float(costs[0][after_try][g]) * ratio;
        cost = (c > 65535.0f ? 0xFFFFu : uint(roundEven(c))) & ~LOW;
    }
    if (g == 0) {
        beyond[i] = 0;
    }
    barrier();
    costs[0][i][g] = cost;

    // values in parts of a unit, and the squares of what lies beyond a table
    const float inv = quotient(1, scale_mantissa(code), 5 + 17 - scale_exponent(code));
    for (uint t = g; t < HALF; t += G) {
        precise float v = x[half_block * HALF + t] * inv;
        const int units = int(roundEven(clamp(v, -4096.0f, 4096.0f)));
        const int inside = clamp(units, -LARGEST, LARGEST);
        parts[i][t] = inside * PARTS;
        if (units != inside) {
            atomicAdd(beyond[i], uint((units - inside) * (units - inside)));
        }
    }
    barrier();

    uint taken = 0;
    uint less = 0;
    uint word = 0;
    for (uint t = 0; t < HALF; ++t) {
        const uint now = t & 1u;
        const int v = parts[i][t];
        uint best = 0xFFFFFFFFu;
        [[unroll]] for (uint l = 0; l <= LOW; ++l) {
            const int d = min(abs(v - table[l]), MOST);
            best = min(best, uint(d * d) + costs[now][i][((g << FTQ_BITS) | l) & (G - 1)] - less + l);
        }
        best = min(best, 0xFFFFu);
        word |= (best & LOW) << (FTQ_BITS * (t & 7u));
        costs[1u - now][i][g] = best & ~LOW;
        barrier();
        less = 0;
        if ((t & 7u) == 7u) {
            decisions[half_block][i][t / 8][g] = word;
            word = 0;
            less = 0xFFFFu;
            for (uint j = 0; j < G; ++j) {
                less = min(less, costs[1u - now][i][j]);
            }
            taken += less;
        }
    }
    cost = costs[0][i][g] - less;
    barrier();
    costs[0][i][g] = cost;

    // the squares in the unit of the values, in parts that do not matter
    if (g == 0) {
        uint hi, lo, carry;
        const uint total = uaddCarry(beyond[i] * uint(PARTS * PARTS), taken, carry);
        const uint mantissa = scale_mantissa(code);
        umulExtended(total, mantissa * mantissa, hi, lo);
        hi += carry * mantissa * mantissa;
        const uint shift = 2 * (scale_exponent(code) - scale_exponent(code_of_try(guess, 0, least, most)) + 1);
        totals[i] = uvec2(shift == 0 ? hi : (hi << shift) | (lo >> (32 - shift)), lo << shift);
    }
    barrier();

    uint best = 0;
    for (uint j = 1; j < TRIES; ++j) {
        if (totals[j].x < totals[best].x || (totals[j].x == totals[best].x && totals[j].y < totals[best].y)) {
            best = j;
        }
    }
    return best;
}

void quantize(uint dst_idx, uint src_idx, uint stride) {
    const uint id = gl_LocalInvocationIndex;
    const uint size = TRIES * G;

    for (uint t = id; t < QUANT_K_FTQ; t += size) {
        const float v = float(data_s[src_idx + t * stride]);
        const bool number = (floatBitsToUint(v) & 0x7FFFFFFFu) <= 0x7F800000u;
        x[t] = number ? clamp(v, -57344.0f, 57344.0f) : 0.0f;
    }
    for (uint t = id; t < 2 * WORDS; t += size) {
        stream[t] = 0;
    }
    barrier();

    if (id < 2) {
        guesses[id] = guess_scale(id * HALF);
    }
    barrier();

    precise float smallest = guesses[1] * uintBitsToFloat(0x3F333333u);  // 0.7
    uvec2 tries = uvec2(0);
    uvec2 codes = uvec2(0);
    [[dont_unroll]] for (uint i = 0; i < 2; ++i) {
        const float guess = i == 0 ? max(guesses[0], smallest) : guesses[1];
        const uint least = i == 0 ? 1 : max(codes.x, 5u) - 4;
        const uint most = i == 0 ? TOP - 3 : codes.x + 3;
        tries[i] = quantize_half(i, guess, least, most, tries.x, codes.x);
        codes[i] = code_of_try(guess, tries[i], least, most);
    }

    if (id == 0 && zero[0] && zero[1]) {
        head = 4u << 8;
    } else if (id == 0) {
        uint group = 0;
        for (uint g = 1; g < G; ++g) {
            group = costs[0][tries.y][g] < costs[0][tries.y][group] ? g : group;
        }
        for (uint t = QUANT_K_FTQ; t-- > 0;) {
            const uint half_block = t / HALF;
            const uint word = decisions[half_block][tries[half_block]][t % HALF / 8][group];
            const uint index = (group << FTQ_BITS) | ((word >> (FTQ_BITS * (t & 7u))) & LOW);
            const uint own = index >> (7 - FTQ_BITS);
            const uint at = FTQ_BITS * t;
            stream[at / 32] |= own << (at % 32);
            if (at % 32 + FTQ_BITS > 32) {
                stream[at / 32 + 1] |= own >> (32 - at % 32);
            }
            group = index & (G - 1);
        }
        head = codes.x | ((codes.y + 4 - codes.x) | (group << (FTQ_BITS + 1))) << 8;
    }
    barrier();

    for (uint w = id; w < 1 + 4 * FTQ_BITS; w += size) {
        data_q[dst_idx].w[w] = uint16_t(w == 0 ? head : (stream[(w - 1) / 2] >> (16 * ((w - 1) & 1u))) & 0xFFFFu);
    }
}

void main() {
    const uint idx = (gl_WorkGroupID.z * 262144 + gl_WorkGroupID.y * 512 + gl_WorkGroupID.x) * QUANT_K;
    if (idx >= p.ne) {
        return;
    }

#if defined(SET_ROWS)
    uint i00, i01, i02, i03;
    get_indices(idx, i00, i01, i02, i03);
    const uint i1 = data_i[src1_idx(i01, fastmod(i02, p.ne11), fastmod(i03, p.ne12), 0) + get_boffset()] DATA_I_SWIZZLE;

    quantize(dst_idx(i00 / QUANT_K, i1, i02, i03) + get_doffset(), src0_idx(i00, i01, i02, i03) + get_aoffset(), p.nb00);
#else
    quantize(dst_idx_quant(idx, QUANT_K), get_aoffset() + src0_idx(idx), p.nb00);
#endif
}
