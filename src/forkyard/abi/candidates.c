
/* The candidates for the next token, from the logits of a whole vocabulary.
 *
 * Neither engine's C API has this on its own: one has no function for it at all, the other only as a part of sampling
 * over the whole vocabulary, which costs more than a small model's layer. With keep > 0 only tokens that can be among
 * the keep most likely ones are written, in the order of their ids, and possibly some more: a following top-k finds the
 * same tokens as in the whole vocabulary. keep == 0 writes all of them. keep == 1 writes the most likely token alone,
 * of equal ones the first.
 *
 * Returns how many were written; 0 if a logit is not a number. out must have room for n.
 */
FORKYARD_EXPORT uint32_t forkyard_probe_candidates(
        const float * logits, uint32_t n, uint32_t keep, struct llama_token_data * out);

/* As many independent maxima and counts as the compiler can keep in vector registers on any x86-64. */
#define FORKYARD_LANES 16

static float forkyard_top_logit(const float * logits, uint32_t n, int * not_a_number) {
    float   top[FORKYARD_LANES];
    int32_t bad[FORKYARD_LANES];
    for (int j = 0; j < FORKYARD_LANES; ++j) {
        top[j] = logits[0];
        bad[j] = 0;
    }
    uint32_t i = 0;
    for (; i + FORKYARD_LANES <= n; i += FORKYARD_LANES) {
        for (int j = 0; j < FORKYARD_LANES; ++j) {
            const float x = logits[i + j];
            top[j] = x > top[j] ? x : top[j];
            bad[j] |= x != x;
        }
    }
    for (; i < n; ++i) {
        top[0] = logits[i] > top[0] ? logits[i] : top[0];
        bad[0] |= logits[i] != logits[i];
    }
    *not_a_number = 0;
    for (int j = 0; j < FORKYARD_LANES; ++j) {
        top[0] = top[j] > top[0] ? top[j] : top[0];
        *not_a_number |= bad[j];
    }
    return top[0];
}

static uint32_t forkyard_count_from(const float * logits, uint32_t n, float limit) {
    uint32_t counts[FORKYARD_LANES] = {0};
    uint32_t i = 0;
    for (; i + FORKYARD_LANES <= n; i += FORKYARD_LANES) {
        for (int j = 0; j < FORKYARD_LANES; ++j) {
            counts[j] += logits[i + j] >= limit;
        }
    }
    for (; i < n; ++i) {
        counts[0] += logits[i] >= limit;
    }
    uint32_t count = 0;
    for (int j = 0; j < FORKYARD_LANES; ++j) {
        count += counts[j];
    }
    return count;
}

static void forkyard_put(struct llama_token_data * out, uint32_t id, float logit) {
    out->id    = (llama_token) id;
    out->logit = logit;
    out->p     = 0.0f;
}

uint32_t forkyard_probe_candidates(
        const float * logits, uint32_t n, uint32_t keep, struct llama_token_data * out) {
    if (n == 0) {
        return 0;
    }
    int not_a_number;
    const float top = forkyard_top_logit(logits, n, &not_a_number);
    if (not_a_number) {
        return 0;
    }
    if (keep == 1) {
        uint32_t id = 0;
        while (logits[id] != top) {
            ++id;
        }
        forkyard_put(out, id, top);
        return 1;
    }
    if (keep > 0 && keep < n) {
        /* Widen the distance from the top until enough tokens are within it: counting is cheap, sorting is not. */
        for (float distance = 4.0f; distance <= 128.0f; distance *= 2.0f) {
            const float limit = top - distance;
            if (forkyard_count_from(logits, n, limit) < keep) {
                continue;
            }
            uint32_t count = 0;
            for (uint32_t i = 0; i < n; ++i) {
                if (logits[i] >= limit) {
                    forkyard_put(&out[count++], i, logits[i]);
                }
            }
            return count;
        }
    }
    for (uint32_t i = 0; i < n; ++i) {
        forkyard_put(&out[i], i, logits[i]);
    }
    return n;
}
