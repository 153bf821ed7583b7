// dequant_funcs.glsl for ftq4, ftq3 and ftq2

vec4 dequantize4(uint ib, uint iqs, uint a_offset) {
    const uint b = a_offset + ib;
    const uint word = uint(data_a[b].w[ftq_word(FTQ_BITS, iqs)]);
    const uint after = uint(data_a[b].w[ftq_word_after(FTQ_BITS, iqs)]);
    const uvec4 i = ftq_indices(FTQ_BITS, iqs, word, after);
    return ftq_scale_32nd(uint(data_a[b].w[0]), iqs) * vec4(ftq_value(FTQ_BITS, i.x), ftq_value(FTQ_BITS, i.y),
                                                            ftq_value(FTQ_BITS, i.z), ftq_value(FTQ_BITS, i.w));
}

vec2 dequantize(uint ib, uint iqs, uint a_offset) {
    const vec4 v = dequantize4(ib, iqs & ~3u, a_offset);
    return (iqs & 2u) == 0u ? v.xy : v.zw;
}

vec2 get_dm(uint ib, uint a_offset) {
    return vec2(1, 0);
}
