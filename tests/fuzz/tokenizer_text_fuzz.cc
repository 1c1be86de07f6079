// Any bytes as a text and as token ids of the demo model's tokenizer: encoding and decoding give
// the text back in normal form C, and streaming gives what decoding at once gives.
//
// Run in the repository's root, where models/demo lies.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/check.h"
#include "common/text/normalizer.h"
#include "common/text/tokenizer.h"
#include "common/text/utf8.h"

namespace {

const hearth::Tokenizer& Demo() {
  static const auto tokenizer = hearth::Tokenizer::Load("models/demo/tokenizer.json");
  HEARTH_CHECK(tokenizer.ok());
  return **tokenizer;
}

std::string Streamed(const std::vector<int32_t>& ids) {
  hearth::StreamingDetokenizer stream(Demo(), false);
  std::string text;
  for (const int32_t id : ids) {
    text += stream.Push(id);
    HEARTH_CHECK(!hearth::ValidateUtf8(text));
  }
  return text + stream.Flush();
}

void CheckText(std::string_view text) {
  const auto ids = Demo().Encode(text, {.parse_special = false});
  HEARTH_CHECK(ids.ok() == !hearth::ValidateUtf8(text).has_value());
  if (!ids.ok()) return;
  const std::string normal = hearth::NormalizeNfc(text);
  HEARTH_CHECK(*Demo().Decode(*ids) == normal);
  HEARTH_CHECK(hearth::NormalizeNfc(normal) == normal);
  HEARTH_CHECK(Streamed(*ids) == normal);
  HEARTH_CHECK(Demo().Encode(text).ok());
}

void CheckIds(const uint8_t* data, size_t size) {
  std::vector<int32_t> ids;
  for (size_t i = 0; i + 1 < size; i += 2) {
    ids.push_back((data[i] | data[i + 1] << 8) % Demo().vocab_size());
  }
  HEARTH_CHECK(Streamed(ids) == *Demo().Decode(ids));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  CheckText({reinterpret_cast<const char*>(data), size});
  CheckIds(data, size);
  return 0;
}
