// The rows. Bounds of sampling are the worker's own (services/gpu-worker/rpc/request.cc checks them
// again for gRPC clients, against the model's vocabulary and context).
#include "services/gateway/api/fields.h"

namespace hearth::gateway {
namespace {

constexpr unsigned kGenerate = kChat | kCompletion;
constexpr unsigned kMessages = kChat | kApplyTemplate;
constexpr unsigned kEvery = kGenerate | kTokenize | kDetokenize | kApplyTemplate;
constexpr int64_t kMinInt64 = std::numeric_limits<int64_t>::min();
constexpr int64_t kMaxInt64 = std::numeric_limits<int64_t>::max();

constexpr FieldSpec Bool(std::string_view name, unsigned endpoints) {
  return {.name = name, .endpoints = endpoints, .kind = FieldKind::kBool};
}
constexpr FieldSpec Integer(std::string_view name, unsigned endpoints, int64_t min, int64_t max) {
  return {
      .name = name, .endpoints = endpoints, .kind = FieldKind::kInteger, .min = min, .max = max};
}
constexpr FieldSpec Number(std::string_view name, double min, double max, bool above_min = false) {
  return {.name = name,
          .endpoints = kGenerate,
          .kind = FieldKind::kNumber,
          .min_number = min,
          .max_number = max,
          .above_min = above_min};
}
constexpr FieldSpec Sized(std::string_view name, unsigned endpoints, FieldKind kind, int64_t min,
                          int64_t max) {
  return {.name = name, .endpoints = endpoints, .kind = kind, .min = min, .max = max};
}
constexpr FieldSpec Required(FieldSpec spec) {
  spec.required = true;
  return spec;
}
constexpr FieldSpec Any(std::string_view name, unsigned endpoints) {
  return {.name = name, .endpoints = endpoints, .kind = FieldKind::kAny};
}
constexpr FieldSpec Unsupported(std::string_view name, unsigned endpoints) {
  return {.name = name, .endpoints = endpoints, .kind = FieldKind::kUnsupported};
}

constexpr FieldSpec kTable[] = {
    Sized("model", kEvery, FieldKind::kString, 1, 256),
    // What the model reads.
    Required(Sized("messages", kMessages, FieldKind::kArray, 1, 4096)),
    Sized("tools", kMessages, FieldKind::kArray, 0, 128),
    Any("tool_choice", kChat),
    Bool("parallel_tool_calls", kChat),
    Sized("chat_template_kwargs", kMessages, FieldKind::kObject, 0, 64),
    Bool("add_generation_prompt", kMessages),
    Required(Any("prompt", kCompletion)),
    Bool("echo", kCompletion),
    // How the answer comes.
    Bool("stream", kGenerate),
    Sized("stream_options", kGenerate, FieldKind::kObject, 0, 8),
    Integer("n", kGenerate, 1, 8),
    Integer("best_of", kCompletion, 1, 1),
    Integer("max_tokens", kGenerate, 1, kMaxInt32),
    Integer("max_completion_tokens", kChat, 1, kMaxInt32),
    Sized("stop", kGenerate, FieldKind::kStrings, 0, 16),
    Sized("stop_token_ids", kGenerate, FieldKind::kIds, 0, 64),
    Bool("ignore_eos", kGenerate),
    Bool("return_token_ids", kGenerate),
    Bool("logprobs", kChat),
    Integer("top_logprobs", kChat, 0, 20),
    Integer("logprobs", kCompletion, 0, 20),
    Any("response_format", kChat),
    // Sampling.
    Number("temperature", 0, 2),
    Number("top_p", 0, 1, true),
    Integer("top_k", kGenerate, -1, kMaxInt32),
    Number("min_p", 0, 1),
    Number("presence_penalty", -2, 2),
    Number("frequency_penalty", -2, 2),
    Number("repetition_penalty", 0, 10, true),
    Sized("logit_bias", kGenerate, FieldKind::kObject, 0, 1024),
    Integer("seed", kGenerate, kMinInt64, kMaxInt64),
    // Helpers, in llama-server's shapes.
    Required(Sized("content", kTokenize, FieldKind::kString, 0, kMaxStringBytes)),
    Bool("add_special", kTokenize),
    Bool("parse_special", kTokenize),
    Unsupported("with_pieces", kTokenize),
    Required(Sized("tokens", kDetokenize, FieldKind::kIds, 0, 1 << 20)),
    // Accepted without effect: they say something about the caller, not about the answer.
    Sized("user", kGenerate, FieldKind::kString, 0, 1024),
    Sized("safety_identifier", kChat, FieldKind::kString, 0, 1024),
    Sized("prompt_cache_key", kChat, FieldKind::kString, 0, 1024),
    Sized("metadata", kChat, FieldKind::kObject, 0, 64),
    Sized("service_tier", kChat, FieldKind::kString, 0, 64),
    Bool("store", kChat),
    // Known, and refused unless they ask for nothing.
    Unsupported("suffix", kCompletion),
    Unsupported("functions", kChat),
    Unsupported("function_call", kChat),
    Unsupported("audio", kChat),
    Unsupported("prediction", kChat),
    Unsupported("web_search_options", kChat),
    Unsupported("reasoning_effort", kChat),
    Unsupported("verbosity", kChat),
    Any("modalities", kChat),
};

}  // namespace

std::span<const FieldSpec> FieldTable() { return kTable; }

}  // namespace hearth::gateway
