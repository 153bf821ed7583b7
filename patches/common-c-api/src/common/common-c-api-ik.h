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

} // namespace engine
