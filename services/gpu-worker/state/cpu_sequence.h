// One sequence's memory on the CPU: its KV pages, and for each delta-net layer the recurrent and
// the convolution state. Engine thread only. All zero at the start of a sequence.
#pragma once

#include <memory>
#include <vector>

#include "common/base/huge_pages.h"
#include "common/checkpoint/config.h"
#include "services/gpu-worker/engine/engine.h"
#include "services/gpu-worker/ops/ops.h"
#include "services/gpu-worker/state/kv_pool.h"

namespace hearth::worker {

class CpuSequence final : public SequenceState {
 public:
  CpuSequence(const ModelConfig& config, std::shared_ptr<KvPool> pool);
  ~CpuSequence() override;

  int64_t n_tokens() const override { return n_tokens_; }

  // Pages that `n` more tokens need beyond those it has.
  int64_t PagesNeeded(int64_t n) const;
  // Takes them; the caller has checked that the pool has them.
  void Grow(int64_t n);
  void Advance(int64_t n) { n_tokens_ += n; }
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
  int64_t n_tokens_ = 0;
};

}  // namespace hearth::worker
