#include "common/text/jinja/lexer.h"

#include "common/text/jinja/runtime.h"
#include "common/text/jinja/unicode.h"

namespace hearth::jinja {
namespace {

std::string NormalizeNewlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out.push_back(source[i]);
      continue;
    }
    out.push_back('\n');
    if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (at_ < source_.size()) HEARTH_RETURN_IF_ERROR(Data());
    tokens_.push_back({TokenType::kEnd, "", {}, line_});
    return std::move(tokens_);
  }

 private:
  bool At(std::string_view text) const { return source_.compare(at_, text.size(), text) == 0; }
  char Peek(size_t ahead) const {
    return at_ + ahead < source_.size() ? source_[at_ + ahead] : '\0';
  }

  void Advance(size_t n) {
    for (size_t i = 0; i < n; ++i) line_ += source_[at_ + i] == '\n';
    at_ += n;
  }

  void SkipSpace() {
    while (at_ < source_.size()) {
      const std::string_view next = Rest().substr(0, ByteOffset(Rest().substr(0, 4), 1));
      if (!IsSpace(DecodeUtf8(next)[0])) return;
      Advance(next.size());
    }
  }
  std::string_view Rest() const { return std::string_view(source_).substr(at_); }

  // What stands before a tag loses white space: all of it for `-`, the tag's own indentation under
  // lstrip_blocks.
  void PushData(std::string_view data, char sign, bool is_variable) {
    std::string text(data);
    if (sign == '-') {
      text = Strip(text, false, true);
    } else if (sign != '+' && !is_variable) {
      const size_t line_begin = text.rfind('\n') + 1;
      const bool own_line = line_begin > 0 || line_starting_;
      if (own_line && Strip(std::string_view(text).substr(line_begin), true, true).empty())
        text.resize(line_begin);
    }
    if (!text.empty()) tokens_.push_back({TokenType::kData, std::move(text), {}, line_});
  }

  // After the end of a tag: `-` eats all white space, else a block or comment eats one newline
  // (trim_blocks).
  void AfterTag(char sign, bool trims_newline) {
    line_starting_ = false;
    if (sign == '-') {
      SkipSpace();
      line_starting_ = source_[at_ - 1] == '\n';
    } else if (trims_newline && sign != '+' && Peek(0) == '\n') {
      Advance(1);
      line_starting_ = true;
    }
  }

  absl::Status Data() {
    size_t tag = source_.find('{', at_);
    while (tag != std::string::npos &&
           (tag + 1 >= source_.size() ||
            std::string_view("%{#").find(source_[tag + 1]) == std::string_view::npos)) {
      tag = source_.find('{', tag + 1);
    }
    if (tag == std::string::npos) {
      PushData(Rest(), '+', true);
      Advance(source_.size() - at_);
      return absl::OkStatus();
    }
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    const char kind = source_[tag + 1];
    PushData(std::string_view(source_).substr(at_, tag - at_), sign, kind == '{');
    Advance(tag - at_ + 2);
    if (sign == '-' || sign == '+') Advance(1);
    if (kind == '#') return Comment();
    if (kind == '%' && IsRaw()) return Raw();
    return Expression(kind == '%');
  }

  absl::Status Comment() {
    const size_t end = source_.find("#}", at_);
    if (end == std::string::npos)
      return Error("this comment has no end: Missing end of comment tag");
    const char sign = end > at_ ? source_[end - 1] : '\0';
    Advance(end + 2 - at_);
    AfterTag(sign, true);
    return absl::OkStatus();
  }

  // {% raw %}: only this exact form; the tag has been entered already.
  bool IsRaw() {
    const size_t at = at_;
    const int line = line_;
    SkipSpace();
    if (At("raw")) {
      Advance(3);
      SkipSpace();
      if (At("%}") || At("-%}")) return true;
    }
    at_ = at;
    line_ = line;
    return false;
  }

  absl::Status Raw() {
    const bool strips = At("-");
    Advance(strips ? 3 : 2);
    AfterTag(strips ? '-' : '+', false);
    for (size_t tag = source_.find("{%", at_); tag != std::string::npos;
         tag = source_.find("{%", tag + 2)) {
      const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
      const size_t after_sign = tag + 2 + (sign == '-' || sign == '+');
      std::string rest = Strip(std::string_view(source_).substr(after_sign, 32), true, false);
      if (!rest.starts_with("endraw")) continue;
      rest = Strip(std::string_view(rest).substr(6), true, false);
      const char end_sign = rest.empty() ? '\0' : rest[0];
      if (!rest.starts_with("%}") && !rest.starts_with("-%}") && !rest.starts_with("+%}")) continue;
      PushData(std::string_view(source_).substr(at_, tag - at_), sign, false);
      Advance(source_.find("%}", tag + 2) + 2 - at_);
      AfterTag(end_sign, true);
      return absl::OkStatus();
    }
    return Error("Missing end of raw directive");
  }

  // The tokens of {% ... %} or {{ ... }}. Inside brackets `}}` and `%}` don't end it.
  absl::Status Expression(bool is_block) {
    tokens_.push_back(
        {is_block ? TokenType::kBlockBegin : TokenType::kVariableBegin, "", {}, line_});
    const std::string_view end = is_block ? "%}" : "}}";
    std::string open;
    for (SkipSpace(); at_ < source_.size(); SkipSpace()) {
      const char sign = Peek(0);
      const bool signed_end =
          (sign == '-' || (sign == '+' && is_block)) && source_.compare(at_ + 1, 2, end) == 0;
      if (open.empty() && (At(end) || signed_end)) {
        Advance(signed_end ? 3 : 2);
        tokens_.push_back(
            {is_block ? TokenType::kBlockEnd : TokenType::kVariableEnd, "", {}, line_});
        AfterTag(signed_end ? sign : '\0', is_block);
        return absl::OkStatus();
      }
      ExpressionScanner scanner{source_, at_, line_};
      HEARTH_ASSIGN_OR_RETURN(Token token, scanner.Next());
      at_ = scanner.at;
      line_ = scanner.line;
      HEARTH_RETURN_IF_ERROR(Balance(token, open));
      tokens_.push_back(std::move(token));
    }
    return Error("unexpected end of template inside a tag");
  }

  absl::Status Balance(const Token& token, std::string& open) {
    if (token.type != TokenType::kOperator) return absl::OkStatus();
    const char c = token.text[0];
    if (c == '(') open.push_back(')');
    if (c == '[') open.push_back(']');
    if (c == '{') open.push_back('}');
    if (c != ')' && c != ']' && c != '}') return absl::OkStatus();
    if (open.empty()) return Error(Concat("unexpected '", token.text, "'"));
    if (open.back() != c)
      return Error(
          Concat("unexpected '", token.text, "', expected '", std::string(1, open.back()), "'"));
    open.pop_back();
    return absl::OkStatus();
  }

  absl::Status Error(const std::string& what) const {
    return Fail("line ", std::to_string(line_), ": ", what);
  }

  const std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source) {
  if (!IsValidUtf8(source))
    return Fail("line 1: the template is not valid UTF-8; save it as UTF-8");
  return Lexer(NormalizeNewlines(source)).Run();
}

}  // namespace hearth::jinja
