// POST /v1/completions.
#include <utility>

#include "services/gateway/api/answer.h"

namespace hearth::gateway {
namespace {

json::value Ids(const v1::Delta& delta) {
  json::array ids;
  for (const int32_t id : delta.token_ids()) ids.emplace_back(id);
  return ids;
}

class CompletionAnswer final : public Answer {
 public:
  CompletionAnswer(const Generation& generation, AnswerInfo info)
      : Answer(generation, std::move(info)) {}

 private:
  std::string_view object_name() const override { return "text_completion"; }
  std::string_view chunk_name() const override { return "text_completion"; }
  json::value StartChoice() const override { return nullptr; }

  json::value DeltaChoice(int index, const v1::Delta& delta, const v1::Finish* finish) override {
    if (finish == nullptr && delta.text().empty() && delta.token_ids().empty() &&
        delta.logprobs().empty()) {
      return nullptr;
    }
    return Fields(delta, choice(index).text_offset);
  }

  json::object WholeChoice(int index) const override {
    json::object fields = Fields(choice(index).whole, 0);
    const std::string_view reason = FinishReasonName(choice(index).finish.reason());
    fields["finish_reason"] = json::string_view(reason.data(), reason.size());
    return fields;
  }

  json::object Fields(const v1::Delta& delta, size_t text_offset) const {
    json::object fields = {{"text", delta.text()}, {"logprobs", nullptr}};
    if (generation().logprobs && !delta.logprobs().empty()) {
      fields["logprobs"] = CompletionLogprobs(delta, text_offset);
    }
    if (generation().return_token_ids) fields["token_ids"] = Ids(delta);
    return fields;
  }
};

}  // namespace

std::unique_ptr<Answer> MakeCompletionAnswer(const Generation& generation, AnswerInfo info) {
  return std::make_unique<CompletionAnswer>(generation, std::move(info));
}

}  // namespace hearth::gateway
