// Finds stop strings in a growing text and holds back only what could be the beginning of one, so
// that no part of a stop string is ever sent. Used by a sequence; one for each.
//
// The result does not depend on how the text is cut into pieces: the first stop string to be
// complete ends it, the longest of those that end at the same byte.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace hearth::worker {

class StopMatcher {
 public:
  // Strings must not be empty.
  explicit StopMatcher(std::vector<std::string> stops);

  // The text that is certain to be sent now. After a match: nothing more.
  std::string Push(std::string_view text);
  // What was held back, at the end of a text without a match.
  std::string Flush();

  bool matched() const { return matched_ >= 0; }
  // The one that matched; empty before.
  const std::string& stop_string() const;

 private:
  // One stop string with Knuth, Morris and Pratt's failure table: `state` is the length of its
  // longest beginning that the text ends with.
  struct Pattern {
    std::string text;
    std::vector<size_t> failure;
    size_t state = 0;
  };
  static bool Advance(Pattern& pattern, char byte);

  std::vector<Pattern> patterns_;
  std::string held_;
  int matched_ = -1;
};

}  // namespace hearth::worker
