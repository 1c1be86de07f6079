// What filters, tests, methods and operators may ask of the interpreter: budgets and calls. And the
// errors they return.
//
// The one budget is counted in steps: an expression is one, and so are 128 bytes of text made or
// searched, or one item of a list made or walked. So max_steps bounds time and memory together.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "common/base/status_macros.h"
#include "common/text/chat_template.h"
#include "common/text/jinja/value.h"

namespace hearth::jinja {

template <typename... Parts>
std::string Concat(const Parts&... parts) {
  std::string text;
  (text.append(std::string_view(parts)), ...);
  return text;
}

// An error of the template or of what was given to it; the message is Jinja's or Python's.
template <typename... Parts>
absl::Status Fail(const Parts&... parts) {
  return absl::InvalidArgumentError(Concat(parts...));
}

class Runtime {
 public:
  explicit Runtime(const TemplateLimits& limits) : limits_(limits), steps_left_(limits.max_steps) {}
  virtual ~Runtime() = default;

  // ResourceExhausted when no steps are left.
  absl::Status Spend(int64_t steps) {
    if (steps <= steps_left_) {
      steps_left_ -= steps;
      return absl::OkStatus();
    }
    return OutOfSteps();
  }
  absl::Status SpendBytes(size_t bytes) { return Spend(1 + static_cast<int64_t>(bytes / 128)); }
  // Work that is slow for each byte (case mapping, decoding).
  absl::Status SpendSlowBytes(size_t bytes) { return Spend(1 + static_cast<int64_t>(bytes / 8)); }

  // Checks a value that was just made: its size as text, its depth as a container.
  Result Checked(Value value);
  Result Text(std::string text, bool is_markup = false) {
    return Checked(Value(std::move(text), is_markup));
  }
  Result List(Items items);
  Result Tuple(Items items) { return Checked(Value::Tuple(std::move(items))); }
  Result Iterator(Items items);
  absl::StatusOr<bool> Equal(const Value& a, const Value& b);
  absl::Status TooLong() const;

  const TemplateLimits& limits() const { return limits_; }
  size_t max_text_bytes() const { return static_cast<size_t>(limits_.max_output_bytes); }

  // Kept by the interpreter, which empties it at the end: namespaces may hold each other.
  virtual Value NewNamespace(std::shared_ptr<DictObject> attributes) = 0;

 private:
  absl::Status OutOfSteps() const;

  const TemplateLimits limits_;
  int64_t steps_left_;
};

// Text under construction that never grows past the output budget: what comes after is dropped and
// Finish() fails.
class TextBuilder {
 public:
  explicit TextBuilder(Runtime& runtime) : runtime_(runtime) {}

  void Append(std::string_view text) {
    if (text.size() > runtime_.max_text_bytes() - text_.size()) {
      is_full_ = true;
    } else if (!is_full_) {
      text_.append(text);
    }
  }
  void AppendRepeated(std::string_view text, int64_t times);
  bool is_full() const { return is_full_; }
  absl::StatusOr<std::string> Take();
  Result Finish(bool is_markup = false);

 private:
  Runtime& runtime_;
  std::string text_;
  bool is_full_ = false;
};

}  // namespace hearth::jinja
