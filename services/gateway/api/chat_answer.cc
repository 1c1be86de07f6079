// POST /v1/chat/completions: the text is taken apart into reasoning, content and tool calls.
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/text/output_parser.h"
#include "services/gateway/api/answer.h"

namespace hearth::gateway {
namespace {

// What pieces of the text say, in the members of a message or delta.
struct Message {
  std::string content;
  std::string reasoning;
  json::array tool_calls;
};

json::string_view View(std::string_view text) { return {text.data(), text.size()}; }

class ChatAnswer final : public Answer {
 public:
  ChatAnswer(const Generation& generation, AnswerInfo answer_info)
      : Answer(generation, std::move(answer_info)), streams_(generation.requests.size()) {}

 private:
  // Of a choice that streams.
  struct Stream {
    std::unique_ptr<OutputParser> parser;  // made with the first delta
    int n_calls = 0;                       // sent so far
  };

  std::string_view object_name() const override { return "chat.completion"; }
  std::string_view chunk_name() const override { return "chat.completion.chunk"; }

  json::value StartChoice() const override {
    return json::object(
        {{"delta", json::object({{"role", "assistant"}, {"content", ""}})}, {"logprobs", nullptr}});
  }

  json::value DeltaChoice(int index, const v1::Delta& delta, const v1::Finish* finish) override {
    Stream& stream = streams_[static_cast<size_t>(index)];
    if (stream.parser == nullptr) stream.parser = MakeParser(index);
    Message message;
    if (!delta.text().empty()) Add(index, stream.parser->Push(delta.text()), &stream, &message);
    if (finish != nullptr) Add(index, stream.parser->Finish(), &stream, &message);
    json::object said;
    if (!message.reasoning.empty()) said["reasoning_content"] = message.reasoning;
    if (!message.content.empty()) said["content"] = message.content;
    if (!message.tool_calls.empty()) said["tool_calls"] = std::move(message.tool_calls);
    const bool says_nothing = said.empty() && delta.token_ids().empty() && delta.logprobs().empty();
    if (finish == nullptr && says_nothing) return nullptr;
    json::object fields = {{"delta", std::move(said)}};
    AddDetails(delta, &fields);
    if (finish != nullptr) fields["finish_reason"] = View(Reason(*finish, stream.n_calls));
    return fields;
  }

  json::object WholeChoice(int index) const override {
    const v1::Delta& whole = choice(index).whole;
    const auto parser = MakeParser(index);
    Stream stream;
    Message message;
    Add(index, parser->Push(whole.text()), &stream, &message);
    Add(index, parser->Finish(), &stream, &message);
    json::object said = {{"role", "assistant"}, {"content", message.content}, {"refusal", nullptr}};
    if (!message.reasoning.empty()) said["reasoning_content"] = message.reasoning;
    if (!message.tool_calls.empty()) {
      if (message.content.empty()) said["content"] = nullptr;
      said["tool_calls"] = std::move(message.tool_calls);
    }
    json::object fields = {{"message", std::move(said)}};
    AddDetails(whole, &fields);
    fields["finish_reason"] = View(Reason(choice(index).finish, stream.n_calls));
    return fields;
  }

  std::unique_ptr<OutputParser> MakeParser(int index) const {
    return std::make_unique<OutputParser>(
        OutputOptions{.starts_in_reasoning = choice(index).opens_reasoning,
                      .parses_tool_calls = generation().parse_tool_calls});
  }

  void Add(int index, const std::vector<OutputPiece>& pieces, Stream* stream,
           Message* message) const {
    for (const OutputPiece& piece : pieces) {
      if (piece.kind == OutputPiece::Kind::kReasoning) message->reasoning += piece.text;
      if (piece.kind == OutputPiece::Kind::kContent) message->content += piece.text;
      if (piece.kind != OutputPiece::Kind::kToolCall) continue;
      json::object call;
      if (generation().stream) call["index"] = stream->n_calls;
      call["id"] = CallId(index, stream->n_calls++);
      call["type"] = "function";
      call["function"] = json::object({{"name", piece.name}, {"arguments", piece.arguments_json}});
      message->tool_calls.push_back(std::move(call));
    }
  }

  // Of the answer's own id, so that it is unique in a conversation.
  std::string CallId(int index, int call) const {
    const std::string_view id = std::string_view(info().id).substr(info().id.find('-') + 1);
    return absl::StrCat("call_", ToAbsl(id), "_", index, "_", call);
  }

  static std::string_view Reason(const v1::Finish& finish, int n_calls) {
    const bool is_call = n_calls > 0 && finish.reason() != v1::FINISH_REASON_LENGTH;
    return is_call ? "tool_calls" : FinishReasonName(finish.reason());
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

  std::vector<Stream> streams_;
};

}  // namespace

std::unique_ptr<Answer> MakeChatAnswer(const Generation& generation, AnswerInfo info) {
  return std::make_unique<ChatAnswer>(generation, std::move(info));
}

}  // namespace hearth::gateway
