// One sequence's memory on the CPU: its KV pages, and for each delta-net layer the recurrent and
// the convolution state. Engine thread only. All zero at the start of a sequence.
#pragma once

#include <algorithm>
#include <memory>
#include <span>
#include <vector>

#include "common/base/huge_pages.h"
#include "common/checkpoint/config.h"
#include "services/gpu-worker/engine/engine.h"
#include "services/gpu-worker/ops/ops.h"
#include "services/gpu-worker/state/kv_pool.h"

namespace hearth::worker {

class CpuSequence final : public SequenceState {
 public:
  // `max_drafts`: tokens of a step that may be taken back.
  CpuSequence(const ModelConfig& config, std::shared_ptr<KvPool> pool, int max_drafts = 0);
  ~CpuSequence() override;

  int64_t n_tokens() const override { return n_tokens_; }

  // Pages that `n` more tokens need beyond those it has.
  int64_t PagesNeeded(int64_t n) const;
  // Takes them; the caller has checked that the pool has them.
  void Grow(int64_t n);
  // After a step of `n` tokens whose last `n_drafts` may be taken back.
  void Advance(int64_t n, int n_drafts = 0);
  // Takes back the last `n` tokens, of those that may be.
  void Rollback(int n);
  // Takes the pages of `n` tokens and gives them and all states random content of about the size
  // that real ones have.
  void FillRandom(int64_t n, uint64_t seed);

  // Pages of an attention layer, counted among attention layers. Valid until the next call.
  KvPages Pages(int attention_layer);
  // Of a delta-net layer, counted among delta-net layers: [W - 1, channels], oldest first, and [Hv,
  // dk, dv].
  HugeVector<float>& conv_history(int delta_layer) { return layers_[Index(delta_layer)].history; }
  HugeVector<float>& recurrent(int delta_layer) { return layers_[Index(delta_layer)].recurrent; }
  const HugeVector<float>& conv_history(int delta_layer) const {
    return layers_[Index(delta_layer)].history;
  }
  const HugeVector<float>& recurrent(int delta_layer) const {
    return layers_[Index(delta_layer)].recurrent;
  }

  // Within a step: copies a delta-net layer's states as they are before draft number `draft`.
  void KeepDeltaState(int delta_layer, int draft);
  // The hidden state of the last token seen: multi-token prediction goes on from it.
  std::span<const float> hidden() const {
    return std::span(hidden_).subspan(Index(n_kept_before_) * width_, width_);
  }
  // Those of the last tokens of a step, of which all but the first are drafts.
  void KeepHidden(std::span<const float> rows) { std::ranges::copy(rows, hidden_.begin()); }
  // The hidden state of the last guess, and how many guesses were made since the last step.
  std::span<float> draft_hidden() { return draft_hidden_; }
  int n_guessed() const { return n_guessed_; }
  void set_n_guessed(int n) { n_guessed_ = n; }

 private:
  struct DeltaLayer {
    HugeVector<float> history;
    HugeVector<float> recurrent;
  };
  static size_t Index(int layer) { return static_cast<size_t>(layer); }

  std::shared_ptr<KvPool>
      pool_;  // shared: sequences may outlive the engine's other parts at shutdown
  std::vector<int32_t> pages_;
  std::vector<float*> keys_, values_;  // what Pages() hands out
  std::vector<DeltaLayer> layers_;
  std::vector<std::vector<DeltaLayer>> kept_;  // [drafts][layers]: before each, made when needed
  const size_t width_;
  std::vector<float> hidden_;        // [max_drafts + 1, D]
  std::vector<float> draft_hidden_;  // [D]
  int n_kept_before_ = 0;            // drafts of the last step that were not taken back
  int n_guessed_ = 0;
  int64_t n_tokens_ = 0;
};

}  // namespace hearth::worker
