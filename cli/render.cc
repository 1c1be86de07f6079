// `hearth render`: conversations to prompts through a chat template, for scripts and comparisons.
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/stdin_json.h"
#include "common/base/file.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "common/text/chat_template.h"

namespace hearth::cli {
namespace {

constexpr uint64_t kMaxTemplate = 4 << 20;
constexpr int kMaxDepth = 256;  // of the messages; the template's own budget is tighter

// The template's variables: the case's own fields, then kwargs. Absent tools are none, as where
// applications call a template.
json::object Variables(const json::object& item) {
  json::object variables;
  for (const char* name : {"messages", "tools", "add_generation_prompt"}) {
    const json::value* value = item.if_contains(name);
    if (value != nullptr) variables[name] = *value;
  }
  if (!variables.contains("tools")) variables["tools"] = nullptr;
  if (!variables.contains("add_generation_prompt")) variables["add_generation_prompt"] = false;
  if (const json::value* kwargs = item.if_contains("kwargs"); kwargs && kwargs->is_object()) {
    for (const auto& [name, value] : kwargs->get_object()) variables[name] = value;
  }
  return variables;
}

absl::Status RunRender(const std::string& file) {
  HEARTH_ASSIGN_OR_RETURN(const std::string source, ReadFile(file, kMaxTemplate));
  auto chat_template = ChatTemplate::Parse(source);
  if (!chat_template.ok()) return Annotate(chat_template.status(), file);
  HEARTH_ASSIGN_OR_RETURN(const json::array items, ReadArrayFromStdin(kMaxDepth));
  json::array answers;
  for (size_t i = 0; i < items.size(); ++i) {
    if (!items[i].is_object()) {
      return absl::InvalidArgumentError(
          absl::StrCat("item ", i, ": expected an object with messages"));
    }
    const auto text = (*chat_template)->Render(Variables(items[i].get_object()));
    if (text.ok()) {
      answers.push_back(json::value(json::string(*text)));
    } else {
      answers.push_back(json::object{{"error", std::string(text.status().message())}});
    }
  }
  return WriteLineToStdout(answers);
}

}  // namespace

void AddRender(CLI::App& app, int* exit_code) {
  auto file = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand(
      "render",
      "JSON array of {messages, tools, add_generation_prompt, kwargs} on stdin -> JSON array of "
      "prompts (or {\"error\"}) on stdout");
  command->add_option("--template", *file, "Jinja chat template")->required();
  command->callback([file, exit_code] {
    const absl::Status status = RunRender(*file);
    *exit_code = status.ok() ? 0 : Fail("render", status);
  });
}

}  // namespace hearth::cli
