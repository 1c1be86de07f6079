#include "services/gpu-worker/rpc/request.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "common/text/output_parser.h"
#include "services/gpu-worker/rpc/chat_prompt.h"

namespace hearth::worker {
namespace {

constexpr int kMaxStops = 16;
constexpr size_t kMaxStopBytes = 1024;
constexpr int kMaxStopIds = 64;
constexpr int kMaxBiases = 1024;
constexpr int kMaxLogprobs = 20;
constexpr size_t kMaxRequestIdBytes = 256;

template <typename Value>
absl::Status OutOfRange(std::string_view field, Value value, std::string_view bounds) {
  return absl::InvalidArgumentError(
      absl::StrCat(ToAbsl(field), ": ", value, " is out of range, must be ", ToAbsl(bounds)));
}

// Also refuses NaN, which no comparison accepts.
absl::Status CheckRange(std::string_view field, double value, double least, double most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return OutOfRange(field, value, absl::StrCat(least, " to ", most));
}
absl::Status CheckAbove(std::string_view field, double value, double above, double most) {
  if (value > above && value <= most) return absl::OkStatus();
  return OutOfRange(field, value, absl::StrCat("above ", above, " and at most ", most));
}

uint64_t RandomSeed() {
  thread_local std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

absl::Status ReadLogitBias(const v1::Sampling& sampling, int vocab_size, SamplingParams& params) {
  if (sampling.logit_bias_size() > kMaxBiases) {
    return OutOfRange("logit_bias", sampling.logit_bias_size(),
                      absl::StrCat("at most ", kMaxBiases, " entries"));
  }
  for (const auto& [id, bias] : sampling.logit_bias()) {
    if (id < 0 || id >= vocab_size) {
      return OutOfRange("logit_bias", id, absl::StrCat("a token id of 0 to ", vocab_size - 1));
    }
    HEARTH_RETURN_IF_ERROR(CheckRange("logit_bias", bias, -100, 100));
    params.logit_bias.emplace_back(id, bias);
  }
  std::sort(params.logit_bias.begin(), params.logit_bias.end());
  return absl::OkStatus();
}

// What the checkpoint's generation_config.json says, as Hugging Face reads it.
SamplingParams CheckpointDefaults(const ModelConfig::Defaults& defaults) {
  SamplingParams params;
  params.temperature = static_cast<float>(defaults.temperature.value_or(1));
  if (defaults.do_sample.has_value() && !*defaults.do_sample) params.temperature = 0;
  params.top_k = defaults.top_k.value_or(0);
  params.top_p = static_cast<float>(defaults.top_p.value_or(1));
  params.min_p = static_cast<float>(defaults.min_p.value_or(0));
  params.repetition_penalty = static_cast<float>(defaults.repetition_penalty.value_or(1));
  return params;
}

absl::Status CheckSampling(const SamplingParams& params, int vocab_size) {
  HEARTH_RETURN_IF_ERROR(CheckRange("temperature", params.temperature, 0, 2));
  HEARTH_RETURN_IF_ERROR(CheckRange("top_k", params.top_k, 0, vocab_size));
  HEARTH_RETURN_IF_ERROR(CheckAbove("top_p", params.top_p, 0, 1));
  HEARTH_RETURN_IF_ERROR(CheckRange("min_p", params.min_p, 0, 1));
  HEARTH_RETURN_IF_ERROR(CheckRange("presence_penalty", params.presence_penalty, -2, 2));
  HEARTH_RETURN_IF_ERROR(CheckRange("frequency_penalty", params.frequency_penalty, -2, 2));
  return CheckAbove("repetition_penalty", params.repetition_penalty, 0, 10);
}

absl::Status ReadStops(const v1::GenerateRequest& request, const ModelConfig& config,
                       GenerationRequest& out) {
  if (request.stop_size() > kMaxStops) {
    return OutOfRange("stop", request.stop_size(), absl::StrCat("at most ", kMaxStops, " strings"));
  }
  for (const std::string& stop : request.stop()) {
    if (stop.empty() || stop.size() > kMaxStopBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("stop: a string of ", stop.size(), " bytes, must be 1 to ", kMaxStopBytes));
    }
    out.stop_strings.push_back(stop);
  }
  if (request.stop_token_ids_size() > kMaxStopIds) {
    return OutOfRange("stop_token_ids", request.stop_token_ids_size(),
                      absl::StrCat("at most ", kMaxStopIds, " ids"));
  }
  for (const int32_t id : request.stop_token_ids()) {
    if (id < 0 || id >= config.vocab_size) {
      return OutOfRange("stop_token_ids", id,
                        absl::StrCat("a token id of 0 to ", config.vocab_size - 1));
    }
    out.stop_ids.push_back(id);
  }
  if (!request.ignore_eos()) {
    out.stop_ids.insert(out.stop_ids.end(), config.eos_token_ids.begin(),
                        config.eos_token_ids.end());
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> Encode(const Tokenizer& tokenizer, const std::string& text,
                                            std::string_view field) {
  auto ids = tokenizer.Encode(text);
  if (!ids.ok()) {
    // Too long a text is the client's mistake here, not a limit that passes.
    return absl::InvalidArgumentError(absl::StrCat(ToAbsl(field), ": ", ids.status().message()));
  }
  return ids;
}

absl::StatusOr<std::vector<int32_t>> PromptIds(const v1::GenerateRequest& request,
                                               const ServedModel& model, bool* opens_reasoning) {
  switch (request.prompt_case()) {
    case v1::GenerateRequest::kChat: {
      HEARTH_ASSIGN_OR_RETURN(const std::string text,
                              RenderChat(model.chat_template, request.chat()));
      *opens_reasoning = PromptOpensReasoning(text);
      return Encode(*model.tokenizer, text, "messages");
    }
    case v1::GenerateRequest::kText:
      return Encode(*model.tokenizer, request.text(), "prompt");
    case v1::GenerateRequest::kTokens: {
      const auto& ids = request.tokens().ids();
      return std::vector<int32_t>(ids.begin(), ids.end());
    }
    case v1::GenerateRequest::PROMPT_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("prompt: is missing, give chat, text or tokens");
}

// `field`: what the client wrote the prompt in.
absl::Status CheckPrompt(std::span<const int32_t> ids, std::string_view field, int vocab_size,
                         int64_t max_tokens) {
  if (ids.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(ToAbsl(field), ": is empty, must have at least one token"));
  }
  for (const int32_t id : ids) {
    if (id < 0 || id >= vocab_size) {
      return OutOfRange(field, id, absl::StrCat("token ids of 0 to ", vocab_size - 1));
    }
  }
  if (static_cast<int64_t>(ids.size()) < max_tokens) return absl::OkStatus();
  return absl::OutOfRangeError(absl::StrCat(
      ToAbsl(field), ": has ", ids.size(), " tokens, but prompt and answer together can have ",
      max_tokens, "; shorten it, or start the worker with a larger --context"));
}

}  // namespace

absl::StatusOr<SamplingParams> ToSamplingParams(const v1::Sampling& sampling,
                                                const ModelConfig& config) {
  SamplingParams params = CheckpointDefaults(config.defaults);
  if (sampling.has_temperature()) params.temperature = sampling.temperature();
  if (sampling.has_top_k()) params.top_k = sampling.top_k();
  if (sampling.has_top_p()) params.top_p = sampling.top_p();
  if (sampling.has_min_p()) params.min_p = sampling.min_p();
  if (sampling.has_presence_penalty()) params.presence_penalty = sampling.presence_penalty();
  if (sampling.has_frequency_penalty()) params.frequency_penalty = sampling.frequency_penalty();
  if (sampling.has_repetition_penalty()) params.repetition_penalty = sampling.repetition_penalty();
  HEARTH_RETURN_IF_ERROR(CheckSampling(params, config.vocab_size));
  HEARTH_RETURN_IF_ERROR(ReadLogitBias(sampling, config.vocab_size, params));
  params.seed = sampling.has_seed() ? sampling.seed() : RandomSeed();
  if (sampling.has_logprobs()) {
    HEARTH_RETURN_IF_ERROR(CheckRange("logprobs", sampling.logprobs(), 0, kMaxLogprobs));
    params.logprobs = sampling.logprobs();
  }
  return params;
}

absl::StatusOr<GenerationRequest> ToGenerationRequest(const v1::GenerateRequest& request,
                                                      const ServedModel& model) {
  if (request.request_id().size() > kMaxRequestIdBytes) {
    return absl::InvalidArgumentError(absl::StrCat("request_id: has ", request.request_id().size(),
                                                   " bytes, at most ", kMaxRequestIdBytes));
  }
  const ModelConfig& config = model.config;
  const int64_t longest = model.scheduler->max_request_tokens();
  GenerationRequest out;
  HEARTH_ASSIGN_OR_RETURN(out.sampling, ToSamplingParams(request.sampling(), config));
  HEARTH_RETURN_IF_ERROR(ReadStops(request, config, out));
  out.max_tokens = longest;
  if (request.has_max_tokens()) {
    if (request.max_tokens() < 1 || request.max_tokens() > longest) {
      return OutOfRange("max_tokens", request.max_tokens(), absl::StrCat("1 to ", longest));
    }
    out.max_tokens = request.max_tokens();
  }
  out.return_token_ids = request.return_token_ids();
  HEARTH_ASSIGN_OR_RETURN(out.prompt, PromptIds(request, model, &out.opens_reasoning));
  const std::string_view field = request.has_chat() ? "messages" : "prompt";
  HEARTH_RETURN_IF_ERROR(CheckPrompt(out.prompt, field, config.vocab_size, longest));
  if (request.echo()) {
    HEARTH_ASSIGN_OR_RETURN(out.echo, model.tokenizer->Decode(out.prompt));
  }
  return out;
}

}  // namespace hearth::worker
