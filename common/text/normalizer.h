// Unicode's normal form C in O(n log n), whatever the text.
//
// Used by the tokenizer before it splits a text. Thread-safe: no state.
#pragma once

#include <string>
#include <string_view>

namespace hearth {

// `text` must be valid UTF-8. The result is at most three times as long.
std::string NormalizeNfc(std::string_view text);

}  // namespace hearth
