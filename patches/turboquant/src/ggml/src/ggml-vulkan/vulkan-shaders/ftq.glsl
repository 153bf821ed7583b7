#if !defined(GGML_FTQ_GLSL)
#define GGML_FTQ_GLSL

// The KV cache types ftq4, ftq3 and ftq2; see ggml-ftq-impl.h for the format, whose names are used here.
// k is the number of bits of a value: 4, 3 or 2. A block is read as 1 + 4k words of 16 bits.

#define QUANT_K_FTQ 64

#if defined(DATA_A_FTQ4)
#define FTQ_BITS 4
#elif defined(DATA_A_FTQ3)
#define FTQ_BITS 3
#elif defined(DATA_A_FTQ2)
#define FTQ_BITS 2
#endif

#if defined(FTQ_BITS)
struct block_ftq
{
    uint16_t w[1 + 4 * FTQ_BITS];
};
#define QUANT_K QUANT_K_FTQ
#define QUANT_R 1
#define QUANT_AUXF 1
#define A_TYPE block_ftq
#endif

const int ftq_table[3][64] = {
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

// table value of an index
int ftq_value(uint k, uint index) {
    const uint i = index < 64u ? index : 127u - index;
    const int value = ftq_table[k - 2u][i];
    return index < 64u ? value : -value;
}

// a 32nd of the scale of value iqs; head is the first word of a block
float ftq_scale_32nd(uint head, uint iqs) {
    const int code0 = int(head & 0xFFu);
    const int code = iqs < 32u ? code0 : clamp(code0 + int((head >> 8) & 7u) - 4, 0, 255);
    return (code < 8 ? float(code) / 131072.0f : uintBitsToFloat(uint(code + ((127 - 15) << 3)) << 20)) / 32.0f;
}

// The indices of values iqs to iqs + 3, a multiple of 4, lie in this word and the next, if the block has one.
uint ftq_word(uint k, uint iqs) {
    return (k * iqs + k + 9u) >> 4;
}

uint ftq_word_after(uint k, uint iqs) {
    return min(ftq_word(k, iqs) + 1u, 4u * k);
}

uvec4 ftq_indices(uint k, uint iqs, uint word, uint after) {
    const uint bits = (word | (after << 16)) >> ((k * iqs + k + 9u) & 15u);
    return uvec4(bits, bits >> k, bits >> (2u * k), bits >> (3u * k)) & 127u;
}

#endif // !defined(GGML_FTQ_GLSL)
