#include "common-c-api.h"

#include "common-c-api-impl.h"

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

using engine::json;

// What is nested more deeply is read by functions that call themselves, and no stack is endless.
static const int MAX_DEPTH = 256;

struct common_c_chat {
    common_chat_templates_ptr templates;
};

struct common_c_parser {
    engine::parsing how;
    std::string     text;
    common_chat_msg begun;   // what the caller wrote of the answer
    common_chat_msg message; // of the text so far
    std::vector<std::string> tool_call_ids;
};

struct common_c_sampler {
    common_sampler * sampler;
    bool             constrained; // by a grammar

    ~common_c_sampler() {
        common_sampler_free(sampler);
    }
};

struct common_c_mtp {
    engine::mtp layers;
};

static thread_local std::string last_error;
static thread_local std::string last_text;
static thread_local std::vector<float> last_numbers;

// common would print what goes wrong; the exceptions say it as well
static bool quiet() {
    common_log_pause(common_log_main());
    return true;
}

template <typename T, typename F> static T guarded(T failed, F && work) {
    static const bool once = quiet();
    (void) once;
    try {
        last_error.clear();
        return work();
    } catch (const std::exception & error) {
        last_error = error.what();
    } catch (...) {
        last_error = "unknown failure";
    }
    if (last_error.empty()) {
        last_error = "no reason given";
    }
    return failed;
}

static const char * give(std::string text) {
    last_text = std::move(text);
    return last_text.c_str();
}

static void check_depth(const std::string & text, const char * opening, const char * closing, const char * what) {
    int  depth  = 0;
    bool quoted = false;
    for (size_t i = 0; i < text.size(); i++) {
        const char c = text[i];
        if (c == '\\') {
            i++;
        } else if (c == '"') {
            quoted = !quoted;
        } else if (!quoted && c != '\0' && strchr(opening, c)) {
            if (++depth > MAX_DEPTH) {
                throw std::invalid_argument(std::string(what) + " is nested more than " + std::to_string(MAX_DEPTH) + " levels deep");
            }
        } else if (!quoted && c != '\0' && strchr(closing, c)) {
            depth--;
        }
    }
}

// Upstream counts from the most repetitions down to the fewest, and past them for ever.
static void check_repetitions(const std::string & grammar) {
    char quote = 0;
    for (size_t i = 0; i < grammar.size(); i++) {
        const char c = grammar[i];
        if (c == '\\') {
            i++;
        } else if (quote) {
            quote = c == quote ? 0 : quote;
        } else if (c == '"' || c == '[') {
            quote = c == '"' ? '"' : ']';
        } else if (c == '#') {
            i = std::min(grammar.find('\n', i), grammar.size());
        } else if (c == '{') {
            char * end = nullptr;
            const unsigned long long fewest = strtoull(grammar.c_str() + i + 1, &end, 10);
            const size_t comma = grammar.find_first_not_of(" \t\r\n", end - grammar.c_str());
            if (comma == std::string::npos || grammar[comma] != ',') {
                continue;
            }
            const size_t digit = grammar.find_first_not_of(" \t\r\n", comma + 1);
            if (digit != std::string::npos && isdigit((unsigned char) grammar[digit]) && strtoull(grammar.c_str() + digit, nullptr, 10) < fewest) {
                throw std::invalid_argument("the grammar repeats something at least " + std::to_string(fewest) + " times and fewer times than that");
            }
        }
    }
}

static json parse_object(const char * text, const char * what) {
    check_depth(text, "[{", "]}", what);
    json value = json::parse(std::string(text));
    if (!value.is_object()) {
        throw std::invalid_argument(std::string(what) + " is no JSON object");
    }
    return value;
}

static bool given(const json & from, const char * name) {
    return from.contains(name) && !from.at(name).is_null();
}

template <typename T> static T get(const json & from, const char * name, T otherwise) {
    return given(from, name) ? from.at(name).get<T>() : otherwise;
}

static std::vector<std::string> texts(const json & list) {
    std::vector<std::string> result;
    for (const auto & item : list) {
        result.push_back(item.get<std::string>());
    }
    return result;
}

static json as_array(const std::vector<std::string> & items) {
    json list = json::array();
    for (const auto & item : items) {
        list.push_back(item);
    }
    return list;
}

const char * common_c_error(void) {
    return last_error.c_str();
}

//
// chat
//

