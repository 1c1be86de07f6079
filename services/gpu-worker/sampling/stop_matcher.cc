#include "services/gpu-worker/sampling/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"

namespace hearth::worker {
namespace {

// failure[n]: the longest proper beginning of the first n bytes that they also end with.
std::vector<size_t> FailureTable(std::string_view text) {
  std::vector<size_t> failure(text.size() + 1, 0);
  size_t length = 0;
  for (size_t i = 1; i < text.size(); ++i) {
    while (length > 0 && text[i] != text[length]) length = failure[length];
    if (text[i] == text[length]) ++length;
    failure[i + 1] = length;
  }
  return failure;
}

}  // namespace

StopMatcher::StopMatcher(std::vector<std::string> stops) {
  for (std::string& stop : stops) {
    HEARTH_CHECK(!stop.empty());
    auto failure = FailureTable(stop);
    patterns_.push_back({std::move(stop), std::move(failure)});
  }
}

bool StopMatcher::Advance(Pattern& pattern, char byte) {
  while (pattern.state > 0 && pattern.text[pattern.state] != byte) {
    pattern.state = pattern.failure[pattern.state];
  }
  if (pattern.text[pattern.state] == byte) ++pattern.state;
  return pattern.state == pattern.text.size();
}

std::string StopMatcher::Push(std::string_view text) {
  if (matched()) return "";
  for (const char byte : text) {
    held_.push_back(byte);
    size_t longest = 0;
    for (size_t i = 0; i < patterns_.size(); ++i) {
      if (!Advance(patterns_[i], byte) || patterns_[i].text.size() <= longest) continue;
      longest = patterns_[i].text.size();
      matched_ = static_cast<int>(i);
    }
    if (matched()) {
      held_.resize(held_.size() - longest);
      return std::exchange(held_, "");
    }
  }
  size_t held_back = 0;
  for (const Pattern& pattern : patterns_) held_back = std::max(held_back, pattern.state);
  std::string certain = held_.substr(0, held_.size() - held_back);
  held_.erase(0, certain.size());
  return certain;
}

std::string StopMatcher::Flush() { return std::exchange(held_, ""); }

const std::string& StopMatcher::stop_string() const {
  static const std::string kNone;
  return matched() ? patterns_[static_cast<size_t>(matched_)].text : kNone;
}

}  // namespace hearth::worker
