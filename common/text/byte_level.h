// The byte-level alphabet: tokenizer.json spells each byte of a token as one printable character (a
// space is "Ġ").
//
// Used by the tokenizer's loader only; the tokenizer itself works on bytes.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace hearth {

// The bytes that `spelling` stands for; nothing if it has a character outside the alphabet or is no
// UTF-8.
std::optional<std::string> BytesFromSpelling(std::string_view spelling);

// As BytesFromSpelling, but a spelling outside the alphabet stands for its own UTF-8 bytes: how
// Hugging Face's decoder reads every token, the added ones too.
std::string DecodedBytes(std::string_view spelling);

}  // namespace hearth
