// Upstream's own test of its chat templates and parsers, with the C API between it and common.
//
// What it asks common goes through the C API as well, as JSON. It goes on with that answer, and its own checks are about
// it. Each answer is compared with the one common itself gives, too. Answers are read as they come: a text that begins
// with the last one is handed over as more of the same answer, and the message is what the deltas add up to.
//
// Compiled with -DIK for ik_llama.cpp.
//
// usage: replay_chat MODEL
// prints {"prompts": number asked for, "texts": number read, "natives": prompts that the API has no words for,
//   "misses": checks of upstream's that failed where it went on, "faults": answers that differ from common's}

#include "common-c-api.h"
#include "common-c-api-impl.h"

#if __has_include("tools/server/server-chat.h")
#    include "tools/server/server-chat.h"
#endif

#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <regex>
#include <stdexcept>
#include <string>

namespace replay {

using engine::json;

static llama_model * model = nullptr;
static std::map<const common_chat_templates *, common_c_chat *> chats;

// What common_c_chat_apply gave to read an answer with.
struct plan {
    std::string parsing;
    bool        continues;
};

static std::map<std::string, plan> plans; // by the parser, and what stands before an answer
static size_t prompts = 0;
static size_t texts   = 0;
static size_t natives = 0; // prompts that the API cannot be asked for
static size_t misses  = 0; // checks of upstream's test that fail
static size_t faults  = 0;

static void fault(const std::string & what, const std::string & theirs, const std::string & ours) {
    faults++;
    fprintf(stderr, "FAULT %s\n  common:  %s\n  the API: %s\n", what.c_str(), theirs.c_str(), ours.c_str());
}

static void same(const char * what, const std::string & theirs, const std::string & ours) {
    if (theirs != ours) {
        fault(what, theirs, ours);
    }
}

static std::string dump(const common_chat_msg & message) {
    return engine::dump(common_chat_msgs_to_json_oaicompat({ message }));
}

static void same(const std::string & what, const common_chat_msg & theirs, const common_chat_msg & ours) {
    if (!(theirs == ours)) {
        fault(what, dump(theirs), dump(ours));
    }
}

static common_chat_templates_ptr init(const llama_model *, const std::string & source) {
    auto   templates = common_chat_templates_init(nullptr, source);
    auto * chat      = common_c_chat_init(model, source.c_str());
    if (!chat) {
        fault("a template is refused", source, common_c_error());
        throw std::runtime_error(common_c_error());
    }
    chats[templates.get()] = chat;
    return templates;
}

static std::string request(const common_chat_templates_inputs & inputs) {
    static const char * const CHOICES[] = { "auto", "required", "none" };
    json messages = json::array();
    for (auto message : inputs.messages) {
        json parts = json::array();
        for (const auto & part : message.content_parts) {
            json one;
            one["type"] = part.type;
            one["text"] = part.text;
            parts.push_back(one);
        }
        // Upstream would put parts together.
        message.content_parts.clear();
        json whole = common_chat_msgs_to_json_oaicompat({ message }).at(0);
        if (!parts.empty()) {
            whole["content"] = parts;
        }
        messages.push_back(whole);
    }
    json asked = json::object();
    asked["messages"]              = messages;
    asked["tool_choice"]           = std::string(CHOICES[(int) inputs.tool_choice]);
    asked["parallel_tool_calls"]   = inputs.parallel_tool_calls;
    asked["reasoning_format"]      = std::string(common_reasoning_format_name(inputs.reasoning_format));
    asked["enable_thinking"]       = inputs.enable_thinking;
    asked["add_generation_prompt"] = inputs.add_generation_prompt;
    asked["now"] = (int64_t) std::chrono::duration_cast<std::chrono::seconds>(inputs.now.time_since_epoch()).count();
    if (!inputs.tools.empty()) {
        asked["tools"] = common_chat_tools_to_json_oaicompat(inputs.tools);
    }
    if (!inputs.json_schema.empty()) {
        asked["json_schema"] = json::parse(inputs.json_schema);
    }
    if (!inputs.grammar.empty()) {
        asked["grammar"] = inputs.grammar;
    }
    if (!inputs.chat_template_kwargs.empty()) {
        json values = json::object();
        for (const auto & item : inputs.chat_template_kwargs) {
            values[item.first] = json::parse(item.second);
        }
        asked["template_kwargs"] = values;
    }
#ifndef IK
    asked["prefill"] = inputs.continue_final_message != COMMON_CHAT_CONTINUATION_NONE;
#endif
    return engine::dump(asked);
}

// Whether the API, which continues what a message ends with, continues the part that is meant.
static bool can_ask(const common_chat_templates_inputs & inputs) {
#ifndef IK
    if (inputs.continue_final_message == COMMON_CHAT_CONTINUATION_CONTENT) {
        const auto & last = inputs.messages.back();
        return !last.content.empty() || !last.content_parts.empty() || last.reasoning_content.empty();
    }
#endif
    return true;
}

static std::vector<std::string> list(const json & from) {
    std::vector<std::string> result;
    for (const auto & item : from) {
        result.push_back(item.get<std::string>());
    }
    return result;
}

static std::string joined(const std::vector<std::string> & items) {
    std::string result;
    for (const auto & item : items) {
        result += item + "\n";
    }
    return result;
}

static std::string joined(const std::vector<common_grammar_trigger> & items) {
    std::string result;
    for (const auto & item : items) {
        result += std::to_string((int) item.type) + " " + item.value + " " + std::to_string(item.token) + "\n";
    }
    return result;
}

static common_chat_params apply(const common_chat_templates * templates, const common_chat_templates_inputs & inputs) {
    prompts++;
    if (!can_ask(inputs)) {
        natives++;
        return common_chat_templates_apply(templates, inputs);
    }
    common_chat_params native;
    std::string refused;
    try {
        native = common_chat_templates_apply(templates, inputs);
    } catch (const std::exception & error) {
        refused = std::string("refused: ") + error.what();
    }
    const std::string asked = request(inputs);
    const char * text = common_c_chat_apply(chats.at(templates), asked.c_str());
    if (!text || !refused.empty()) {
        const std::string why = std::string(text ? "" : "refused: ") + (text ? text : common_c_error());
        if (!text == refused.empty()) {
            fault("one of both refuses " + asked, refused.empty() ? native.prompt : refused, why);
        }
        throw std::runtime_error(why);
    }
    const json made     = json::parse(std::string(text));
    const json sampling = made.at("sampling");
    const json parsing  = made.at("parsing");

    auto result = native;
    result.prompt           = made.at("prompt").get<std::string>();
    result.additional_stops = list(made.at("stops"));
    result.preserved_tokens = list(made.at("preserved_tokens"));
    result.format           = (common_chat_format) parsing.at("format").get<int>();
    result.parser           = parsing.at("parser").get<std::string>();
    result.grammar          = "";
    result.grammar_lazy     = false;
    result.grammar_triggers.clear();
    if (sampling.contains("grammar")) {
        result.grammar      = sampling.at("grammar").get<std::string>();
        result.grammar_lazy = sampling.at("grammar_lazy").get<bool>();
        for (const auto & one : sampling.at("grammar_triggers")) {
            common_grammar_trigger trigger;
            trigger.type  = (common_grammar_trigger_type) one.at("type").template get<int>();
            trigger.value = one.at("value").template get<std::string>();
            trigger.token = one.at("token").template get<int>();
            result.grammar_triggers.push_back(trigger);
        }
        same("grammar", native.grammar, result.grammar);
        same("grammar_lazy", std::to_string(native.grammar_lazy), std::to_string(result.grammar_lazy));
        same("grammar_triggers", joined(native.grammar_triggers), joined(result.grammar_triggers));
    }
#ifndef IK
    result.generation_prompt = parsing.at("generation_prompt").get<std::string>();
    same("generation_prompt", native.generation_prompt, result.generation_prompt);
    if (sampling.contains("thinking_end_tags")) {
        result.thinking_start_tag = sampling.at("thinking_start_tag").get<std::string>();
        result.thinking_end_tags  = list(sampling.at("thinking_end_tags"));
        same("thinking_start_tag", native.thinking_start_tag, result.thinking_start_tag);
    }
    same("thinking_end_tags", joined(native.thinking_end_tags), joined(result.thinking_end_tags));
    plans[result.parser + result.generation_prompt] = { engine::dump(parsing), parsing.at("is_continuation").get<bool>() };
#else
    result.thinking_forced_open = parsing.at("thinking_forced_open").get<bool>();
    same("thinking_forced_open", std::to_string(native.thinking_forced_open), std::to_string(result.thinking_forced_open));
#endif
    same("prompt", native.prompt, result.prompt);
    same("stops", joined(native.additional_stops), joined(result.additional_stops));
    same("preserved_tokens", joined(native.preserved_tokens), joined(result.preserved_tokens));
    same("format", std::to_string(native.format), std::to_string(result.format));
    same("parser", native.parser, result.parser);
    return result;
}

// One answer while it comes.
struct answer {
    std::string       parsing;
    std::string       text;
    common_c_parser * parser = nullptr;
    common_chat_msg   begun;   // what the caller wrote of it, which the API leaves out
    common_chat_msg   message;
};

static answer current;

static void begin(const std::string & parsing, const common_chat_msg & begun) {
    common_c_parser_free(current.parser);
    current = {};
    current.parsing      = parsing;
    current.parser       = common_c_parser_init(parsing.c_str());
    current.begun        = begun;
    current.begun.role   = "assistant";
    current.message      = current.begun;
    if (!current.parser) {
        throw std::runtime_error(common_c_error());
    }
}

static common_chat_tool_call call(const json & from) {
    common_chat_tool_call result;
    const json function = from.at("function");
    if (function.contains("name")) {
        result.name = function.at("name").get<std::string>();
    }
    result.arguments = function.at("arguments").get<std::string>();
    if (from.contains("id")) {
        result.id = from.at("id").get<std::string>();
    }
    return result;
}

static void add(common_chat_msg & message, const json & delta) {
    if (delta.contains("reasoning_content")) {
        message.reasoning_content += delta.at("reasoning_content").get<std::string>();
    }
    if (delta.contains("content")) {
        message.content += delta.at("content").get<std::string>();
    }
    if (!delta.contains("tool_calls")) {
        return;
    }
    for (const auto & one : delta.at("tool_calls")) {
        const size_t index = one.at("index").template get<size_t>();
        if (message.tool_calls.size() <= index) {
            message.tool_calls.resize(index + 1);
        }
        auto & to = message.tool_calls[index];
        const auto more = call(one);
        to.name = more.name.empty() ? to.name : more.name;
        to.id   = more.id.empty() ? to.id : more.id;
        to.arguments += more.arguments;
    }
}

// The API makes up an id for a call that has none when it is first told of, as the server does: in a stream the model's
// own may come too late.
static void forget_new_ids(common_chat_msg & message, const common_chat_msg & native, bool streamed) {
    for (size_t i = 0; i < message.tool_calls.size() && i < native.tool_calls.size(); i++) {
        const bool late = streamed || native.tool_calls[i].id.empty();
        if (late && message.tool_calls[i].id.size() == strlen("call_") + 24) {
            message.tool_calls[i].id = native.tool_calls[i].id;
        }
    }
}

static json add(common_c_parser * parser, const std::string & text, common_c_end end) {
    const char * said = common_c_parser_add(parser, text.data(), text.size(), end);
    if (!said) {
        throw std::runtime_error(common_c_error());
    }
    return json::parse(std::string(said));
}

static common_chat_msg message(const json & from, const common_chat_msg & begun) {
    common_chat_msg result = begun;
    result.role    = "assistant";
    result.content += from.at("content").get<std::string>();
    if (from.contains("reasoning_content")) {
        result.reasoning_content += from.at("reasoning_content").get<std::string>();
    }
    if (from.contains("tool_calls")) {
        for (const auto & one : from.at("tool_calls")) {
            result.tool_calls.push_back(call(one));
        }
    }
    return result;
}

static common_chat_msg through(
        const std::string & how, const common_chat_msg & begun, const std::string & text, bool partial, const common_chat_msg & native) {
    if (!current.parser || current.parsing != how || text.compare(0, current.text.size(), current.text) != 0) {
        begin(how, begun);
    }
    json parsed;
    try {
        parsed = add(current.parser, text.substr(current.text.size()), partial ? COMMON_C_END_NONE : COMMON_C_END_WHOLE);
    } catch (...) {
        begin(how, begun);
        throw;
    }
    current.text = text;
    for (const auto & delta : parsed.at("deltas")) {
        add(current.message, delta);
    }
    auto result = current.message;
    forget_new_ids(result, native, true);
    if (!partial) {
        auto ended = message(parsed.at("message"), begun);
        forget_new_ids(ended, native, true);
        same("the deltas of '" + text + "'", ended, result);
        // The same without a stream.
        begin(how, begun);
        result = message(add(current.parser, text, COMMON_C_END_WHOLE).at("message"), begun);
        forget_new_ids(result, native, false);
        begin(how, begun);
    }
    return result;
}

// Parsers that a prompt did not bring come from the test itself.
static plan plan_of(const common_peg_arena & arena, const engine::parsing & how) {
    static const void * last = nullptr;
    static size_t       last_prompts = 0;
    static std::string  parser;
    if (arena.empty()) {
        last   = nullptr;
        parser = "";
    } else if (last != &arena || last_prompts != prompts) {
        // It takes long, and is another one after a prompt at the earliest.
        parser       = arena.save();
        last         = &arena;
        last_prompts = prompts;
    }
    json parsing = json::object();
#ifndef IK
    const auto found = plans.find(parser + how.generation_prompt);
    if (found != plans.end()) {
        return found->second;
    }
    parsing["generation_prompt"]    = how.generation_prompt;
    parsing["is_continuation"]      = how.is_continuation;
#else
    parsing["thinking_forced_open"] = how.thinking_forced_open;
#endif
    parsing["format"]               = (int) how.format;
    parsing["reasoning_format"]     = std::string(common_reasoning_format_name(how.reasoning_format));
    parsing["reasoning_in_content"] = how.reasoning_in_content;
    parsing["parse_tool_calls"]     = how.parse_tool_calls;
    parsing["parser"]               = parser;
    return { engine::dump(parsing), false };
}

static common_chat_msg read(
        const common_peg_arena & arena, const std::string & text, bool partial, const engine::parsing & how,
        const std::function<common_chat_msg(const std::string &, bool)> & natively) {
    texts++;
    common_chat_msg native;
    std::string refused;
    try {
        native = natively(text, partial);
    } catch (const std::exception & error) {
        refused = error.what();
    }
    const auto [how_to, continues] = plan_of(arena, how);
    const auto begun = continues ? natively("", true) : common_chat_msg();
    if (!refused.empty() && !partial) {
        // What is no whole answer is read as far as it goes, where common refuses it.
        throw std::runtime_error(refused);
    }
    common_chat_msg message;
    try {
        message = through(how_to, begun, text, partial, native);
    } catch (const std::exception & error) {
        if (refused.empty()) {
            fault("the API refuses '" + text + "'", dump(native), error.what());
        }
        throw;
    }
    if (!refused.empty()) {
        fault("common refuses '" + text + "'", refused, dump(message));
    }
    auto expected = native;
    expected.role = "assistant";
    same("the message of '" + text + (partial ? "' so far" : "' as a whole"), expected, message);
    return message;
}

static common_chat_msg peg_parse(const common_peg_arena & arena, const std::string & text, bool partial, const engine::parsing & how) {
    return read(arena, text, partial, how, [&](const std::string & some, bool more) { return common_chat_peg_parse(arena, some, more, how); });
}

static common_chat_msg parse(const std::string & text, bool partial, const engine::parsing & how) {
    return read(how.parser, text, partial, how, [&](const std::string & some, bool more) { return common_chat_parse(some, more, how); });
}

#ifdef IK
// Its test is older than its common, and some of its templates are not to be had: what it would throw is counted, and it
// goes on.
struct missed {
    missed & operator=(const std::exception & error) {
        misses++;
        fprintf(stderr, "MISSED %s\n", error.what());
        return *this;
    }
};
#    define throw replay::missed() =
#endif

} // namespace replay

#ifdef IK
#    define common_chat_parser_params common_chat_syntax
#endif
#define common_chat_templates_init  replay::init
#define common_chat_templates_apply replay::apply
#define common_chat_peg_parse       replay::peg_parse
#define common_chat_parse           replay::parse
#define main                        upstream_main

#include "tests/test-chat.cpp"

#undef main
#undef throw

int main(int argc, char ** argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s MODEL\n", argv[0]);
        return 2;
    }
    auto params = llama_model_default_params();
    params.vocab_only = true;
    replay::model = llama_model_load_from_file(argv[1], params);
    if (!replay::model) {
        return 2;
    }
    int status = 1;
    try {
        status = upstream_main(1, argv);
    } catch (const std::exception & error) {
        fprintf(stderr, "upstream's test: %s\n", error.what());
    }
    printf(
        "\n{\"prompts\": %zu, \"texts\": %zu, \"natives\": %zu, \"misses\": %zu, \"faults\": %zu}\n",
        replay::prompts, replay::texts, replay::natives, replay::misses, replay::faults);
    return status || replay::faults ? 1 : 0;
}
