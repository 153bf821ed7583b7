// What a CPU must have for the library, as options that are ON.
int ggml_backend_score(void) {
    int score = 1;
#if defined(GGML_SSE42)
    score += 1;
#endif
#if defined(GGML_AVX2)
    score += 2;
#endif
    return score;
}
