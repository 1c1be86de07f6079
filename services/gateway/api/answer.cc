#include "services/gateway/api/answer.h"

#include <algorithm>
#include <utility>

#include "services/gateway/api/sse.h"

namespace hearth::gateway {
namespace {

json::string_view View(std::string_view text) { return {text.data(), text.size()}; }

}  // namespace

std::string_view FinishReasonName(v1::FinishReason reason) {
  return reason == v1::FINISH_REASON_LENGTH ? "length" : "stop";
}

std::unique_ptr<Answer> Answer::Make(const Generation& generation, AnswerInfo info) {
  return generation.is_chat ? MakeChatAnswer(generation, std::move(info))
                            : MakeCompletionAnswer(generation, std::move(info));
}

Answer::Answer(const Generation& generation, AnswerInfo info)
    : generation_(generation), info_(std::move(info)), choices_(generation.requests.size()) {}

void Answer::Start(std::string* out) {
  if (!generation_.stream) return;
  for (size_t i = 0; i < choices_.size(); ++i) {
    AppendChunk(static_cast<int>(i), StartChoice(), nullptr, out);
  }
}

void Answer::OnStarted(int index, const v1::Started& started) {
  choices_[static_cast<size_t>(index)].opens_reasoning = started.opens_reasoning();
}

void Answer::OnDelta(int index, const v1::Delta& delta, std::string* out) {
  Choice& choice = choices_[static_cast<size_t>(index)];
  if (generation_.stream) {
    AppendChunk(index, DeltaChoice(index, delta, nullptr), nullptr, out);
  } else {
    choice.whole.mutable_text()->append(delta.text());
    choice.whole.mutable_token_ids()->MergeFrom(delta.token_ids());
    choice.whole.mutable_logprobs()->MergeFrom(delta.logprobs());
  }
  choice.text_offset += CountCharacters(delta.text());
}

void Answer::OnFinish(int index, const v1::Finish& finish, std::string* out) {
  Choice& choice = choices_[static_cast<size_t>(index)];
  choice.finish = finish;
  if (!generation_.stream) return;
  AppendChunk(index, DeltaChoice(index, v1::Delta(), &finish), &finish, out);
}

void Answer::End(std::string* out) {
  if (!generation_.stream) return;
  if (generation_.include_usage) {
    json::object chunk = Envelope(chunk_name(), {});
    chunk["usage"] = Usage();
    AppendEvent(SerializeJson(chunk), out);
  }
  AppendEvent("[DONE]", out);
}

std::string Answer::Body() const {
  json::array choices;
  for (size_t i = 0; i < choices_.size(); ++i) {
    json::object choice = {{"index", i}};
    for (auto& member : WholeChoice(static_cast<int>(i))) choice.insert(std::move(member));
    choices.push_back(std::move(choice));
  }
  json::object whole = Envelope(object_name(), std::move(choices));
  whole["usage"] = Usage();
  return SerializeJson(whole);
}

int64_t Answer::completion_tokens() const {
  int64_t n = 0;
  for (const Choice& choice : choices_) n += choice.finish.completion_tokens();
  return n;
}

json::object Answer::Envelope(std::string_view object, json::array choices) const {
  return {{"id", info_.id},
          {"object", View(object)},
          {"created", info_.created},
          {"model", info_.model},
          {"choices", std::move(choices)}};
}

// A prompt counts once, however many choices it has.
json::object Answer::Usage() const {
  int64_t prompt = 0, cached = 0;
  for (size_t i = 0; i < choices_.size(); i += static_cast<size_t>(generation_.n)) {
    prompt += choices_[i].finish.prompt_tokens();
    cached += choices_[i].finish.cached_tokens();
  }
  const int64_t completion = completion_tokens();
  return {{"prompt_tokens", prompt},
          {"completion_tokens", completion},
          {"total_tokens", prompt + completion},
          {"prompt_tokens_details", json::object({{"cached_tokens", cached}})}};
}

void Answer::AppendChunk(int index, json::value body, const v1::Finish* finish,
                         std::string* out) const {
  if (body.is_null()) return;
  json::object choice = {{"index", index}};
  for (auto& member : body.get_object()) choice.insert(member);
  if (!choice.contains("finish_reason")) {
    choice["finish_reason"] = finish == nullptr
                                  ? json::value(nullptr)
                                  : json::value(View(FinishReasonName(finish->reason())));
  }
  json::array choices;
  choices.push_back(std::move(choice));
  json::object chunk = Envelope(chunk_name(), std::move(choices));
  if (generation_.include_usage) chunk["usage"] = nullptr;
  AppendEvent(SerializeJson(chunk), out);
}

}  // namespace hearth::gateway
