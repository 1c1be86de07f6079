#include "services/gpu-worker/engine/step_check.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace hearth::worker {

absl::Status CheckTokenId(const ModelConfig& config, int32_t id) {
  if (id >= 0 && id < config.vocab_size) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("token id ", id, " is not in [0, ", config.vocab_size, ")"));
}

absl::Status CheckStep(const Engine& engine, std::span<const StepItem> items, int64_t max_tokens) {
  std::set<const SequenceState*> seen;
  int64_t n_tokens = 0, pages = 0;
  for (const StepItem& item : items) {
    if (item.state == nullptr || item.tokens.empty()) {
      return absl::InvalidArgumentError("a step's item needs a sequence and at least one token");
    }
    if (!seen.insert(item.state).second) {
      return absl::InvalidArgumentError("a sequence may stand in a step once");
    }
    for (const int32_t id : item.tokens) {
      HEARTH_RETURN_IF_ERROR(CheckTokenId(engine.config(), id));
    }
    const auto n = static_cast<int64_t>(item.tokens.size());
    if (item.n_drafts < 0 || item.n_drafts >= n || item.n_drafts > engine.max_drafts()) {
      return absl::InvalidArgumentError(absl::StrCat(item.n_drafts, " of ", n,
                                                     " tokens are to be drafts, at most ",
                                                     engine.max_drafts(), " and not all can be"));
    }
    n_tokens += n;
    pages += engine.PagesNeeded(*item.state, n);
  }
  if (n_tokens > max_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat(n_tokens, " tokens in a step, the limit is ", max_tokens));
  }
  if (pages > engine.pages_free()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the step needs ", pages, " KV pages, ", engine.pages_free(), " are free"));
  }
  return absl::OkStatus();
}

absl::Status CheckDraft(const Engine& engine, std::span<const DraftItem> items, int depth,
                        int64_t max_items,
                        const std::function<int(const SequenceState&)>& n_guessed) {
  if (depth < 0 || depth >= engine.max_drafts()) {
    return absl::InvalidArgumentError(
        absl::StrCat("draft ", depth, ", the engine makes ", engine.max_drafts()));
  }
  if (static_cast<int64_t>(items.size()) > max_items) {
    return absl::InvalidArgumentError(
        absl::StrCat(items.size(), " drafts at once, the limit is ", max_items));
  }
  std::set<const SequenceState*> seen;
  int64_t pages = 0;
  for (const DraftItem& item : items) {
    if (item.state == nullptr || !seen.insert(item.state).second) {
      return absl::InvalidArgumentError("a draft's item needs a sequence, each once");
    }
    HEARTH_RETURN_IF_ERROR(CheckTokenId(engine.config(), item.token));
    const int64_t n_tokens = item.state->n_tokens();
    if (n_tokens == 0 || (depth > 0 && n_guessed(*item.state) != depth)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "draft ", depth, " after ", n_tokens, " tokens and ", n_guessed(*item.state), " drafts"));
    }
    pages += engine.PagesNeeded(*item.state, depth);
  }
  if (pages <= engine.pages_free()) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("the draft needs ", pages, " KV pages, ", engine.pages_free(), " are free"));
}

absl::StatusOr<int> DeltaLayerIndex(const ModelConfig& config, int layer) {
  if (layer < 0 || layer >= config.n_layers ||
      config.layers[static_cast<size_t>(layer)].mixer != MixerKind::kDeltaNet) {
    return absl::InvalidArgumentError(absl::StrCat("layer ", layer, " is no delta-net layer"));
  }
  return static_cast<int>(
      std::count_if(config.layers.begin(), config.layers.begin() + layer,
                    [](const LayerConfig& other) { return other.mixer == MixerKind::kDeltaNet; }));
}

std::vector<float> NewestLast(std::span<const float> history, int64_t channels) {
  std::vector<float> turned(history.size());
  const auto n_channels = static_cast<size_t>(channels), n_past = history.size() / n_channels;
  for (size_t t = 0; t < n_past; ++t) {
    for (size_t c = 0; c < n_channels; ++c) turned[c * n_past + t] = history[t * n_channels + c];
  }
  return turned;
}

}  // namespace hearth::worker
