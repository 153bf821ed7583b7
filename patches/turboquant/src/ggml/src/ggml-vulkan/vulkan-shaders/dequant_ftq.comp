#version 450

#include "dequant_head.glsl"

layout(local_size_x = 256, local_size_y = 1, local_size_z = 1) in;

layout (binding = 0) readonly buffer A {A_TYPE data_a[];};
layout (binding = 1) writeonly buffer D {D_TYPE data_b[];};

#include "dequant_funcs_ftq.glsl"

// 16 values, a quarter of a block, in each invocation
void main() {
    const uint e = gl_GlobalInvocationID.x * 16;
    if (e >= p.nel) {
        return;
    }

#ifdef DEQUANT_TRANSPOSE
    // read [HS, NH, KV, NS], write [HS, KV, NH, NS]
    const uint HS = p.M, NH = p.K, KV = p.stride_a;
    const uint row = e / HS;
    const uint b_idx = (((row / (NH * KV)) * NH + row % NH) * KV + (row / NH) % KV) * HS + e % HS;
#else
    const uint b_idx = e;
#endif

    [[unroll]] for (uint j = 0; j < 16; j += 4) {
        const vec4 v = dequantize4(e / QUANT_K, e % QUANT_K + j, 0);
        [[unroll]] for (uint l = 0; l < 4; ++l) {
            data_b[b_idx + j + l] = D_TYPE(v[l]);
        }
    }
}
