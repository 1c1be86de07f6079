// The answer to a chat or completion request, built from the worker's events: as server-sent events
// while they come, or as one JSON object at the end.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/json.h"
#include "hearth/v1/inference.pb.h"
#include "services/gateway/api/request.h"

namespace hearth::gateway {

struct AnswerInfo {
  std::string id;       // "chatcmpl-..."
  int64_t created = 0;  // Unix seconds
  std::string model;
};

// Thread-compatible. `out` collects server-sent events, and stays empty when the answer does not
// stream.
class Answer {
 public:
  static std::unique_ptr<Answer> Make(const Generation& generation, AnswerInfo info);
  virtual ~Answer() = default;

  void Start(std::string* out);
  // Where the worker begins with a choice.
  void OnStarted(int choice, const v1::Started& started);
  void OnDelta(int choice, const v1::Delta& delta, std::string* out);
  void OnFinish(int choice, const v1::Finish& finish, std::string* out);
  // After every choice has finished.
  void End(std::string* out);
  // The whole, when it does not stream.
  std::string Body() const;

  int64_t completion_tokens() const;

 protected:
  struct Choice {
    v1::Delta whole;  // text, ids and logprobs joined; not kept when streaming
    v1::Finish finish;
    bool opens_reasoning = false;  // the prompt ended inside the reasoning
    size_t text_offset = 0;        // characters streamed so far: completions' logprobs count them
  };

  Answer(const Generation& generation, AnswerInfo info);

  virtual std::string_view object_name() const = 0;
  virtual std::string_view chunk_name() const = 0;
  // The first chunk's choice of a stream; null where there is none.
  virtual json::value StartChoice() const = 0;
  // A chunk's choice but its index and finish_reason. Without what there is nothing to say about:
  // null. `finish` is null but for the last one.
  virtual json::value DeltaChoice(int choice, const v1::Delta& delta, const v1::Finish* finish) = 0;
  // A whole answer's choice but its index.
  virtual json::object WholeChoice(int choice) const = 0;

  const Generation& generation() const { return generation_; }
  const AnswerInfo& info() const { return info_; }
  const Choice& choice(int index) const { return choices_[static_cast<size_t>(index)]; }

 private:
  json::object Envelope(std::string_view object, json::array choices) const;
  json::object Usage() const;
  void AppendChunk(int choice, json::value body, const v1::Finish* finish, std::string* out) const;

  const Generation generation_;
  const AnswerInfo info_;
  std::vector<Choice> choices_;
};

// "stop", "length": OpenAI's words.
std::string_view FinishReasonName(v1::FinishReason reason);

std::unique_ptr<Answer> MakeChatAnswer(const Generation& generation, AnswerInfo info);
std::unique_ptr<Answer> MakeCompletionAnswer(const Generation& generation, AnswerInfo info);

// UTF-8's characters, by their first bytes.
size_t CountCharacters(std::string_view text);

// Chat's {"content": [...]} and completions' {"tokens", "token_logprobs", ...} of some tokens.
json::value ChatLogprobs(const v1::Delta& delta);
json::value CompletionLogprobs(const v1::Delta& delta, size_t text_offset);

}  // namespace hearth::gateway
