#include "common/text/utf8.h"

#include <algorithm>
#include <cstdint>

namespace hearth {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// What a first byte promises: the character's bytes, and the range of its second byte, which shuts
// out what is overlong, a surrogate or too large.
struct Lead {
  size_t length;
  uint8_t low = 0x80;
  uint8_t high = 0xBF;
};

Lead ReadLead(uint8_t byte) {
  if (byte < 0x80) return {1};
  if (byte < 0xC2) return {0};
  if (byte < 0xE0) return {2};
  if (byte == 0xE0) return {3, 0xA0};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3};
  if (byte == 0xF0) return {4, 0x90};
  if (byte < 0xF4) return {4};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0};
}

}  // namespace

Utf8Step NextUtf8(std::string_view text, size_t offset) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[offset + i]); };
  const Lead lead = ReadLead(byte(0));
  if (lead.length == 0) return {Utf8Step::Kind::kInvalid, 1, 0};
  if (lead.length == 1) return {Utf8Step::Kind::kCharacter, 1, byte(0)};
  const size_t present = std::min(lead.length, text.size() - offset);
  char32_t code = byte(0) & (0x7F >> lead.length);
  for (size_t i = 1; i < present; ++i) {
    const uint8_t low = i == 1 ? lead.low : uint8_t{0x80};
    const uint8_t high = i == 1 ? lead.high : uint8_t{0xBF};
    if (byte(i) < low || byte(i) > high) return {Utf8Step::Kind::kInvalid, i, 0};
    code = code << 6 | (byte(i) & 0x3F);
  }
  if (present < lead.length) return {Utf8Step::Kind::kIncomplete, present, 0};
  return {Utf8Step::Kind::kCharacter, present, code};
}

std::optional<size_t> ValidateUtf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    if (static_cast<uint8_t>(text[i]) < 0x80) {
      ++i;
      continue;
    }
    const Utf8Step step = NextUtf8(text, i);
    if (step.kind != Utf8Step::Kind::kCharacter) return i;
    i += step.length;
  }
  return std::nullopt;
}

size_t CompletePrefixLength(std::string_view text) {
  const size_t earliest = text.size() - std::min<size_t>(text.size(), 3);
  for (size_t i = text.size(); i > earliest;) {
    const auto byte = static_cast<uint8_t>(text[--i]);
    if (byte < 0x80) break;
    if (byte < 0xC0) continue;  // inside a character: its first byte stands before
    const bool unfinished = NextUtf8(text, i).kind == Utf8Step::Kind::kIncomplete;
    return unfinished ? i : text.size();
  }
  return text.size();
}

void AppendUtf8Lossy(std::string_view bytes, std::string& out) {
  size_t valid_from = 0;
  for (size_t i = 0; i < bytes.size();) {
    const Utf8Step step = NextUtf8(bytes, i);
    if (step.kind != Utf8Step::Kind::kCharacter) {
      out.append(bytes, valid_from, i - valid_from);
      out += kReplacement;
      valid_from = i + step.length;
    }
    i += step.length;
  }
  out.append(bytes, valid_from, bytes.size() - valid_from);
}

void AppendUtf8(char32_t code, std::string& out) {
  const auto put = [&](char32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code < 0x80) return put(code);
  if (code < 0x800) {
    put(0xC0 | code >> 6);
  } else if (code < 0x10000) {
    put(0xE0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3F));
  } else {
    put(0xF0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3F));
    put(0x80 | (code >> 6 & 0x3F));
  }
  put(0x80 | (code & 0x3F));
}

}  // namespace hearth
