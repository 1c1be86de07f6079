// How the CUDA engine guesses: one row a sequence, as a graph.
#include <algorithm>

#include "common/base/status_macros.h"
#include "services/gpu-worker/engine/cuda/cuda_engine.h"
#include "services/gpu-worker/engine/step_check.h"

namespace hearth::worker {

absl::Status CudaEngine::Draft(std::span<const DraftItem> items, int depth, StepLogits* logits) {
  HEARTH_RETURN_IF_ERROR(
      CheckDraft(*this, items, depth, options_.max_batch_tokens, [](const SequenceState& state) {
        return static_cast<const CudaSequence&>(state).n_guessed();
      }));
  const bool by_top = std::ranges::all_of(
      items, [](const DraftItem& item) { return item.temperature.has_value(); });
  BeginLogits(items.size(), by_top, logits);
  BeginStep();
  for (size_t first = 0; first < items.size(); first += kDecodeRows) {
    const auto group = items.subspan(first, std::min<size_t>(kDecodeRows, items.size() - first));
    HEARTH_RETURN_IF_ERROR(Ended(DraftGroup(group, depth, static_cast<int>(first), logits)));
  }
  return absl::OkStatus();
}

absl::Status CudaEngine::DraftGroup(std::span<const DraftItem> items, int depth, int row,
                                    StepLogits* logits) {
  Batch batch;
  std::vector<int> rows;
  batch.is_draft = true;
  for (const DraftItem& item : items) {
    auto* sequence = static_cast<CudaSequence*>(item.state);
    sequence->Grow(depth);
    const int at = batch.n_rows();
    // Where the head keeps what it makes of a token and of the hidden state before it.
    const int64_t position = sequence->n_tokens() - 1 + depth;
    batch.ids.push_back(item.token);
    batch.positions.push_back(position);
    batch.items.push_back({.sequence = sequence, .rows = {at, at + 1}, .first_position = position});
    batch.logits_rows.push_back(at);
    if (gives_top_) batch.temperatures.push_back(*item.temperature);
    rows.push_back(row + at);
    sequence->set_n_guessed(depth + 1);
  }
  return RunInto(batch, depth == 0 ? Pass::kFirstDraft : Pass::kDeeperDraft, /*as_graph=*/true,
                 rows, logits);
}

}  // namespace hearth::worker
