// UTF-8 as the Unicode standard defines it: no surrogates, nothing overlong, nothing above
// U+10FFFF.
//
// Used by the tokenizer and its detokenizer, by stop strings and by the gateway. Thread-safe: no
// state.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace hearth {

// One step through bytes that may be anything.
struct Utf8Step {
  enum class Kind {
    kCharacter,   // `length` bytes are the character `code`
    kInvalid,     // `length` bytes (1 to 3) can't become a character: one U+FFFD
    kIncomplete,  // the text ends inside a character whose first `length` bytes are right
  };
  Kind kind;
  size_t length;
  char32_t code;  // 0 unless kCharacter
};

// The step at `offset`, which must be less than the text's size.
Utf8Step NextUtf8(std::string_view text, size_t offset);

// The offset of the first byte that belongs to no character; nothing when all of it is valid. A
// character cut off by the text's end is invalid at its first byte.
std::optional<size_t> ValidateUtf8(std::string_view text);

// How many bytes stand before an unfinished character at the text's end: the size itself, or up to
// 3 less. Invalid bytes, which no further byte can mend, count as finished.
size_t CompletePrefixLength(std::string_view text);

// Appends the text with U+FFFD for each maximal part of a character that is no character (Unicode's
// recommendation; what Python's errors="replace" and Rust's from_utf8_lossy do).
void AppendUtf8Lossy(std::string_view bytes, std::string& out);

// Appends one character; `code` must be a Unicode scalar value.
void AppendUtf8(char32_t code, std::string& out);

}  // namespace hearth