common_c_chat * common_c_chat_init(const llama_model * model, const char * chat_template) {
    return guarded((common_c_chat *) nullptr, [&] {
        const std::string text = chat_template ? chat_template : "";
        const char * own = llama_model_chat_template(model, nullptr);
        engine::check_template(text.empty() && own ? own : text);
        auto chat = std::make_unique<common_c_chat>();
        chat->templates = common_chat_templates_init(model, text);
        return chat.release();
    });
}

void common_c_chat_free(common_c_chat * chat) {
    delete chat;
}

const char * common_c_chat_describe(const common_c_chat * chat) {
    return guarded((const char *) nullptr, [&] {
        const auto * templates = chat->templates.get();
        json caps = json::object();
        for (const auto & cap : common_chat_templates_get_caps(templates)) {
            caps[cap.first] = cap.second;
        }
        json about;
        about["source"]   = common_chat_templates_source(templates);
        about["explicit"] = common_chat_templates_was_explicit(templates);
        about["thinking"] = common_chat_templates_support_enable_thinking(templates);
        about["caps"]     = caps;
        return give(engine::dump(about));
    });
}

static common_chat_templates_inputs read_request(const json & request) {
    const json & messages = request.at("messages");
    if (!messages.is_array() || messages.empty()) {
        throw std::invalid_argument("messages must be a list with at least one message");
    }
    common_chat_templates_inputs inputs;
    inputs.messages = common_chat_msgs_parse_oaicompat(messages);
    if (given(request, "tools")) {
        inputs.tools = common_chat_tools_parse_oaicompat(request.at("tools"));
    }
    inputs.tool_choice           = common_chat_tool_choice_parse_oaicompat(get<std::string>(request, "tool_choice", "auto"));
    inputs.json_schema           = given(request, "json_schema") ? engine::dump(request.at("json_schema")) : "";
    inputs.grammar               = get<std::string>(request, "grammar", "");
    inputs.use_jinja             = true;
    inputs.parallel_tool_calls   = get(request, "parallel_tool_calls", false);
    inputs.add_generation_prompt = get(request, "add_generation_prompt", true);
    inputs.reasoning_format      = common_reasoning_format_from_name(get<std::string>(request, "reasoning_format", "auto"));
    inputs.enable_thinking       = get(request, "enable_thinking", true);
    if (given(request, "template_kwargs")) {
        for (const auto & item : request.at("template_kwargs").items()) {
            inputs.chat_template_kwargs[item.key()] = engine::dump(item.value());
        }
    }
    if (given(request, "now")) {
        inputs.now = std::chrono::system_clock::time_point(std::chrono::seconds(request.at("now").get<int64_t>()));
    }
    if (get(request, "prefill", false)) {
        if (inputs.messages.back().role != "assistant") {
            throw std::invalid_argument("prefill needs a last message of the assistant");
        }
        if (inputs.messages.size() >= 2 && inputs.messages[inputs.messages.size() - 2].role == "assistant") {
            throw std::invalid_argument("two messages of the assistant stand at the end");
        }
        if (!inputs.messages.back().tool_calls.empty()) {
            throw std::invalid_argument("a message with tool calls cannot be continued");
        }
        engine::prefill(inputs);
    }
    return inputs;
}

const char * common_c_chat_apply(const common_c_chat * chat, const char * text) {
    return guarded((const char *) nullptr, [&] {
        const json request = parse_object(text, "the request");
        auto inputs = read_request(request);
        const std::string beginning = get(request, "prefill", false) ? engine::prefilled(inputs) : "";
        const auto made = common_chat_templates_apply(chat->templates.get(), inputs);

        json triggers = json::array();
        for (const auto & trigger : made.grammar_triggers) {
            json one;
            one["type"]  = (int) trigger.type;
            one["value"] = trigger.value;
            one["token"] = (int) trigger.token;
            triggers.push_back(one);
        }
        json sampling = json::object();
        if (!made.grammar.empty()) {
            sampling["grammar"]             = made.grammar;
            sampling["grammar_of_a_format"] = true;
            sampling["grammar_lazy"]        = made.grammar_lazy;
            sampling["grammar_triggers"]    = triggers;
            sampling["preserved_tokens"]    = as_array(made.preserved_tokens);
        }
        engine::own_sampling(made, sampling);

        json parsing;
        parsing["format"]               = (int) made.format;
        parsing["reasoning_format"]     = std::string(common_reasoning_format_name(inputs.reasoning_format));
        parsing["reasoning_in_content"] = get(request, "stream", false) && inputs.reasoning_format == COMMON_REASONING_FORMAT_DEEPSEEK_LEGACY;
        parsing["parse_tool_calls"]     = !inputs.tools.empty() && inputs.tool_choice != COMMON_CHAT_TOOL_CHOICE_NONE;
        parsing["parser"]               = made.parser;
        engine::own_parsing(made, inputs, parsing);

        json result;
        result["prompt"]           = made.prompt + beginning;
        result["stops"]            = as_array(made.additional_stops);
        result["preserved_tokens"] = as_array(made.preserved_tokens);
        result["sampling"]         = sampling;
        result["parsing"]          = parsing;
        return give(engine::dump(result));
    });
}

