// POST /v1/chat/completions.
#include <utility>

#include "services/gateway/api/answer.h"

namespace hearth::gateway {
namespace {

class ChatAnswer final : public Answer {
 public:
  ChatAnswer(const Generation& generation, AnswerInfo info) : Answer(generation, std::move(info)) {}

 private:
  std::string_view object_name() const override { return "chat.completion"; }
  std::string_view chunk_name() const override { return "chat.completion.chunk"; }

  json::value StartChoice() const override {
    return json::object(
        {{"delta", json::object({{"role", "assistant"}, {"content", ""}})}, {"logprobs", nullptr}});
  }

  json::value DeltaChoice(int /*index*/, const v1::Delta& delta,
                          const v1::Finish* finish) override {
    if (finish == nullptr && delta.text().empty() && delta.token_ids().empty() &&
        delta.logprobs().empty()) {
      return nullptr;
    }
    json::object message;
    if (!delta.text().empty()) message["content"] = delta.text();
    json::object fields = {{"delta", std::move(message)}};
    AddDetails(delta, &fields);
    return fields;
  }

  json::object WholeChoice(int index) const override {
    const v1::Delta& whole = choice(index).whole;
    json::object fields = {
        {"message",
         json::object({{"role", "assistant"}, {"content", whole.text()}, {"refusal", nullptr}})}};
    AddDetails(whole, &fields);
    const std::string_view reason = FinishReasonName(choice(index).finish.reason());
    fields["finish_reason"] = json::string_view(reason.data(), reason.size());
    return fields;
  }

  void AddDetails(const v1::Delta& delta, json::object* fields) const {
    (*fields)["logprobs"] = nullptr;
    if (generation().logprobs && !delta.logprobs().empty()) {
      (*fields)["logprobs"] = ChatLogprobs(delta);
    }
    if (!generation().return_token_ids) return;
    json::array ids;
    for (const int32_t id : delta.token_ids()) ids.emplace_back(id);
    (*fields)["token_ids"] = std::move(ids);
  }
};

}  // namespace

std::unique_ptr<Answer> MakeChatAnswer(const Generation& generation, AnswerInfo info) {
  return std::make_unique<ChatAnswer>(generation, std::move(info));
}

}  // namespace hearth::gateway
