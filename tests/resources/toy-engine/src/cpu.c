#include "ggml.h"
#if defined(__SSSE3__)
#include <tmmintrin.h>
void ggml_toy_shuffle(char * data) {
    __m128i order = _mm_set1_epi8(3);
    _mm_storeu_si128((__m128i *) data, _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *) data), order));
}
#endif
int ggml_toy_sum(const int * values, int count) {
    int sum = 0;
    for (int i = 0; i < count; ++i) {
        sum += values[i];
    }
    return sum;
}
