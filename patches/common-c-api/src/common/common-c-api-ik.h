// What the C API over common needs of this engine's common.

#pragma once

#include "chat.h"
#include "common.h"
#include "jinja/lexer.h"
#include "json-schema-to-grammar.h"
#include "log.h"
#include "sampling.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <climits>
#include <cmath>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace engine {

using json            = nlohmann::ordered_json;
using parsing         = common_chat_syntax;
using sampling_params = common_params_sampling;

static const char * const OWN_NUMBERS[] = { "tfs_z", nullptr };

// Whether the server reads an answer that a limit ended as it reads one of which more comes.
static const bool CUT_IS_PARTIAL = true;

inline std::string dump(const json & value) {
    return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

// Refuse a template that ends within a tag or a bracket: the parser reads tokens behind the last one then.
inline void check_template(const std::string & source) {
    std::vector<jinja::token::type> open;
    for (const auto & token : jinja::lexer().tokenize(source).tokens) {
        switch (token.t) {
            case jinja::token::open_statement:       open.push_back(jinja::token::close_statement);      break;
            case jinja::token::open_expression:      open.push_back(jinja::token::close_expression);     break;
            case jinja::token::open_paren:           open.push_back(jinja::token::close_paren);          break;
            case jinja::token::open_square_bracket:  open.push_back(jinja::token::close_square_bracket); break;
            case jinja::token::open_curly_bracket:   open.push_back(jinja::token::close_curly_bracket);  break;
            case jinja::token::close_statement:
            case jinja::token::close_expression:
            case jinja::token::close_paren:
            case jinja::token::close_square_bracket:
            case jinja::token::close_curly_bracket:
                if (open.empty() || open.back() != token.t) {
                    throw std::invalid_argument("the template closes what it has not opened");
                }
                open.pop_back();
                break;
            default:
                break;
        }
    }
    if (!open.empty()) {
        throw std::invalid_argument("the template ends within a tag or a bracket");
    }
}

inline void prefill(common_chat_templates_inputs & inputs) {
    inputs.reasoning_format = COMMON_REASONING_FORMAT_NONE;
    inputs.enable_thinking  = false;
}

// What an answer must begin with, that is no part of the template's prompt; it leaves the inputs without it.
inline std::string prefilled(common_chat_templates_inputs & inputs) {
    const auto last = inputs.messages.back();
    inputs.messages.pop_back();
    std::string text = last.content;
    for (const auto & part : last.content_parts) {
        text += part.text;
    }
    return text;
}

inline void own_sampling(const common_chat_params &, json &) {
}

inline void own_parsing(const common_chat_params & made, const common_chat_templates_inputs &, json & parsing) {
    parsing["thinking_forced_open"] = made.thinking_forced_open;
}

inline void read_own_parsing(const json & from, parsing & to) {
    to.thinking_forced_open = from.at("thinking_forced_open").get<bool>();
}

inline common_chat_msg begun(const parsing &) {
    return common_chat_msg();
}

inline void set_tool_call_ids(common_chat_msg & msg, std::vector<std::string> & ids, const std::function<std::string()> & make) {
    msg.ensure_tool_call_ids_set(ids, make);
}

inline void set_grammar(sampling_params & params, const std::string & grammar, bool) {
    params.grammar = grammar;
}

inline void free_grammar(llama_grammar * grammar) {
    llama_grammar_free(grammar);
}

inline void add_bias(sampling_params & params, llama_token token, float bias) {
    params.logit_bias[token] = bias;
}

inline float * number(sampling_params & params, const std::string & name) {
    return name == "typical_p" ? &params.typical_p : name == "tfs_z" ? &params.tfs_z : nullptr;
}

inline bool set_samplers(sampling_params & params, const std::vector<std::string> & names) {
    params.samplers_sequence = llama_sampling_types_from_names(names, true);
    return params.samplers_sequence.size() == names.size();
}

inline std::vector<llama_token> tokenize(const llama_model * model, const std::string & text) {
    return common_tokenize(model, text, false, true);
}

inline void read_own_sampling(const json & from, const llama_model *, sampling_params &) {
    if (from.value("reasoning_budget", -1) >= 0) {
        throw std::invalid_argument("ik_llama.cpp has no reasoning budget");
    }
}

inline void settle(sampling_params & params, int32_t n_ctx) {
    // the engine makes room for as many tokens as are asked for
    const auto within = [&](int32_t n) { return n < 0 ? n_ctx : std::min(n, n_ctx); };
    params.penalty_last_n     = within(params.penalty_last_n);
    params.dry_penalty_last_n = within(params.dry_penalty_last_n);
    params.total_context_size = n_ctx;
    if (params.dynatemp_range > 0.0f && params.temp > 0.0f && params.dynatemp_range >= params.temp) {
        // the engine divides by the difference
        throw std::invalid_argument("dynatemp_range must be smaller than the temperature");
    }
    // the penalties see no further back than this
    params.n_prev = std::max({ params.n_prev, params.penalty_last_n, params.dry_penalty_last_n });
    if (params.adaptive_target >= 0.0f) {
        throw std::invalid_argument("adaptive_p of ik_llama.cpp can end the process (an assert over its cumulative probabilities)");
    }
    // it would do nothing, but make its state, which common never frees
    auto & sequence = params.samplers_sequence;
    sequence.erase(std::remove(sequence.begin(), sequence.end(), llama_sampler_type::ADAPTIVE_P), sequence.end());
}

// Some samplers take random numbers from the context, which other requests share.
inline void before_sampling(common_sampler * sampler, llama_context * ctx) {
    if (sampler->params.mirostat != 0 || sampler->params.xtc_probability > 0.0f) {
        llama_set_rng_seed(ctx, (uint32_t) sampler->rng());
    }
}

inline void accept(common_sampler * sampler, llama_context * ctx, llama_token token, bool generated) {
    common_sampler_accept(sampler, ctx, token, generated);
}

// The logit of the token that was just chosen, after all samplers: minus infinity if the grammar forbids it.
inline float chosen_logit(common_sampler * sampler, llama_token token) {
    const auto & candidates = sampler->cur_p;
    for (size_t i = 0; i < candidates.size; i++) {
        if (candidates.data[i].id == token) {
            return candidates.data[i].logit;
        }
    }
    return -INFINITY;
}

inline llama_control_vector_data load_control_vector(const char * path) {
    return llama_control_vector_load({ { 1.0f, path } });
}

// The layers of a model that guess tokens, in a context of their own.
//
// The layer takes a token together with what the model made of the one before it. The server of this engine gives it
// what the model made of the token itself while it reads a prompt; guesses are better without that.
class mtp {
  public:
    mtp(llama_context * target, llama_context_params params, int32_t) : target(target) {
        const auto * model = llama_get_model(target);
        params.mtp_op_type = MTP_OP_WARMUP;
        ctx    = llama_init_from_model(const_cast<llama_model *>(model), params);
        n_embd = llama_model_n_embd(model);
        before.resize(n_embd);
        if (!ctx) {
            throw std::runtime_error("no context can be made for the layers that guess tokens");
        }
        batch = llama_batch_init(llama_n_ubatch(ctx), 0, 1);
    }

    mtp(const mtp &) = delete;
    mtp & operator=(const mtp &) = delete;

    ~mtp() {
        if (ctx) {
            llama_batch_free(batch);
            llama_free(ctx);
        }
    }

    void add(const llama_token * tokens, int32_t n_tokens, llama_pos pos) {
        const float * made = llama_get_embeddings(target);
        if (!made) {
            throw std::runtime_error("the context gives no embeddings, which the layers that guess tokens need");
        }
        // one row for each token: what the model made of the one before it
        std::vector<float> given(before);
        given.insert(given.end(), made, made + (size_t) (n_tokens - 1)*n_embd);
        const int32_t n_ubatch = llama_n_ubatch(ctx);
        for (int32_t i = 0; i < n_tokens; i += n_ubatch) {
            const int32_t n = std::min(n_ubatch, n_tokens - i);
            common_batch_clear(batch);
            for (int32_t j = 0; j < n; j++) {
                common_batch_add(batch, tokens[i + j], pos + i + j, { 0 }, true);
            }
            run(MTP_OP_WARMUP, given.data() + (size_t) i*n_embd);
        }
        first = pos;
        rows.assign(made, made + (size_t) n_tokens*n_embd);
        before.assign(rows.end() - n_embd, rows.end());
    }

    void truncate(llama_pos pos) {
        const llama_pos last = pos - 1 - first; // the row of the last batch that stays
        if (last >= 0 && (size_t) (last + 1)*n_embd <= rows.size()) {
            before.assign(rows.begin() + (size_t) last*n_embd, rows.begin() + (size_t) (last + 1)*n_embd);
        }
        llama_kv_cache_seq_rm(ctx, 0, pos, -1);
    }

    std::vector<llama_token> guess(llama_token token, llama_pos pos, int32_t n_max) {
        std::vector<llama_token> made;
        std::vector<float> state(before);
        const int32_t n_vocab = llama_n_vocab(llama_get_model(ctx));
        while ((int32_t) made.size() < n_max) {
            common_batch_clear(batch);
            common_batch_add(batch, token, pos + (llama_pos) made.size(), { 0 }, true);
            run(MTP_OP_DRAFT_GEN, state.data());
            const float * logits = llama_get_logits_ith(ctx, 0);
            const float * next   = llama_get_embeddings_ith(ctx, 0);
            if (!logits || !next) {
                break;
            }
            token = (llama_token) (std::max_element(logits, logits + n_vocab) - logits);
            made.push_back(token);
            state.assign(next, next + n_embd);
        }
        llama_kv_cache_seq_rm(ctx, 0, pos, -1);
        return made;
    }

  private:
    void run(llama_mtp_op_type what, const float * states) {
        llama_set_draft_input_hidden_state(ctx, states);
        llama_set_mtp_op_type(ctx, what);
        const int32_t code = llama_decode(ctx, batch);
        llama_set_mtp_op_type(ctx, MTP_OP_NONE);
        if (code) {
            throw std::runtime_error("the layers that guess tokens cannot be computed");
        }
    }

    llama_context *    target;
    llama_context *    ctx    = nullptr;
    llama_batch        batch  = {};
    int32_t            n_embd = 0;
    llama_pos          first  = 0;
    std::vector<float> rows;   // what the model made of the tokens of the last batch
    std::vector<float> before; // of the last token that stays
};

} // namespace engine
