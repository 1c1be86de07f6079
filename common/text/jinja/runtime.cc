#include "common/text/jinja/runtime.h"

#include <algorithm>

namespace hearth::jinja {

absl::Status Runtime::OutOfSteps() const {
  return absl::ResourceExhaustedError(
      Concat("the chat template takes more than ", std::to_string(limits_.max_steps),
             " steps; shorten the conversation or simplify the template"));
}

absl::Status Runtime::TooLong() const {
  return absl::ResourceExhaustedError(Concat("the chat template makes a text of more than ",
                                             std::to_string(limits_.max_output_bytes),
                                             " bytes; shorten the conversation"));
}

Result Runtime::Checked(Value value) {
  if (value.is_string()) {
    if (value.text().size() > max_text_bytes()) return TooLong();
    HEARTH_RETURN_IF_ERROR(SpendBytes(value.text().size()));
  }
  if (value.depth() > limits_.max_depth) {
    return absl::ResourceExhaustedError(Concat("the chat template nests values deeper than ",
                                               std::to_string(limits_.max_depth),
                                               " levels; flatten what it is given"));
  }
  return value;
}

Result Runtime::List(Items items) {
  HEARTH_RETURN_IF_ERROR(Spend(1 + static_cast<int64_t>(items.size())));
  return Checked(Value::List(std::move(items)));
}

Result Runtime::Iterator(Items items) {
  HEARTH_RETURN_IF_ERROR(Spend(1 + static_cast<int64_t>(items.size())));
  auto iterator = std::make_shared<IteratorObject>();
  iterator->extent = ExtentOf(items);
  iterator->items = std::make_shared<const Items>(std::move(items));
  return Checked(Value(std::move(iterator)));
}

absl::StatusOr<bool> Runtime::Equal(const Value& a, const Value& b) {
  HEARTH_RETURN_IF_ERROR(Spend(std::min(a.weight(), b.weight())));
  return Equals(a, b);
}

void TextBuilder::AppendRepeated(std::string_view text, int64_t times) {
  if (times <= 0 || text.empty()) return;
  const auto room = static_cast<int64_t>(runtime_.max_text_bytes() - text_.size());
  if (times > room / static_cast<int64_t>(text.size())) {
    is_full_ = true;
    return;
  }
  if (is_full_) return;
  text_.reserve(text_.size() + text.size() * static_cast<size_t>(times));
  for (int64_t i = 0; i < times; ++i) text_.append(text);
}

absl::StatusOr<std::string> TextBuilder::Take() {
  if (is_full_) return runtime_.TooLong();
  HEARTH_RETURN_IF_ERROR(runtime_.SpendBytes(text_.size()));
  return std::move(text_);
}

Result TextBuilder::Finish(bool is_markup) {
  HEARTH_ASSIGN_OR_RETURN(std::string text, Take());
  return Value(std::move(text), is_markup);
}

}  // namespace hearth::jinja
