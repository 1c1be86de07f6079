#include "common/text/added_tokens.h"

#include <utf8proc.h>

#include <algorithm>

#include "common/text/utf8.h"

namespace hearth {
namespace {

bool IsWhiteSpace(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

// Unicode's \w: alphabetic, marks, decimal digits, connectors and joiners.
bool IsWordCharacter(char32_t c) {
  // Alphabetic although symbols: circled and squared letters.
  const bool is_lettered_symbol = (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
                                  (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189);
  if (is_lettered_symbol || c == 0x200C || c == 0x200D) return true;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return false;
  }
}

// The last character's beginning; `text` is valid and not empty.
size_t LastCharacter(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && (text[at] & 0xC0) == 0x80) --at;
  return at;
}

bool BeginsWithWord(std::string_view text) {
  return !text.empty() && IsWordCharacter(NextUtf8(text, 0).code);
}

bool EndsWithWord(std::string_view text) {
  return !text.empty() && IsWordCharacter(NextUtf8(text, LastCharacter(text)).code);
}

size_t SpaceBytesAtBegin(std::string_view text) {
  size_t n = 0;
  while (n < text.size()) {
    const Utf8Step step = NextUtf8(text, n);
    if (!IsWhiteSpace(step.code)) break;
    n += step.length;
  }
  return n;
}

size_t SpaceBytesAtEnd(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    const size_t at = LastCharacter(text.substr(0, end));
    if (!IsWhiteSpace(NextUtf8(text, at).code)) break;
    end = at;
  }
  return text.size() - end;
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::span<const AddedToken> tokens)
    : tokens_(tokens.begin(), tokens.end()), node_tokens_(1, kNone) {
  for (size_t i = 0; i < tokens_.size(); ++i) Insert(tokens_[i].content, static_cast<int32_t>(i));
}

void AddedTokenMatcher::Insert(std::string_view content, int32_t token) {
  begins_token_[static_cast<uint8_t>(content.front())] = true;
  int32_t node = 0;
  for (const char c : content) {
    const uint64_t edge = static_cast<uint64_t>(node) * 256 + static_cast<uint8_t>(c);
    const auto [child, is_new] =
        children_.try_emplace(edge, static_cast<int32_t>(node_tokens_.size()));
    if (is_new) node_tokens_.push_back(kNone);
    node = child->second;
  }
  node_tokens_[node] = token;
}

int32_t AddedTokenMatcher::LongestAt(std::string_view text, size_t at) const {
  int32_t longest = kNone, node = 0;
  for (; at < text.size(); ++at) {
    const auto child =
        children_.find(static_cast<uint64_t>(node) * 256 + static_cast<uint8_t>(text[at]));
    if (child == children_.end()) break;
    node = child->second;
    if (node_tokens_[node] != kNone) longest = node_tokens_[node];
  }
  return longest;
}

std::vector<AddedTokenMatcher::Stretch> AddedTokenMatcher::Split(std::string_view text) const {
  std::vector<Stretch> stretches;
  size_t from = 0;       // what stands before is in `stretches`
  size_t space_end = 0;  // where the white space ends that a token took last
  const auto add_text_until = [&](size_t end) {
    if (end > from) stretches.push_back({kText, text.substr(from, end - from)});
    from = end;
  };
  for (size_t at = 0; at < text.size();) {
    const bool may_begin = begins_token_[static_cast<uint8_t>(text[at])];
    const int32_t found = may_begin ? LongestAt(text, at) : kNone;
    if (found == kNone) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[found];
    size_t begin = at, end = at + token.content.size();
    at = end;
    if (token.single_word &&
        (EndsWithWord(text.substr(0, begin)) || BeginsWithWord(text.substr(end)))) {
      continue;  // nor does a shorter or later one inside it count
    }
    // A token before may have taken the white space already, and even this one's beginning.
    if (token.lstrip && begin > from) begin -= SpaceBytesAtEnd(text.substr(from, begin - from));
    if (token.rstrip) {
      // Tokens made of white space may end inside a run that is measured already.
      if (end >= space_end) space_end = end + SpaceBytesAtBegin(text.substr(end));
      end = space_end;
    }
    add_text_until(std::max(begin, from));
    begin = std::min(begin, end);
    stretches.push_back({token.id, text.substr(begin, end - begin)});
    from = end;
  }
  add_text_until(text.size());
  return stretches;
}

}  // namespace hearth