common_c_parser * common_c_parser_init(const char * text) {
    return guarded((common_c_parser *) nullptr, [&] {
        const json parsing = json::parse(std::string(text));
        const int  format  = parsing.at("format").get<int>();
        if (format < 0 || format >= COMMON_CHAT_FORMAT_COUNT) {
            throw std::invalid_argument("there is no chat format " + std::to_string(format));
        }
        auto result = std::make_unique<common_c_parser>();
        auto & how = result->how;
        how.format               = (common_chat_format) format;
        how.reasoning_format     = common_reasoning_format_from_name(parsing.at("reasoning_format").get<std::string>());
        how.reasoning_in_content = parsing.at("reasoning_in_content").get<bool>();
        how.parse_tool_calls     = parsing.at("parse_tool_calls").get<bool>();
        const std::string parser = parsing.at("parser").get<std::string>();
        if (!parser.empty()) {
            how.parser.load(parser);
        }
        engine::read_own_parsing(parsing, how);
        result->begun   = engine::begun(how);
        result->message = result->begun;
        return result.release();
    });
}

void common_c_parser_free(common_c_parser * parser) {
    delete parser;
}

static std::string new_tool_call_id(size_t number) {
    static thread_local uint64_t state = (uint64_t) std::chrono::steady_clock::now().time_since_epoch().count();
    static const char letters[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    std::string id = "call_";
    for (int i = 0; i < 24; i++) {
        // SplitMix64, Steele et al. 2014
        uint64_t z = (state += 0x9e3779b97f4a7c15ull);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        id += letters[((z ^ (z >> 31)) + number) % (sizeof(letters) - 1)];
    }
    return id;
}

static json call_json(const common_chat_tool_call & call) {
    json function = json::object();
    if (!call.name.empty()) {
        function["name"] = call.name;
    }
    function["arguments"] = call.arguments;
    json result = json::object();
    if (!call.id.empty()) {
        result["id"]   = call.id;
        result["type"] = std::string("function");
    }
    result["function"] = function;
    return result;
}

static json delta_json(const common_chat_msg_diff & diff) {
    json delta = json::object();
    if (!diff.reasoning_content_delta.empty()) {
        delta["reasoning_content"] = diff.reasoning_content_delta;
    }
    if (!diff.content_delta.empty()) {
        delta["content"] = diff.content_delta;
    }
    if (diff.tool_call_index != std::string::npos) {
        json call = call_json(diff.tool_call_delta);
        call["index"] = (int64_t) diff.tool_call_index;
        json calls = json::array();
        calls.push_back(call);
        delta["tool_calls"] = calls;
    }
    return delta;
}

// What a text has more than its beginning.
static std::string after(const std::string & text, const std::string & begun) {
    return text.compare(0, begun.size(), begun) == 0 ? text.substr(begun.size()) : text;
}

static json message_json(const common_chat_msg & message, const common_chat_msg & begun) {
    json result;
    result["role"]    = std::string("assistant");
    result["content"] = after(message.content, begun.content);
    const std::string reasoning = after(message.reasoning_content, begun.reasoning_content);
    if (!reasoning.empty()) {
        result["reasoning_content"] = reasoning;
    }
    if (!message.tool_calls.empty()) {
        json calls = json::array();
        for (const auto & call : message.tool_calls) {
            calls.push_back(call_json(call));
        }
        result["tool_calls"] = calls;
    }
    return result;
}

static common_chat_msg parse_answer(const common_c_parser & parser, common_c_end end) {
    const bool partial = end == COMMON_C_END_NONE || (end == COMMON_C_END_CUT && engine::CUT_IS_PARTIAL);
    try {
        return common_chat_parse(parser.text, partial, parser.how);
    } catch (const std::exception &) {
        if (partial) {
            throw;
        }
    }
    // it is no whole answer, though it ended
    return common_chat_parse(parser.text, true, parser.how);
}

const char * common_c_parser_add(common_c_parser * parser, const char * text, size_t size, common_c_end end) {
    return guarded((const char *) nullptr, [&] {
        parser->text.append(text, size);
        check_depth(parser->text, "[{", "]}", "the answer");
        json deltas = json::array();
        auto message = parse_answer(*parser, end);
        if (!message.empty()) {
            engine::set_tool_call_ids(message, parser->tool_call_ids, [&] { return new_tool_call_id(parser->tool_call_ids.size()); });
            for (const auto & diff : common_chat_msg_diff::compute_diffs(parser->message, message)) {
                deltas.push_back(delta_json(diff));
            }
            parser->message = message;
        }
        json result;
        result["deltas"] = deltas;
        if (end != COMMON_C_END_NONE) {
            result["message"] = message_json(message, parser->begun);
        }
        return give(engine::dump(result));
    });
}

const char * common_c_schema_to_grammar(const char * text) {
    return guarded((const char *) nullptr, [&] {
        check_depth(text, "[{", "]}", "the JSON schema");
        return give(json_schema_to_grammar(json::parse(std::string(text))));
    });
}

//
// sampling
//

struct named_float {
    const char * name;
    float engine::sampling_params::* member;
};

struct named_int {
    const char * name;
    int32_t engine::sampling_params::* member;
};

using P = engine::sampling_params;

static const named_float FLOATS[] = {
    { "temperature",       &P::temp              },
    { "dynatemp_range",    &P::dynatemp_range    },
    { "dynatemp_exponent", &P::dynatemp_exponent },
    { "top_p",             &P::top_p             },
    { "min_p",             &P::min_p             },
    { "top_n_sigma",       &P::top_n_sigma       },
    { "xtc_probability",   &P::xtc_probability   },
    { "xtc_threshold",     &P::xtc_threshold     },
    { "repeat_penalty",    &P::penalty_repeat    },
    { "frequency_penalty", &P::penalty_freq      },
    { "presence_penalty",  &P::penalty_present   },
    { "dry_multiplier",    &P::dry_multiplier    },
    { "dry_base",          &P::dry_base          },
    { "mirostat_tau",      &P::mirostat_tau      },
    { "mirostat_eta",      &P::mirostat_eta      },
    { "adaptive_target",   &P::adaptive_target   },
    { "adaptive_decay",    &P::adaptive_decay    },
};

static const named_int INTEGERS[] = {
    { "top_k",              &P::top_k              },
    { "min_keep",           &P::min_keep           },
    { "penalty_last_n",     &P::penalty_last_n     },
    { "dry_allowed_length", &P::dry_allowed_length },
    { "dry_penalty_last_n", &P::dry_penalty_last_n },
    { "mirostat",           &P::mirostat           },
};

static const char * const OTHERS[] = {
    "seed", "dry_sequence_breakers", "samplers", "logit_bias", "ignore_eos", "grammar", "typical_p", "grammar_of_a_format",
    "grammar_lazy", "grammar_triggers", "preserved_tokens", "generation_prompt", "thinking_start_tag",
    "thinking_end_tags", "reasoning_budget", "reasoning_budget_message",
};

static void check_names(const json & params) {
    for (const auto & item : params.items()) {
        const std::string name = item.key();
        const auto is = [&](const char * other) { return name == other; };
        bool known = std::any_of(std::begin(OTHERS), std::end(OTHERS), is)
            || std::any_of(std::begin(FLOATS), std::end(FLOATS), [&](const named_float & one) { return is(one.name); })
            || std::any_of(std::begin(INTEGERS), std::end(INTEGERS), [&](const named_int & one) { return is(one.name); });
        for (const char * const * own = engine::OWN_NUMBERS; *own && !known; own++) {
            known = is(*own);
        }
        if (!known) {
            throw std::invalid_argument("this engine's samplers have no parameter " + name);
        }
    }
}

static void read_grammar(const json & from, const llama_model * model, engine::sampling_params & params) {
    const std::string grammar = get<std::string>(from, "grammar", "");
    if (grammar.empty()) {
        return;
    }
    check_depth(grammar, "(", ")", "the grammar");
    check_repetitions(grammar);
    if (grammar.compare(0, 11, "%llguidance") == 0) {
        throw std::invalid_argument("this build has no llguidance; give a GBNF grammar");
    }
    engine::set_grammar(params, grammar, get(from, "grammar_of_a_format", false));
    params.grammar_lazy = get(from, "grammar_lazy", false);
    if (given(from, "preserved_tokens")) {
        for (const auto & text : from.at("preserved_tokens")) {
            const auto tokens = engine::tokenize(model, text.template get<std::string>());
            if (tokens.size() == 1) {
                params.preserved_tokens.insert(tokens[0]);
            }
        }
    }
    if (given(from, "grammar_triggers")) {
        for (const auto & one : from.at("grammar_triggers")) {
            common_grammar_trigger trigger;
            const int type = one.at("type").template get<int>();
            trigger.type  = (common_grammar_trigger_type) type;
            trigger.value = one.at("value").template get<std::string>();
            trigger.token = one.at("token").template get<int>();
            if (type < COMMON_GRAMMAR_TRIGGER_TYPE_TOKEN || type > COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN_FULL) {
                throw std::invalid_argument("there is no kind of trigger " + std::to_string(type));
            }
            if (trigger.type == COMMON_GRAMMAR_TRIGGER_TYPE_WORD) {
                // a word that is one token of its own is recognized as that
                const auto tokens = engine::tokenize(model, trigger.value);
                if (tokens.size() == 1 && params.preserved_tokens.count(tokens[0])) {
                    trigger.type  = COMMON_GRAMMAR_TRIGGER_TYPE_TOKEN;
                    trigger.token = tokens[0];
                }
            }
            params.grammar_triggers.push_back(trigger);
        }
    }
    if (params.grammar_lazy && params.grammar_triggers.empty()) {
        throw std::invalid_argument("a lazy grammar needs triggers");
    }
}

static void check_grammar(const llama_vocab * vocab, const std::string & grammar) {
    // one engine goes on without a grammar that it cannot read, the other leaks what it made before it finds out
    auto * parsed = llama_sampler_init_grammar(vocab, grammar.c_str(), "root");
    if (!parsed) {
        throw std::invalid_argument("the grammar cannot be used: it has an error, no rule root, or left recursion");
    }
    engine::free_grammar(parsed);
}

common_c_sampler * common_c_sampler_init(const llama_context * ctx, const char * text) {
    return guarded((common_c_sampler *) nullptr, [&] {
        const json from = parse_object(text, "the parameters");
        check_names(from);
        const llama_model * model = llama_get_model(ctx);
        const llama_vocab * vocab = llama_model_get_vocab(model);
        const int32_t n_vocab = llama_vocab_n_tokens(vocab);

        engine::sampling_params params;
        params.seed = (uint32_t) get<int64_t>(from, "seed", LLAMA_DEFAULT_SEED);
        for (const auto & one : FLOATS) {
            params.*one.member = get(from, one.name, params.*one.member);
        }
        for (const auto & one : INTEGERS) {
            params.*one.member = get(from, one.name, params.*one.member);
        }
        for (const auto & item : from.items()) {
            if (float * own = engine::number(params, item.key())) {
                *own = item.value().template get<float>();
            }
        }
        if (params.mirostat < 0 || params.mirostat > 2) {
            throw std::invalid_argument("mirostat must be 0, 1 or 2");
        }
        if (given(from, "dry_sequence_breakers")) {
            params.dry_sequence_breakers = texts(from.at("dry_sequence_breakers"));
        }
        if (given(from, "samplers") && !engine::set_samplers(params, texts(from.at("samplers")))) {
            throw std::invalid_argument("one of the samplers is none of this engine's");
        }
        if (given(from, "logit_bias")) {
            for (const auto & pair : from.at("logit_bias")) {
                const llama_token token = pair.at(0).template get<int>();
                if (token < 0 || token >= n_vocab) {
                    throw std::invalid_argument("logit_bias has the token " + std::to_string(token) + ", which there is not");
                }
                engine::add_bias(params, token, pair.at(1).is_null() ? -INFINITY : pair.at(1).template get<float>());
            }
        }
        if (get(from, "ignore_eos", false)) {
            for (llama_token token = 0; token < n_vocab; token++) {
                if (llama_vocab_is_eog(vocab, token)) {
                    engine::add_bias(params, token, -INFINITY);
                }
            }
        }
        engine::settle(params, (int32_t) llama_n_ctx(ctx));
        read_grammar(from, model, params);
        engine::read_own_sampling(from, model, params);
        const bool constrained = given(from, "grammar") && !from.at("grammar").get<std::string>().empty();
        if (constrained) {
            check_grammar(vocab, from.at("grammar").get<std::string>());
        }
        auto * sampler = common_sampler_init(model, params);
        if (!sampler) {
            throw std::runtime_error("the sampler cannot be made");
        }
        return new common_c_sampler { sampler, constrained };
    });
}

void common_c_sampler_free(common_c_sampler * sampler) {
    delete sampler;
}

bool common_c_sampler_accept(common_c_sampler * sampler, llama_context * ctx, const llama_token * tokens, size_t n_tokens) {
    return guarded(false, [&] {
        for (size_t i = 0; i < n_tokens; i++) {
            engine::accept(sampler->sampler, ctx, tokens[i], false);
        }
        return true;
    });
}

// A logit that is infinite, or no number, ends the process in some of the samplers.
static bool all_numbers(const float * row, int32_t n) {
    uint32_t largest = 0;
    for (int32_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, row + i, sizeof(bits));
        largest = std::max(largest, bits & 0x7f800000u);
    }
    return largest != 0x7f800000u;
}

