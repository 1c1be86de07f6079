// Log-probabilities in the two shapes of OpenAI's APIs.
#include <algorithm>
#include <cmath>
#include <utility>

#include "common/text/utf8.h"
#include "services/gateway/api/answer.h"

namespace hearth::gateway {
namespace {

// A token may be part of a character: JSON needs whole ones.
std::string Text(const v1::TokenLogprob& token) {
  std::string text;
  AppendUtf8Lossy(token.token(), text);
  return text;
}

// JSON has no infinity; OpenAI's own word for "never" is -9999.
double Finite(float logprob) { return std::isfinite(logprob) ? logprob : -9999.0; }

json::object ChatToken(const v1::TokenLogprob& token) {
  json::array bytes;
  for (const char byte : token.token()) bytes.emplace_back(static_cast<unsigned char>(byte));
  return {
      {"token", Text(token)}, {"logprob", Finite(token.logprob())}, {"bytes", std::move(bytes)}};
}

}  // namespace

size_t CountCharacters(std::string_view text) {
  return static_cast<size_t>(std::ranges::count_if(
      text, [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

json::value ChatLogprobs(const v1::Delta& delta) {
  json::array content;
  for (const v1::TokenLogprob& token : delta.logprobs()) {
    json::array top;
    for (const v1::TokenLogprob& other : token.top()) top.push_back(ChatToken(other));
    json::object entry = ChatToken(token);
    entry["top_logprobs"] = std::move(top);
    content.push_back(std::move(entry));
  }
  return json::object({{"content", std::move(content)}, {"refusal", nullptr}});
}

json::value CompletionLogprobs(const v1::Delta& delta, size_t text_offset) {
  json::array tokens, logprobs, tops, offsets;
  for (const v1::TokenLogprob& token : delta.logprobs()) {
    json::object top;
    for (const v1::TokenLogprob& other : token.top()) top[Text(other)] = Finite(other.logprob());
    tokens.emplace_back(Text(token));
    logprobs.emplace_back(Finite(token.logprob()));
    tops.push_back(std::move(top));
    offsets.emplace_back(text_offset);
    text_offset += CountCharacters(token.token());
  }
  return json::object({{"tokens", std::move(tokens)},
                       {"token_logprobs", std::move(logprobs)},
                       {"top_logprobs", std::move(tops)},
                       {"text_offset", std::move(offsets)}});
}

}  // namespace hearth::gateway
