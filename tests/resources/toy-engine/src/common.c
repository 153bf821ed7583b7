// A part of the CPU library that asks for no instruction set.
const char * ggml_toy_name(void) { return "toy"; }