llama_token common_c_sampler_sample(common_c_sampler * sampler, llama_context * ctx, int32_t idx) {
    return guarded((llama_token) -1, [&] {
        const float * row = llama_get_logits_ith(ctx, idx);
        if (!row) {
            throw std::runtime_error("there are no logits to sample from");
        }
        if (!all_numbers(row, llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx))))) {
            throw std::runtime_error("the model computed logits that are not numbers; is its file sound, do the KV cache types suit it?");
        }
        engine::before_sampling(sampler->sampler, ctx);
        const llama_token token = common_sampler_sample(sampler->sampler, ctx, idx);
        if (sampler->constrained && engine::chosen_logit(sampler->sampler, token) == -INFINITY) {
            throw std::runtime_error("no token of the model continues what the grammar allows");
        }
        engine::accept(sampler->sampler, ctx, token, true);
        return token;
    });
}

int32_t common_c_logprobs(const float * logits, int32_t n_vocab, llama_token token, int32_t n_top, llama_token * ids, float * logprobs) {
    return guarded((int32_t) -1, [&] {
        if (!logits || n_vocab < 1 || token < 0 || token >= n_vocab || !all_numbers(logits, n_vocab)) {
            throw std::runtime_error("there are no probabilities of this row");
        }
        n_top = std::clamp(n_top, 0, n_vocab);
        const float largest = *std::max_element(logits, logits + n_vocab);
        double sum = 0.0;
        for (int32_t i = 0; i < n_vocab; i++) {
            sum += std::exp((double) logits[i] - largest);
        }
        const double log_sum = largest + std::log(sum);
        std::vector<llama_token> order(n_vocab);
        std::iota(order.begin(), order.end(), 0);
        std::partial_sort(order.begin(), order.begin() + n_top, order.end(), [&](llama_token a, llama_token b) {
            return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
        });
        ids[0] = token;
        std::copy(order.begin(), order.begin() + n_top, ids + 1);
        for (int32_t i = 0; i <= n_top; i++) {
            logprobs[i] = (float) (logits[ids[i]] - log_sum);
        }
        return n_top + 1;
    });
}

