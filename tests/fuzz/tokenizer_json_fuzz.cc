// Any bytes as tokenizer.json: an error or a tokenizer that works, never a crash.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "common/base/check.h"
#include "common/text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto tokenizer = hearth::Tokenizer::Parse({reinterpret_cast<const char*>(data), size});
  if (!tokenizer.ok()) {
    HEARTH_CHECK(!tokenizer.status().message().empty());
    return 0;
  }
  constexpr std::string_view kText = " It's <|a|> e\u0301\n\n 42 \U0001F600";
  const auto ids = (*tokenizer)->Encode(kText);
  if (!ids.ok()) return 0;  // a slow pattern
  for (const int32_t id : *ids) HEARTH_CHECK(id >= 0 && id < (*tokenizer)->vocab_size());
  HEARTH_CHECK((*tokenizer)->Decode(*ids).ok());
  return 0;
}
