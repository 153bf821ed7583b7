#include "llama.h"
int main(void) { return llama_toy_run(0, llama_toy_default_params()) == 4 ? 0 : 1; }
