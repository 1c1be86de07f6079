// The tokenizer of synthetic models: one token a byte and the three marks of a conversation, so
// that any vocabulary of 259 or more has it. Token ids beyond it decode to nothing.
#pragma once

#include <cstdint>
#include <string_view>

#include "common/base/json.h"

namespace hearth {

inline constexpr int32_t kByteEndOfText = 256;
inline constexpr int32_t kByteStartOfTurn = 257;
inline constexpr int32_t kByteEndOfTurn = 258;

json::object ByteTokenizerJson(int vocab_size);
std::string_view ByteChatTemplate();
json::object ByteTokenizerConfig();  // tokenizer_config.json, with the chat template

}  // namespace hearth
