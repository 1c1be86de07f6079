// Fuzzes the bodies of chat and completion requests, and the answers to those that are accepted: a
// refusal is a 400 that can be sent, an acceptance is messages that gRPC can send.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "services/gateway/api/answer.h"
#include "services/gateway/api/error.h"
#include "services/gateway/api/fields.h"
#include "services/gateway/api/request.h"

namespace hearth::gateway {
namespace {

void Require(bool holds) {
  if (!holds) std::abort();
}

void CheckRefusal(const absl::Status& status) {
  const ApiError error = ToApiError(status);
  Require(error.http_status == 400 && !error.message.empty() && error.message.size() < 4096);
  const auto body = ParseJson(ErrorBody(error));
  Require(body.ok() && body->at("error").get_object().size() == 4);
}

// The text of the request as the answer's: it must come out again, whole or streamed.
void CheckAnswer(const Generation& generation, std::string_view text) {
  const auto answer = Answer::Make(generation, {.id = "x-1", .created = 1, .model = "m"});
  std::string out;
  answer->Start(&out);
  for (int i = 0; i < static_cast<int>(generation.requests.size()); ++i) {
    v1::Delta delta;
    delta.set_text(std::string(text));
    answer->OnDelta(i, delta, &out);
    answer->OnFinish(i, v1::Finish(), &out);
  }
  answer->End(&out);
  if (generation.stream) {
    Require(out.ends_with("data: [DONE]\n\n"));
  } else {
    Require(out.empty() && ParseJson(answer->Body()).ok());
  }
}

void Check(Endpoint endpoint, std::string_view text) {
  const auto body = ParseJson(text);
  if (!body.ok()) return CheckRefusal(body.status());
  const absl::Status checked = CheckFields(*body, endpoint);
  if (!checked.ok()) return CheckRefusal(checked);
  const auto generation =
      endpoint == kChat ? ParseChat(body->get_object()) : ParseCompletion(body->get_object());
  if (!generation.ok()) return CheckRefusal(generation.status());
  Require(!generation->requests.empty() && generation->requests.size() <= 64);
  for (const v1::GenerateRequest& request : generation->requests) {
    v1::GenerateRequest copy;
    Require(copy.ParseFromString(request.SerializeAsString()));
    Require(request.prompt_case() != v1::GenerateRequest::PROMPT_NOT_SET);
    Require(!request.has_max_tokens() || request.max_tokens() > 0);
  }
  CheckAnswer(*generation, text);
}

}  // namespace
}  // namespace hearth::gateway

// The first byte chooses the endpoint.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hearth::gateway;
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  Check(data[0] % 2 == 0 ? kChat : kCompletion, text);
  return 0;
}
