// `hearth tokenize`: texts to token ids and back, for scripts and comparisons.
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/stdin_json.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "common/text/tokenizer.h"

namespace hearth::cli {
namespace {

struct TokenizeOptions {
  std::string tokenizer;
  bool decode = false;
  bool skip_special = false;
};

absl::StatusOr<json::value> EncodeOne(const Tokenizer& tokenizer, const json::value& item) {
  if (!item.is_string()) return absl::InvalidArgumentError("expected a text");
  const json::string& text = item.get_string();
  HEARTH_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                          tokenizer.Encode(std::string_view(text.data(), text.size())));
  return json::value(json::array(ids.begin(), ids.end()));
}

absl::StatusOr<json::value> DecodeOne(const Tokenizer& tokenizer, const json::value& item,
                                      bool skip_special) {
  if (!item.is_array()) return absl::InvalidArgumentError("expected an array of token ids");
  std::vector<int32_t> ids;
  for (const json::value& value : item.get_array()) {
    boost::system::error_code error;
    const auto id = value.to_number<int32_t>(error);
    if (error) {
      return absl::InvalidArgumentError(absl::StrCat("no token id: ", SerializeJson(value)));
    }
    ids.push_back(id);
  }
  HEARTH_ASSIGN_OR_RETURN(const std::string text, tokenizer.Decode(ids, skip_special));
  return json::value(json::string(text));
}

absl::Status RunTokenize(const TokenizeOptions& options) {
  HEARTH_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Load(options.tokenizer));
  HEARTH_ASSIGN_OR_RETURN(const json::array items, ReadArrayFromStdin(/*max_depth=*/4));
  json::array answers;
  for (size_t i = 0; i < items.size(); ++i) {
    auto answer = options.decode ? DecodeOne(*tokenizer, items[i], options.skip_special)
                                 : EncodeOne(*tokenizer, items[i]);
    if (!answer.ok()) return Annotate(answer.status(), absl::StrCat("item ", i));
    answers.push_back(*std::move(answer));
  }
  return WriteLineToStdout(answers);
}

}  // namespace

void AddTokenize(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<TokenizeOptions>();
  CLI::App* command = app.add_subcommand(
      "tokenize", "JSON array of texts on stdin -> JSON array of token id arrays on stdout");
  command->add_option("--tokenizer", options->tokenizer, "tokenizer.json")->required();
  command->add_flag("--decode", options->decode, "The other way: ids -> texts");
  command->add_flag("--skip-special", options->skip_special, "Leave special tokens out (--decode)");
  command->callback([options, exit_code] {
    const absl::Status status = RunTokenize(*options);
    *exit_code = status.ok() ? 0 : Fail("tokenize", status);
  });
}

}  // namespace hearth::cli
