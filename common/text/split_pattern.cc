#include "common/text/split_pattern.h"

#include <algorithm>
#include <array>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"

namespace hearth {
namespace {

constexpr size_t kMaxPatternBytes = 16 << 10;

class Translator {
 public:
  explicit Translator(std::string_view pattern) : in_(pattern) {}

  absl::StatusOr<std::string> Run() {
    while (at_ < in_.size()) {
      const bool is_operator = std::string_view("*+?|){").find(in_[at_]) != std::string_view::npos;
      HEARTH_RETURN_IF_ERROR(is_operator ? Operator() : Item());
    }
    return std::move(out_);
  }

 private:
  absl::Status Unsupported(std::string_view what) const {
    return absl::UnimplementedError(
        absl::StrCat("split pattern: ", ToAbsl(what), " at byte ", at_, " is not supported"));
  }

  bool Ahead(std::string_view text) const { return in_.substr(at_).starts_with(text); }

  void Copy(size_t n) {
    out_.append(in_.substr(at_, n));
    at_ = std::min(at_ + n, in_.size());
  }

  absl::Status Item() {
    const size_t begin = out_.size();
    HEARTH_RETURN_IF_ERROR(ItemWithoutRepeat());
    const bool repeats =
        at_ < in_.size() && (in_[at_] == '*' || in_[at_] == '+' || in_[at_] == '{');
    if (repeats) out_.insert(begin, absl::StrCat("(?C", kSplitCallout, ")"));
    return absl::OkStatus();
  }

  absl::Status ItemWithoutRepeat() {
    switch (in_[at_]) {
      case '(':
        return Group();
      case '^':
      case '$':
        return Unsupported("an anchor");
      case '[':
        return Class();
      case '\\':
        return Escape();
      default:
        return Literal();
    }
  }

  absl::Status Operator() {
    if (in_[at_] == '{') return Repeat();
    Copy(1);
    return absl::OkStatus();
  }

  // A literal may be followed by a quantifier, which belongs to its last character only.
  absl::Status Literal() {
    Copy(1);
    while (at_ < in_.size() && (in_[at_] & 0xC0) == 0x80) Copy(1);
    return absl::OkStatus();
  }

  absl::Status Group() {
    static constexpr std::array<std::string_view, 8> kOpenings = {
        "(?:", "(?i:", "(?-i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"};
    if (!Ahead("(?") && !Ahead("(*")) {
      out_ += "(?:";  // nothing reads what groups capture
      ++at_;
      return absl::OkStatus();
    }
    for (const std::string_view opening : kOpenings) {
      if (!Ahead(opening)) continue;
      Copy(opening.size());
      return absl::OkStatus();
    }
    return Unsupported("a group of this kind");
  }

  // {n}, {n,} and {n,m}; a brace that is none of these is a literal in one syntax and an error in
  // others.
  absl::Status Repeat() {
    const size_t end = in_.find('}', at_);
    const std::string_view inside =
        end == std::string_view::npos ? "" : in_.substr(at_ + 1, end - at_ - 1);
    const bool is_range = !inside.empty() && absl::ascii_isdigit(inside.front()) &&
                          std::all_of(inside.begin(), inside.end(), [](unsigned char c) {
                            return absl::ascii_isdigit(c) || c == ',';
                          });
    if (!is_range) return Unsupported("a brace that is no {n}, {n,} or {n,m}");
    Copy(inside.size() + 2);
    if (at_ < in_.size() && in_[at_] == '+') return Unsupported("a + after a counted repeat");
    return absl::OkStatus();
  }

  absl::Status Class() {
    Copy(1);
    if (Ahead("^")) Copy(1);
    if (Ahead("]")) return Unsupported("a class that begins with ]");
    while (at_ < in_.size() && in_[at_] != ']') {
      if (in_[at_] == '[') return Unsupported("a class in a class");
      if (Ahead("&&")) return Unsupported("an intersection of classes");
      if (in_[at_] == '\\') {
        HEARTH_RETURN_IF_ERROR(Escape());
      } else {
        Copy(1);
      }
    }
    if (at_ == in_.size()) return absl::InvalidArgumentError("split pattern: a class has no end");
    Copy(1);
    return absl::OkStatus();
  }

  absl::Status Escape() {
    if (at_ + 1 == in_.size()) {
      return absl::InvalidArgumentError("split pattern: ends in a backslash");
    }
    const char c = in_[at_ + 1];
    if (c == 's' || c == 'S') {
      // PCRE2's own \s also takes U+180E, which Unicode no longer counts as white space.
      out_ += c == 's' ? "\\p{White_Space}" : "\\P{White_Space}";
      at_ += 2;
      return absl::OkStatus();
    }
    if (c == 'p' || c == 'P') return Property();
    const bool same_in_both = c == 'r' || c == 'n' || c == 't' || c == 'f' || c == 'd' || c == 'D';
    if (same_in_both || absl::ascii_ispunct(static_cast<unsigned char>(c))) {
      Copy(2);
      return absl::OkStatus();
    }
    return Unsupported(absl::StrCat("the escape \\", std::string(1, c)));
  }

  // General categories only: PCRE2 and Oniguruma name scripts and blocks differently.
  absl::Status Property() {
    const size_t end = in_.find('}', at_);
    const bool braced =
        at_ + 2 < in_.size() && in_[at_ + 2] == '{' && end != std::string_view::npos;
    if (!braced) return Unsupported("a property without braces");
    std::string_view name = in_.substr(at_ + 3, end - at_ - 3);
    if (name.starts_with('^')) name.remove_prefix(1);
    const bool is_category = (name.size() == 1 || name.size() == 2) &&
                             std::string_view("LMNPSZC").find(name[0]) != std::string_view::npos;
    if (!is_category) return Unsupported("a property that is no general category");
    Copy(end + 1 - at_);
    return absl::OkStatus();
  }

  std::string_view in_;
  size_t at_ = 0;
  std::string out_;
};

}  // namespace

std::string_view Gpt2SplitPattern() {
  return R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
}

absl::StatusOr<std::string> TranslateSplitPattern(std::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("split pattern: ", pattern.size(), " bytes, the limit is ", kMaxPatternBytes));
  }
  return Translator(pattern).Run();
}

}  // namespace hearth
