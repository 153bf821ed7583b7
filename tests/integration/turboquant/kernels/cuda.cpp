// The kernels of ggml-cuda for ftq on a CPU.
#include "ggml-cuda/ftq.cu"

extern "C" int set_rows(ggml_tensor * dst) {
    ggml_backend_cuda_context context;
    ggml_cuda_ftq_set_rows(context, dst);
    return 0;
}

// whether it is a copy that the backend takes
extern "C" int copy(const ggml_tensor * src, ggml_tensor * dst) {
    ggml_backend_cuda_context context;
    const bool                supported = ggml_cuda_ftq_cpy_supported(src, dst);
    if (supported) {
        ggml_cuda_ftq_cpy(context, src, dst);
    }
    return supported;
}

// A row of 256 values as GET_ROWS and the conversions read it, and as attention reads V; and what attention takes of K
// times the bytes of Q with a scale for each 32 of them, by 32 threads.
template <int k>
static void read_row(const char * row, float * values, float * v, const int8_t * q, const float * scales, float * dot) {
    for (int i = 0; i < 256; i += 2) {
        float2 pair;
        dequantize_ftq<k>(row, i / QK_FTQ, i % QK_FTQ, pair);
        values[i]     = pair.x;
        values[i + 1] = pair.y;
    }
    for (int i = 0; i < 256; i += 4) {
        dequantize_V_ftq<k, float, 4>(row, v + i, i);
    }
    constexpr int threads = 32;
    *dot                  = 0.0f;
    for (thread_id = 0; thread_id < threads; ++thread_id) {
        int    bytes[256 / 4 / threads];
        float2 ds[256 / 4 / threads];
        for (int i = 0; i < 256 / 4 / threads; ++i) {
            const int at = i * threads + thread_id;
            memcpy(&bytes[i], q + 4 * at, 4);
            ds[i] = { scales[at / 8], NAN };
        }
        *dot += vec_dot_fattn_vec_KQ_ftq<k, 256, threads>(row, nullptr, bytes, ds);
    }
}

extern "C" int
read_row(int k, const char * row, float * values, float * v, const int8_t * q, const float * scales, float * dot) {
    const auto read = k == 4 ? read_row<4> : k == 3 ? read_row<3> : read_row<2>;
    read(row, values, v, q, scales, dot);
    return 0;
}
