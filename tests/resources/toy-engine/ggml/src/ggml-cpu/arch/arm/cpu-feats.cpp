// As an engine has it: for another machine only its own list of CPU libraries makes a target of this file.
extern "C" int ggml_backend_score() {
    int score = 1;
#if defined(GGML_USE_DOTPROD)
    score += 2;
#endif
    return score;
}
