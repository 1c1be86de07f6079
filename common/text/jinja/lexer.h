// Splits a template into data and tokens, with Jinja's whitespace rules as chat templates are run:
// trim_blocks and lstrip_blocks on, the last newline of the template dropped, line ends made \n.
// Used by the parser.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/text/jinja/value.h"

namespace hearth::jinja {

enum class TokenType {
  kData,
  kBlockBegin,
  kBlockEnd,
  kVariableBegin,
  kVariableEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd
};

struct Token {
  TokenType type = TokenType::kEnd;
  std::string text;  // data, name, operator, or a string's value
  Value number;
  int line = 1;

  bool Is(TokenType wanted, std::string_view wanted_text) const {
    return type == wanted && text == wanted_text;
  }
};

// InvalidArgument with the line where the text is no template. Ends with a kEnd token.
absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source);

// Scanner of one {% %} or {{ }}: the tokens from `at` on. Split off so that either half stays
// short.
struct ExpressionScanner {
  std::string_view source;
  size_t at;
  int line;

  absl::StatusOr<Token> Next();  // requires a character that is no space at `at`

 private:
  absl::StatusOr<Token> String();
  absl::StatusOr<Token> Number();
  absl::Status Escape(std::string& out);
  absl::Status CodePoint(int digits, std::string& out);
};

}  // namespace hearth::jinja
