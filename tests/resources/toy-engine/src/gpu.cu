#include <cublas_v2.h>
#include <cuda_runtime.h>

static __global__ void add_one(float * x) {
    x[threadIdx.x] += 1.0f;
}

// The number of GPUs; -1 where CUDA finds no driver or no card.
extern "C" int ggml_toy_gpus(void) {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) {
        return -1;
    }
    cublasHandle_t handle;
    if (count > 0 && cublasCreate(&handle) == CUBLAS_STATUS_SUCCESS) {
        add_one<<<1, 1>>>(nullptr);
        cublasDestroy(handle);
    }
    return count;
}
