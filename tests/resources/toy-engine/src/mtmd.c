#include "llama.h"
int mtmd_toy(void) { return llama_toy_run(0, llama_toy_default_params()); }
