#include "services/gpu-worker/experts/simulation/recorder.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"

namespace hearth::worker {
namespace {

constexpr std::string_view kPrefix = "layers.";

// 3 of "layers.3.router.topk_ids" with the suffix ".router.topk_ids".
std::optional<int> LayerOf(std::string_view name, std::string_view suffix, int n_layers) {
  if (!name.starts_with(kPrefix) || !name.ends_with(suffix)) return std::nullopt;
  name.remove_prefix(kPrefix.size());
  name.remove_suffix(suffix.size());
  int layer = 0;
  if (!absl::SimpleAtoi(ToAbsl(name), &layer) || layer < 0 || layer >= n_layers) {
    return std::nullopt;
  }
  return layer;
}

}  // namespace

RoutingRecorder::RoutingRecorder(Engine* engine, std::string model, std::string fingerprint,
                                 EarlyRouter* early)
    : engine_(*engine), early_(early) {
  const ModelConfig& config = engine_.config();
  trace_.model = std::move(model);
  trace_.fingerprint = std::move(fingerprint);
  trace_.n_layers = config.n_layers;
  trace_.n_experts = config.n_experts;
  trace_.top_k = config.experts_per_token;
  trace_.ids.resize(static_cast<size_t>(config.n_layers));
  if (early_ != nullptr) trace_.early_ids.resize(trace_.ids.size());
  engine_.SetObserver([this](std::string_view name, int rows, int columns, const float* values) {
    OnTensor(name, rows, columns, values);
  });
}

RoutingRecorder::~RoutingRecorder() { engine_.SetObserver(nullptr); }

void RoutingRecorder::OnTensor(std::string_view name, int rows, int columns, const float* values) {
  if (const auto layer = LayerOf(name, ".router.topk_ids", trace_.n_layers)) {
    auto& ids = trace_.ids[static_cast<size_t>(*layer)];
    for (int i = 0; i < rows * columns; ++i) ids.push_back(static_cast<int32_t>(values[i]));
  }
  if (early_ == nullptr) return;
  if (const auto layer = LayerOf(name, ".hidden", trace_.n_layers);
      layer && early_->HasLayer(*layer + 1)) {
    early_->Choose(*layer + 1, rows, values, &trace_.early_ids[static_cast<size_t>(*layer) + 1]);
  }
}

absl::Status RoutingRecorder::Step(SequenceState* state, std::span<const int32_t> tokens,
                                   bool is_prompt, StepLogits* logits) {
  const StepItem item{state, tokens, LogitsWanted::kLast};
  HEARTH_RETURN_IF_ERROR(engine_.Step({&item, 1}, logits));
  for (size_t i = 0; i < tokens.size(); ++i) {
    trace_.tokens.push_back({n_steps_, n_sequences_, is_prompt});
  }
  ++n_steps_;
  return absl::OkStatus();
}

absl::Status RoutingRecorder::Run(std::span<const int32_t> prompt, const RecordOptions& options) {
  if (prompt.empty()) return absl::InvalidArgumentError("a prompt has no tokens");
  const auto state = engine_.NewSequence();
  StepLogits logits;
  const auto chunk = static_cast<size_t>(options.max_batch_tokens);
  for (size_t read = 0; read < prompt.size(); read += chunk) {
    const auto part = prompt.subspan(read, std::min(chunk, prompt.size() - read));
    HEARTH_RETURN_IF_ERROR(Step(state.get(), part, /*is_prompt=*/true, &logits));
  }
  for (int n = 0; n < options.max_tokens; ++n) {
    const auto row = logits.Row(0, engine_.config().vocab_size);
    const auto id = static_cast<int32_t>(std::ranges::max_element(row) - row.begin());
    if (std::ranges::find(options.eos_ids, id) != options.eos_ids.end()) break;
    HEARTH_RETURN_IF_ERROR(Step(state.get(), {&id, 1}, /*is_prompt=*/false, &logits));
  }
  ++n_sequences_;
  return absl::OkStatus();
}

}  // namespace hearth::worker
