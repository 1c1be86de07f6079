// Translates the split pattern of a tokenizer.json from Oniguruma's syntax, which Hugging Face
// tokenizers use, to PCRE2's.
//
// Used by the splitter. Only what means the same in both is let through: anything else would split
// texts, silently, in other places than the model was trained with.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace hearth {

// The number that the translated pattern's callouts carry: one stands before each item that
// repeats, so that a match which takes too long can be stopped between any two.
inline constexpr int kSplitCallout = 1;

// GPT-2's pattern, which a ByteLevel pre-tokenizer with use_regex stands for.
std::string_view Gpt2SplitPattern();

// Unimplemented names the construct and its byte. Does not find every error of syntax: PCRE2 finds
// the rest.
absl::StatusOr<std::string> TranslateSplitPattern(std::string_view pattern);

}  // namespace hearth
