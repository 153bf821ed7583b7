// The logits that an engine computes, by its C API alone.
//
// usage: logits MODEL N_CTX N_BATCH TOKENS...
// Each of TOKENS is a list with commas, and goes behind those before it, N_BATCH tokens at a time and at most.
// writes the floats of the last token of each list

#include "llama.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char ** argv) {
    if (argc < 5) {
        fprintf(stderr, "usage: %s MODEL N_CTX N_BATCH TOKENS...\n", argv[0]);
        return 2;
    }
    llama_backend_init();
    struct llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) {
        return 1;
    }
    const int n_batch = atoi(argv[3]);
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx           = atoi(argv[2]);
    params.n_batch         = n_batch;
    params.n_threads       = 1;
    params.n_threads_batch = 1;
    struct llama_context * ctx = llama_init_from_model(model, params);
    if (!ctx) {
        return 1;
    }
    const size_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    struct llama_batch batch = llama_batch_init(n_batch, 0, 1);
    int position = 0;
    for (int i = 4; i < argc; i++) {
        const char * word = strtok(argv[i], ",");
        while (word) {
            int n = 0;
            for (; word && n < n_batch; word = strtok(NULL, ",")) {
                batch.token[n]     = atoi(word);
                batch.pos[n]       = position++;
                batch.n_seq_id[n]  = 1;
                batch.seq_id[n][0] = 0;
                batch.logits[n]    = 0;
                n++;
            }
            batch.logits[n - 1] = 1;
            batch.n_tokens = n;
            if (llama_decode(ctx, batch)) {
                return 1;
            }
        }
        const float * row = llama_get_logits_ith(ctx, -1);
        if (!row || fwrite(row, sizeof(float), n_vocab, stdout) != n_vocab) {
            return 1;
        }
    }
    return 0;
}
