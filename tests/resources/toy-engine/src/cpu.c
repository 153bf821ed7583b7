#include "ggml.h"
#if !defined(TOY_FOLDER)
#error "compiled without what its folder defines"
#endif
// One user of each instruction set that a variant promises.
#if defined(__SSSE3__)
#include <immintrin.h>
void ggml_toy_shuffle(char * data) {
    __m128i order = _mm_set1_epi8(3);
    _mm_storeu_si128((__m128i *) data, _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *) data), order));
}
#endif
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
void ggml_toy_add(int * data) {
    __m256i value = _mm256_loadu_si256((const __m256i *) data);
    _mm256_storeu_si256((__m256i *) data, _mm256_add_epi32(value, value));
}
void ggml_toy_fma(float * data, const unsigned short * halves) {
    __m256 value = _mm256_loadu_ps(data);
    __m256 half = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) halves));
    _mm256_storeu_ps(data, _mm256_fmadd_ps(value, half, value));
}
#endif
#if defined(__ARM_NEON)
#include <arm_neon.h>
void ggml_toy_add_floats(float * data) {
    vst1q_f32(data, vaddq_f32(vld1q_f32(data), vld1q_f32(data)));
}
#endif
#if defined(__ARM_FEATURE_DOTPROD)
void ggml_toy_dot(int * sums, const signed char * values) {
    int8x16_t value = vld1q_s8(values);
    vst1q_s32(sums, vdotq_s32(vld1q_s32(sums), value, value));
}
#endif
int ggml_toy_sum(const int * values, int count) {
    int sum = 0;
    for (int i = 0; i < count; ++i) {
        sum += values[i];
    }
    return sum;
}
