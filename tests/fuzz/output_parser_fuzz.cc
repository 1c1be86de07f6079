// Fuzzes the parser of chat answers: the pieces must not depend on how the text is cut, and without
// tags to read they are the text.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "common/text/output_parser.h"

namespace hearth {
namespace {

constexpr size_t kMaxText = 16 << 10;

void Join(std::vector<OutputPiece>& all, std::vector<OutputPiece> more) {
  for (OutputPiece& piece : more) {
    if (!all.empty() && piece.kind != OutputPiece::Kind::kToolCall &&
        all.back().kind == piece.kind) {
      all.back().text += piece.text;
    } else {
      all.push_back(std::move(piece));
    }
  }
}

std::vector<OutputPiece> Parse(std::string_view text, const OutputOptions& options, size_t step) {
  OutputParser parser(options);
  std::vector<OutputPiece> all;
  for (size_t at = 0; at < text.size(); at += step) Join(all, parser.Push(text.substr(at, step)));
  Join(all, parser.Finish());
  return all;
}

}  // namespace
}  // namespace hearth

// The first byte chooses the options and the cut.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hearth;
  if (size < 2 || size > kMaxText) return 0;
  const uint8_t choice = data[0];
  const OutputOptions options{.parses_reasoning = (choice & 1) == 0,
                              .starts_in_reasoning = (choice & 2) != 0,
                              .parses_tool_calls = (choice & 4) == 0,
                              .max_tool_call_bytes = (choice & 8) != 0 ? size_t{32} : kMaxText};
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const auto whole = Parse(text, options, text.size());
  if (Parse(text, options, 1 + choice / 16) != whole) std::abort();
  if (options.parses_reasoning || options.parses_tool_calls) return 0;
  if (whole.size() != 1 || whole[0].text != text) std::abort();
  return 0;
}
