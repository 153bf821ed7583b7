// What the C API over common needs of this engine's common.

#pragma once

#include "chat.h"
#include "common.h"
#include "json-schema-to-grammar.h"
#include "json.h"
#include "log.h"
#include "sampling.h"
#include "speculative.h"

#include <algorithm>
#include <climits>
#include <cmath>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace engine {

using json            = common_json;
using parsing         = common_chat_parser_params;
using sampling_params = common_params_sampling;

static const char * const OWN_NUMBERS[] = { nullptr };

// Whether the server reads an answer that a limit ended as it reads one of which more comes.
static const bool CUT_IS_PARTIAL = false;

inline std::string dump(const json & value) {
    return value.dump_safe();
}

inline void check_template(const std::string &) {
}

inline void prefill(common_chat_templates_inputs & inputs) {
    inputs.continue_final_message = COMMON_CHAT_CONTINUATION_AUTO;
    inputs.add_generation_prompt  = false;
}

// What an answer must begin with, that is no part of the template's prompt.
inline std::string prefilled(const common_chat_templates_inputs &) {
    return "";
}

inline void own_sampling(const common_chat_params & made, json & sampling) {
    sampling["generation_prompt"] = made.generation_prompt;
    if (!made.thinking_end_tags.empty()) {
        sampling["thinking_start_tag"] = made.thinking_start_tag;
        sampling["thinking_end_tags"]  = made.thinking_end_tags;
    }
}

inline void own_parsing(const common_chat_params & made, const common_chat_templates_inputs & inputs, json & parsing) {
    parsing["generation_prompt"] = made.generation_prompt;
    parsing["is_continuation"]   = inputs.continue_final_message != COMMON_CHAT_CONTINUATION_NONE;
}

inline void read_own_parsing(const json & from, parsing & to) {
    to.generation_prompt = from.at("generation_prompt").get<std::string>();
    to.is_continuation   = from.at("is_continuation").get<bool>();
}

inline common_chat_msg begun(const parsing & how) {
    return how.is_continuation ? common_chat_parse("", true, how) : common_chat_msg();
}

inline void set_tool_call_ids(common_chat_msg & msg, std::vector<std::string> & ids, const std::function<std::string()> & make) {
    msg.set_tool_call_ids(ids, make);
}

inline void set_grammar(sampling_params & params, const std::string & grammar, bool of_a_format) {
    params.grammar = { of_a_format ? COMMON_GRAMMAR_TYPE_TOOL_CALLS : COMMON_GRAMMAR_TYPE_USER, grammar };
}

inline void free_grammar(llama_sampler * grammar) {
    llama_sampler_free(grammar);
}

inline void add_bias(sampling_params & params, llama_token token, float bias) {
    params.logit_bias.push_back({ token, bias });
}

inline float * number(sampling_params & params, const std::string & name) {
    return name == "typical_p" ? &params.typ_p : nullptr;
}

inline bool set_samplers(sampling_params & params, const std::vector<std::string> & names) {
    params.samplers = common_sampler_types_from_names(names);
    return params.samplers.size() == names.size();
}

inline std::vector<llama_token> tokenize(const llama_model * model, const std::string & text) {
    return common_tokenize(llama_model_get_vocab(model), text, false, true);
}

inline void read_own_sampling(const json & from, const llama_model * model, sampling_params & params) {
    if (from.contains("generation_prompt")) {
        params.generation_prompt = from.at("generation_prompt").get<std::string>();
    }
    params.reasoning_budget_tokens = from.value("reasoning_budget", -1);
    if (!from.contains("thinking_end_tags")) {
        return;
    }
    params.reasoning_budget_start = tokenize(model, from.at("thinking_start_tag").get<std::string>());
    for (const auto & tag : from.at("thinking_end_tags")) {
        const auto tokens = tokenize(model, tag.get<std::string>());
        if (!tokens.empty()) {
            params.reasoning_budget_end.push_back(tokens);
        }
    }
    if (!params.reasoning_budget_end.empty()) {
        params.reasoning_budget_forced = tokenize(model, from.value("reasoning_budget_message", ""));
        const auto & end = params.reasoning_budget_end.front();
        params.reasoning_budget_forced.insert(params.reasoning_budget_forced.end(), end.begin(), end.end());
    }
}

