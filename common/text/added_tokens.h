// Finds added tokens (<|im_start|> ...) in a text: the longest at the leftmost place, through a
// trie.
//
// Used by the tokenizer. Immutable after construction.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace hearth {

// One entry of tokenizer.json's added_tokens, with its names.
struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;
  bool lstrip = false;       // takes the white space before it as well
  bool rstrip = false;       // and after it
  bool single_word = false;  // counts only where no word character touches it
  bool normalized = false;   // is looked for in the normalized text, not in the text as given
};

// Splitting takes at most this many steps a byte, and one in texts without the beginning of a
// token.
inline constexpr size_t kMaxAddedTokenBytes = 256;

class AddedTokenMatcher {
 public:
  // A stretch of the text: an added token, or text between them (id kText).
  static constexpr int32_t kText = -1;
  struct Stretch {
    int32_t id;
    std::string_view text;
  };

  // Contents are not empty; of two equal ones the last counts.
  explicit AddedTokenMatcher(std::span<const AddedToken> tokens);

  // Splits `text` (valid UTF-8) as Hugging Face tokenizers do; no stretch of text is empty.
  std::vector<Stretch> Split(std::string_view text) const;

 private:
  static constexpr int32_t kNone = -1;

  void Insert(std::string_view content, int32_t token);
  // The index of the longest token that begins at `at`, or kNone.
  int32_t LongestAt(std::string_view text, size_t at) const;

  std::vector<AddedToken> tokens_;
  std::vector<int32_t> node_tokens_;  // of each node: the token that ends there, or kNone
  absl::flat_hash_map<uint64_t, int32_t>
      children_;  // node * 256 + byte -> node; node 0 is the root
  std::array<bool, 256> begins_token_{};
};

}  // namespace hearth