const float * common_c_control_vector(const char * path, int32_t * n_embd, int32_t * n_values) {
    return guarded((const float *) nullptr, [&] {
        auto loaded = engine::load_control_vector(path);
        if (loaded.n_embd <= 0 || loaded.data.empty()) {
            throw std::runtime_error("the file holds no control vector");
        }
        last_numbers = std::move(loaded.data);
        *n_embd   = loaded.n_embd;
        *n_values = (int32_t) last_numbers.size();
        return (const float *) last_numbers.data();
    });
}

common_c_mtp * common_c_mtp_init(llama_context * ctx, llama_context_params params, int32_t n_max) {
    return guarded((common_c_mtp *) nullptr, [&] {
        return new common_c_mtp { { ctx, params, n_max } };
    });
}

void common_c_mtp_free(common_c_mtp * mtp) {
    delete mtp;
}

bool common_c_mtp_add(common_c_mtp * mtp, const llama_token * tokens, int32_t n_tokens, llama_pos pos) {
    return guarded(false, [&] {
        mtp->layers.add(tokens, n_tokens, pos);
        return true;
    });
}

bool common_c_mtp_truncate(common_c_mtp * mtp, llama_pos pos) {
    return guarded(false, [&] {
        mtp->layers.truncate(pos);
        return true;
    });
}

int32_t common_c_mtp_guess(common_c_mtp * mtp, llama_token token, llama_pos pos, llama_token * guesses, int32_t n_max) {
    return guarded((int32_t) -1, [&] {
        const auto made = mtp->layers.guess(token, pos, n_max);
        std::copy(made.begin(), made.end(), guesses);
        return (int32_t) made.size();
    });
}
