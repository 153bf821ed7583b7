// flash_attn_dequant.glsl for ftq4, ftq3 and ftq2

layout (binding = 1) readonly buffer K_PACKED_FTQ { uint16_t data[]; } k_packed_ftq;
layout (binding = 2) readonly buffer V_PACKED_FTQ { uint16_t data[]; } v_packed_ftq;

#define FTQ_K (FaTypeK >= GGML_TYPE_FTQ4 && FaTypeK <= GGML_TYPE_FTQ2)
#define FTQ_V (FaTypeV >= GGML_TYPE_FTQ4 && FaTypeV <= GGML_TYPE_FTQ2)

// bits of a value
#define FTQ_TYPE_BITS(TYPE) (4u - (TYPE - GGML_TYPE_FTQ4))

// table values of all indices
shared FLOAT_TYPE ftq_values_k[FTQ_K ? 128 : 1];
shared FLOAT_TYPE ftq_values_v[FTQ_V ? 128 : 1];

void ftq_init_shmem(uvec3 wgsize) {
    if (!FTQ_K && !FTQ_V) {
        return;
    }
    for (uint i = gl_LocalInvocationIndex.x; i < 128; i += wgsize.x) {
        if (FTQ_K) {
            ftq_values_k[i] = FLOAT_TYPE(ftq_value(FTQ_TYPE_BITS(FaTypeK), i));
        }
        if (FTQ_V) {
            ftq_values_v[i] = FLOAT_TYPE(ftq_value(FTQ_TYPE_BITS(FaTypeV), i));
        }
    }
    barrier();
}

// The product has 11 bits, so f16 holds it exactly.
#define FA_DEQUANT4_FTQ(BUF, TYPE, VALUES) {                                                      \
    const uint k = FTQ_TYPE_BITS(TYPE);                                                           \
    const uint b = (a_offset + ib) * (1u + 4u * k);                                               \
    const uint word = uint(BUF.data[b + ftq_word(k, iqs)]);                                       \
    const uint after = uint(BUF.data[b + ftq_word_after(k, iqs)]);                                \
    const uvec4 i = ftq_indices(k, iqs, word, after);                                             \
    return FLOAT_TYPEV4(ftq_scale_32nd(uint(BUF.data[b]), iqs) *                                  \
        vec4(VALUES[i.x], VALUES[i.y], VALUES[i.z], VALUES[i.w]));                                \
}
