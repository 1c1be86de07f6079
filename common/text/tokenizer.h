// Byte-level BPE tokenizer of tokenizer.json (Hugging Face tokenizers format): NFC, the split
// pattern through PCRE2, added tokens, merges by heap (O(n log n)). Token ids are int32.
//
// Thread-safe after Load.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace hearth {

struct EncodeOptions {
  bool parse_special = true;      // added tokens written in the text become their ids
  uint64_t max_bytes = 16 << 20;  // longer texts are ResourceExhausted
};

class Tokenizer {
 public:
  // Reads tokenizer.json. Every id, merge and added token is checked; errors name the field.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::filesystem::path& file);
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Parse(std::string_view json);
  virtual ~Tokenizer() = default;

  // InvalidArgument for invalid UTF-8 (names the byte).
  virtual absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                                      const EncodeOptions& options = {}) const = 0;
  // Invalid UTF-8 in the joined bytes becomes U+FFFD, as Hugging Face's decoder does.
  // InvalidArgument for an id that is no token (negative or beyond the vocabulary); ids in a gap of
  // the vocabulary decode to nothing.
  virtual absl::StatusOr<std::string> Decode(std::span<const int32_t> ids,
                                             bool skip_special = false) const = 0;
  // The raw bytes of one token; empty for unknown ids.
  virtual std::string_view TokenBytes(int32_t id) const = 0;
  virtual bool IsSpecial(int32_t id) const = 0;  // added tokens marked special
  // The added token with this content, else the vocabulary's token for these bytes (" the", not
  // "Ġthe").
  virtual std::optional<int32_t> TokenId(std::string_view content) const = 0;
  virtual int32_t vocab_size() const = 0;  // largest id + 1
};

// Turns a stream of token ids into text without ever emitting part of a character. One per
// sequence.
class StreamingDetokenizer {
 public:
  StreamingDetokenizer(const Tokenizer& tokenizer, bool skip_special)
      : tokenizer_(&tokenizer), skip_special_(skip_special) {}

  // The text that became certain with this token; empty while a character is incomplete. Bytes that
  // can't become a character come out as U+FFFD, so that the concatenation of all pieces and Flush
  // equals Tokenizer::Decode.
  std::string Push(int32_t id);
  // What is left at the end: U+FFFD for an incomplete character.
  std::string Flush();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string pending_;  // at most 3 bytes: the beginning of a character
};

}  // namespace hearth
