const char * ggml_toy_file(void) { return __FILE__; }
