// Chat templates: Jinja from the checkpoint, run by our own interpreter (text/jinja/).
//
// A template is code from a stranger: it can reach nothing but its inputs, and it has budgets for
// steps, depth and output. Thread-safe after Load.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "common/base/json.h"

namespace hearth {

struct TemplateLimits {
  int64_t max_steps = 1'000'000;  // expressions and statements evaluated
  int max_depth = 64;             // nesting of the template and of values that it walks
  int64_t max_output_bytes = 4 << 20;
};

class ChatTemplate {
 public:
  // chat_template.jinja of the folder, else chat_template of tokenizer_config.json (a string, or a
  // list of named ones of which "default" is taken). NotFound where there is none. bos_token,
  // eos_token etc. come from tokenizer_config.json.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Load(const std::filesystem::path& folder,
                                                            const TemplateLimits& limits = {});
  // From the template's text. InvalidArgument with line number where it doesn't parse.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Parse(std::string_view source,
                                                             const TemplateLimits& limits = {});
  virtual ~ChatTemplate() = default;

  // `variables`: messages, tools, add_generation_prompt and any others; absent ones are undefined
  // in Jinja's sense. InvalidArgument when the template itself raises (raise_exception, undefined
  // attribute ...): the message is Jinja's. ResourceExhausted when a budget runs out.
  virtual absl::StatusOr<std::string> Render(const json::object& variables) const = 0;
};

}  // namespace hearth
