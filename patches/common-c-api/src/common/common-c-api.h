// A C API over common: chat templates, tool calls, grammars of JSON schemas, samplers. For bindings of other languages.
//
// - JSON goes in and comes out, as UTF-8 texts that end with a zero byte.
// - No exception leaves a function. One that fails returns NULL, false or LLAMA_TOKEN_NULL; common_c_error() has the
//   reason.
// - A text that a function returns is valid until the same thread calls this API again.
// - Handles may be used by one thread at a time; different handles by different threads.

#pragma once

#include "llama.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) && !defined(__MINGW32__)
#    ifdef COMMON_C_BUILD
#        define COMMON_C_API __declspec(dllexport)
#    else
#        define COMMON_C_API __declspec(dllimport)
#    endif
#else
#    define COMMON_C_API __attribute__ ((visibility ("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

struct common_c_chat;    // the chat templates of a model
struct common_c_parser;  // what reads one answer
struct common_c_sampler; // what chooses the tokens of one answer
struct common_c_mtp;     // what guesses tokens with the layers that a model has for that

// Why the last call of this thread failed; "" if none did.
COMMON_C_API const char * common_c_error(void);

// The chat templates of a model, or the given one. The model must outlive it.
COMMON_C_API struct common_c_chat * common_c_chat_init(const struct llama_model * model, const char * chat_template);
COMMON_C_API void                   common_c_chat_free(struct common_c_chat * chat);

// {"source": Jinja text, "explicit": whether the model or the caller gave it, "thinking": whether it knows
//  "enable_thinking", "caps": {name: bool}}
COMMON_C_API const char * common_c_chat_describe(const struct common_c_chat * chat);

// The prompt of a conversation, and what its answer needs.
//
// request: {"messages": [OpenAI's], "tools": [OpenAI's], "tool_choice": "auto" | "required" | "none",
//   "parallel_tool_calls": bool, "json_schema": {}, "grammar": text, "reasoning_format": name, "enable_thinking": bool,
//   "template_kwargs": {name: value}, "add_generation_prompt": bool, "prefill": bool (the last message is the beginning
//   of the answer), "stream": bool, "now": seconds since 1970}, all but the messages optional.
// returns {"prompt": text, "stops": [text], "preserved_tokens": [text], "sampling": {} for common_c_sampler_init,
//   "parsing": {} for common_c_parser_init}
COMMON_C_API const char * common_c_chat_apply(const struct common_c_chat * chat, const char * request);

// A parser of one answer, from the "parsing" of common_c_chat_apply.
COMMON_C_API struct common_c_parser * common_c_parser_init(const char * parsing);
COMMON_C_API void                     common_c_parser_free(struct common_c_parser * parser);

enum common_c_end {
    COMMON_C_END_NONE,  // more of the answer comes
    COMMON_C_END_WHOLE, // the model ended it
    COMMON_C_END_CUT,   // a limit ended it, in the middle of whatever it was
};

// Add text to the answer.
// returns {"deltas": [OpenAI's]} and, at an end, {"message": OpenAI's}
COMMON_C_API const char * common_c_parser_add(struct common_c_parser * parser, const char * text, size_t size, enum common_c_end end);

// The GBNF grammar of a JSON schema.
COMMON_C_API const char * common_c_schema_to_grammar(const char * schema);

// A sampler. The context and its model must outlive it.
//
// params: {"seed": int, "temperature", "dynatemp_range", "dynatemp_exponent", "top_p", "min_p", "typical_p",
//   "top_n_sigma", "xtc_probability", "xtc_threshold", "repeat_penalty", "frequency_penalty", "presence_penalty",
//   "dry_multiplier", "dry_base", "mirostat_tau", "mirostat_eta", "adaptive_target", "adaptive_decay": numbers,
//   "top_k", "min_keep", "penalty_last_n", "dry_allowed_length", "dry_penalty_last_n", "mirostat": integers,
//   "dry_sequence_breakers", "samplers": [text], "logit_bias": [[token, number or null for minus infinity]],
//   "ignore_eos": bool, "grammar": text}, what common_c_chat_apply returned as "sampling", and "reasoning_budget": int
//   with "reasoning_budget_message": text. ik_llama.cpp has "tfs_z" as well. Any other name is an error.
COMMON_C_API struct common_c_sampler * common_c_sampler_init(const struct llama_context * ctx, const char * params);
COMMON_C_API void                      common_c_sampler_free(struct common_c_sampler * sampler);

// Tell it of tokens that stand before the answer.
COMMON_C_API bool common_c_sampler_accept(
        struct common_c_sampler * sampler, struct llama_context * ctx, const llama_token * tokens, size_t n_tokens);

// Choose a token by the logits of the idx-th output of the last llama_decode, and go on from it.
COMMON_C_API llama_token common_c_sampler_sample(struct common_c_sampler * sampler, struct llama_context * ctx, int32_t idx);

// Natural logarithms of probabilities after a softmax of a row of logits: of the token first, then of the n_top most
// likely ones, in descending order, at equal logits the lower id first.
// ids, logprobs: n_top + 1 values each
// returns the number of values written, or -1 if the row is not of numbers
COMMON_C_API int32_t common_c_logprobs(
        const float * logits, int32_t n_vocab, llama_token token, int32_t n_top, llama_token * ids, float * logprobs);

// A control vector of a GGUF file: n_embd numbers for each layer from 1 on, n_values in all.
// returns the numbers, valid as a returned text is
COMMON_C_API const float * common_c_control_vector(const char * path, int32_t * n_embd, int32_t * n_values);

// Guesses of tokens by the layers that a model has for that (multi-token prediction), for sequence 0 of a context. The
// context must outlive it. Its model must have been loaded with these layers; ik_llama.cpp also wants "mtp" and
// "embeddings" of the context's params.
//
// params: those that the context was made with
// n_max:  the most guesses at a time
COMMON_C_API struct common_c_mtp * common_c_mtp_init(struct llama_context * ctx, struct llama_context_params params, int32_t n_max);
COMMON_C_API void                  common_c_mtp_free(struct common_c_mtp * mtp);

// Tell it of the tokens of the last llama_decode, all of them, of which the first stands at pos.
COMMON_C_API bool common_c_mtp_add(struct common_c_mtp * mtp, const llama_token * tokens, int32_t n_tokens, llama_pos pos);

// Forget what stands at pos and behind it.
COMMON_C_API bool common_c_mtp_truncate(struct common_c_mtp * mtp, llama_pos pos);

// Guess what follows a token that is to stand at pos, right behind what was added.
// guesses: room for n_max tokens, of which as many as are returned are written
// returns -1 if it fails
COMMON_C_API int32_t common_c_mtp_guess(
        struct common_c_mtp * mtp, llama_token token, llama_pos pos, llama_token * guesses, int32_t n_max);

#ifdef __cplusplus
}
#endif