inline void settle(sampling_params & params, int32_t n_ctx) {
    // the engine makes room for as many tokens as are asked for
    const auto within = [&](int32_t n) { return n < 0 ? n_ctx : std::min(n, n_ctx); };
    params.penalty_last_n     = within(params.penalty_last_n);
    params.dry_penalty_last_n = within(params.dry_penalty_last_n);
}

inline void before_sampling(common_sampler *, llama_context *) {
}

inline void accept(common_sampler * sampler, llama_context *, llama_token token, bool generated) {
    common_sampler_accept(sampler, token, generated);
}

// The logit of the token that was just chosen, after all samplers: minus infinity if the grammar forbids it.
inline float chosen_logit(common_sampler * sampler, llama_token) {
    const auto * candidates = common_sampler_get_candidates(sampler, false);
    return candidates->data[candidates->selected].logit;
}

inline common_control_vector_data load_control_vector(const char * path) {
    return common_control_vector_load({ { 1.0f, path } });
}

// The layers of a model that guess tokens, in a context of their own.
class mtp {
  public:
    mtp(llama_context * target, llama_context_params params, int32_t n_max) : batch(target) {
        params.ctx_type  = LLAMA_CONTEXT_TYPE_MTP;
        params.ctx_other = target;
        params.n_ctx     = llama_n_ctx(target);
        params.n_rs_seq  = 0;
        // const is of the accessor: the context of the target keeps its model as it is
        ctx.reset(llama_init_from_model(const_cast<llama_model *>(llama_get_model(target)), params));
        if (!ctx) {
            throw std::runtime_error("no context can be made for the layers that guess tokens");
        }
        common_params_speculative how;
        how.types         = { COMMON_SPECULATIVE_TYPE_DRAFT_MTP };
        how.draft.n_max   = n_max;
        how.draft.ctx_tgt = target;
        how.draft.ctx_dft = ctx.get();
        how.draft.backend_sampling = false;
        spec.reset(common_speculative_init(how, 1));
        if (!spec) {
            throw std::runtime_error("this model's layers cannot guess tokens");
        }
    }

    void add(const llama_token * tokens, int32_t n_tokens, llama_pos pos) {
        batch.clear();
        for (int32_t i = 0; i < n_tokens; i++) {
            batch.add(tokens[i], pos + i, 0, true);
        }
        first = pos;
        if (!common_speculative_process(spec.get(), batch)) {
            throw std::runtime_error("the layers that guess tokens cannot be computed");
        }
    }

    void truncate(llama_pos pos) {
        const llama_pos last = pos - 1 - first; // the row of the last batch that stays
        if (guessed && last >= 0 && last < batch.size()) {
            common_speculative_accept(spec.get(), 0, last);
        }
        remove(pos);
    }

    std::vector<llama_token> guess(llama_token token, llama_pos pos, int32_t n_max) {
        llama_tokens made;
        auto & asked = common_speculative_get_draft_params(spec.get(), 0);
        asked = { true, n_max, pos, token, &none, &made };
        common_speculative_draft(spec.get());
        asked.drafting = false;
        guessed = guessed || !made.empty();
        remove(pos);
        return made;
    }

  private:
    void remove(llama_pos pos) {
        if (!llama_memory_seq_rm(llama_get_memory(ctx.get()), 0, pos, -1)) {
            throw std::runtime_error("the layers that guess tokens cannot forget");
        }
    }

    const llama_tokens     none;
    llama_context_ptr      ctx;
    common_speculative_ptr spec;
    common_batch           batch; // the last one
    llama_pos              first   = 0;
    bool                   guessed = false;
};

} // namespace engine
