#include "common/text/chat_template.h"

#include <utility>
#include <vector>

#include "common/base/file.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "common/text/jinja/from_json.h"
#include "common/text/jinja/interpreter.h"
#include "common/text/jinja/parser.h"

namespace hearth {
namespace {

// Real ones are below 1 MiB; added tokens make tokenizer_config.json the longer one.
constexpr uint64_t kMaxFileBytes = 64 << 20;

class ParsedTemplate final : public ChatTemplate {
 public:
  ParsedTemplate(jinja::Block block, json::object tokens, const TemplateLimits& limits)
      : block_(std::move(block)), tokens_(std::move(tokens)), limits_(limits) {}

  absl::StatusOr<std::string> Render(const json::object& variables) const override {
    auto scope = std::make_shared<jinja::Scope>();
    for (const json::object* source : {&variables, &tokens_}) {  // what the caller names wins
      for (const auto& entry : *source) {
        HEARTH_ASSIGN_OR_RETURN(jinja::Value value,
                                jinja::FromJson(entry.value(), limits_.max_depth));
        scope->variables.emplace(std::string_view(entry.key().data(), entry.key().size()),
                                 std::move(value));
      }
    }
    return jinja::Interpreter(limits_).Render(block_, std::move(scope));
  }

 private:
  const jinja::Block block_;
  const json::object tokens_;
  const TemplateLimits limits_;
};

absl::StatusOr<std::unique_ptr<ChatTemplate>> Make(std::string_view source, json::object tokens,
                                                   const TemplateLimits& limits) {
  HEARTH_ASSIGN_OR_RETURN(jinja::Block block, jinja::ParseTemplate(source, limits));
  return std::make_unique<ParsedTemplate>(std::move(block), std::move(tokens), limits);
}

// bos_token, eos_token ...: a string, or an object whose content is it. Absent and null ones stay
// undefined.
json::object SpecialTokens(const json::object& config) {
  static constexpr std::string_view kNames[] = {
      "bos_token", "eos_token", "unk_token",  "sep_token",
      "pad_token", "cls_token", "mask_token", "additional_special_tokens"};
  json::object tokens;
  for (const std::string_view name : kNames) {
    const json::value* token = config.if_contains({name.data(), name.size()});
    if (token == nullptr) continue;
    if (const auto* object = token->if_object()) token = object->if_contains("content");
    if (token != nullptr && (token->is_string() || token->is_array()))
      tokens[{name.data(), name.size()}] = *token;
  }
  return tokens;
}

// chat_template of tokenizer_config.json: a string, or a list of {"name", "template"}.
const json::string* TemplateOf(const json::object& config) {
  const json::value* found = config.if_contains("chat_template");
  if (found == nullptr) return nullptr;
  if (!found->is_array()) return found->if_string();
  for (const json::value& entry : found->get_array()) {
    const auto* object = entry.if_object();
    if (object == nullptr) continue;
    const json::value* name = object->if_contains("name");
    const json::value* text = object->if_contains("template");
    if (name != nullptr && name->is_string() && name->get_string() == "default" && text != nullptr)
      return text->if_string();
  }
  return nullptr;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Parse(std::string_view source,
                                                                  const TemplateLimits& limits) {
  return Make(source, {}, limits);
}

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Load(
    const std::filesystem::path& folder, const TemplateLimits& limits) {
  const std::filesystem::path config_path = folder / "tokenizer_config.json",
                              file = folder / "chat_template.jinja";
  json::object config;
  if (std::filesystem::exists(config_path)) {
    HEARTH_ASSIGN_OR_RETURN(const std::string text, ReadFile(config_path, kMaxFileBytes));
    auto parsed = ParseJson(text);
    if (!parsed.ok()) return Annotate(parsed.status(), config_path.string());
    if (!parsed->is_object())
      return absl::InvalidArgumentError(config_path.string() + ": expected an object");
    config = std::move(parsed->get_object());
  }
  if (std::filesystem::exists(file)) {
    HEARTH_ASSIGN_OR_RETURN(const std::string source, ReadFile(file, kMaxFileBytes));
    auto made = Make(source, SpecialTokens(config), limits);
    if (!made.ok()) return Annotate(made.status(), file.string());
    return made;
  }
  const json::string* source = TemplateOf(config);
  if (source == nullptr) {
    return absl::NotFoundError(folder.string() +
                               ": no chat template: neither chat_template.jinja nor chat_template "
                               "in tokenizer_config.json");
  }
  auto made = Make({source->data(), source->size()}, SpecialTokens(config), limits);
  if (!made.ok()) return Annotate(made.status(), config_path.string() + ", chat_template");
  return made;
}

}  // namespace hearth
