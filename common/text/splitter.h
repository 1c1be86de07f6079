// Cuts a text into the pieces that merges never cross, by the split pattern of a tokenizer.json.
//
// Used by the tokenizer. Thread-safe after Create: what a match writes belongs to each call.
#pragma once

#include <functional>
#include <memory>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace hearth {

class Splitter {
 public:
  // Matches and the text between them each become a piece (Hugging Face's behaviour "Isolated").
  static absl::StatusOr<std::unique_ptr<Splitter>> Create(std::string_view pattern);
  ~Splitter();

  // Calls `piece` for each piece, in order; none is empty, and together they are `text`, which must
  // be valid UTF-8. ResourceExhausted when a pattern made to be slow spends more than a few seconds
  // per MiB on it.
  absl::Status Split(std::string_view text,
                     const std::function<void(std::string_view)>& piece) const;

 private:
  struct Compiled;
  explicit Splitter(std::unique_ptr<Compiled> compiled);
  std::unique_ptr<Compiled> compiled_;
};

}  // namespace hearth
