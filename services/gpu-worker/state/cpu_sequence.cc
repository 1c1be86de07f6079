#include "services/gpu-worker/state/cpu_sequence.h"

#include <algorithm>
#include <utility>

#include "common/synthetic/random.h"

namespace hearth::worker {

CpuSequence::CpuSequence(const ModelConfig& config, std::shared_ptr<KvPool> pool)
    : pool_(std::move(pool)) {
  for (const LayerConfig& layer : config.layers) {
    if (layer.mixer != MixerKind::kDeltaNet) continue;
    DeltaLayer& state = layers_.emplace_back();
    state.history.assign(static_cast<size_t>((config.conv_width - 1) * config.conv_channels()), 0);
    state.recurrent.assign(static_cast<size_t>(config.linear_value_heads) *
                               static_cast<size_t>(config.linear_key_head_dim) *
                               static_cast<size_t>(config.linear_value_head_dim),
                           0);
  }
}

CpuSequence::~CpuSequence() {
  for (const int32_t page : pages_) pool_->Return(page);
}

int64_t CpuSequence::PagesNeeded(int64_t n) const {
  const int64_t page_tokens = pool_->shape().page_tokens;
  const int64_t pages = (n_tokens_ + n + page_tokens - 1) / page_tokens;
  return std::max<int64_t>(0, pages - static_cast<int64_t>(pages_.size()));
}

void CpuSequence::Grow(int64_t n) {
  for (int64_t i = PagesNeeded(n); i > 0; --i) pages_.push_back(pool_->Take());
}

void CpuSequence::FillRandom(int64_t n, uint64_t seed) {
  Grow(n);
  uint64_t stream = StreamOf(seed, "context");
  const KvPoolShape& shape = pool_->shape();
  const auto page = static_cast<size_t>(shape.page_tokens * shape.token_floats);
  for (const int32_t number : pages_) {
    for (int layer = 0; layer < shape.n_layers; ++layer) {
      FillRandomFloats(++stream, 1, {pool_->Keys(number, layer), page});
      FillRandomFloats(++stream, 1, {pool_->Values(number, layer), page});
    }
  }
  for (DeltaLayer& layer : layers_) {
    FillRandomFloats(++stream, 1, layer.history);
    FillRandomFloats(++stream, 0.1F, layer.recurrent);
  }
  Advance(n);
}

KvPages CpuSequence::Pages(int attention_layer) {
  keys_.resize(pages_.size());
  values_.resize(pages_.size());
  for (size_t i = 0; i < pages_.size(); ++i) {
    keys_[i] = pool_->Keys(pages_[i], attention_layer);
    values_[i] = pool_->Values(pages_[i], attention_layer);
  }
  return {keys_, values_, pool_->shape().page_tokens};
}

}  // namespace hearth::worker
