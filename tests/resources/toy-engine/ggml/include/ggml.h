#ifndef GGML_H
#define GGML_H
enum ggml_toy_type { GGML_TOY_A = 0, GGML_TOY_B = 1 };
#ifdef __cplusplus
extern "C" {
#endif
int ggml_toy_sum(const int * values, int count);
#ifdef __cplusplus
}
#endif
#endif
