// Reads tokenizer.json into plain tables, with every id, merge and added token checked.
//
// Used by Tokenizer::Parse. A file comes from a stranger: nothing in it is believed, and memory
// stays in proportion to it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "common/text/added_tokens.h"
#include "common/text/bpe.h"

namespace hearth {

struct TokenizerTables {
  bool nfc = false;
  bool add_prefix_space = false;  // a text that begins with no space gets one
  std::string split_pattern;      // in Oniguruma's syntax; empty: pieces are whole texts

  bool ignore_merges = false;  // a piece that is a token is not built by merges
  std::array<int32_t, 256> byte_ids{};
  std::vector<Bpe::Merge> merges;                        // best first
  absl::flat_hash_map<std::string, int32_t> vocabulary;  // bytes -> id
  std::vector<AddedToken> added_tokens;

  // Token `id` is pool[offsets[id], offsets[id + 1]): the bytes that it decodes to; empty in gaps
  // of the vocabulary.
  std::string pool;
  std::vector<uint32_t> offsets;
};

inline constexpr size_t kMaxTokenizerJsonBytes = 64 << 20;
inline constexpr int32_t kMaxTokenId = (1 << 21) - 1;

// InvalidArgument names the field; Unimplemented names a kind of tokenizer that we don't have.
absl::StatusOr<TokenizerTables> ParseTokenizerJson(std::string_view text);

}  // namespace hearth
