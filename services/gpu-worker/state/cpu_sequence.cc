#include "services/gpu-worker/state/cpu_sequence.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"
#include "common/synthetic/random.h"

namespace hearth::worker {

CpuSequence::CpuSequence(const ModelConfig& config, std::shared_ptr<KvPool> pool, int max_drafts)
    : pool_(std::move(pool)),
      kept_(Index(max_drafts)),
      width_(max_drafts > 0 ? Index(config.hidden_size) : 0),
      hidden_((Index(max_drafts) + 1) * width_),
      draft_hidden_(width_) {
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

void CpuSequence::Advance(int64_t n, int n_drafts) {
  n_tokens_ += n;
  n_kept_before_ = n_drafts;
  n_guessed_ = 0;
}

void CpuSequence::KeepDeltaState(int delta_layer, int draft) {
  std::vector<DeltaLayer>& kept = kept_[Index(draft)];
  kept.resize(layers_.size());
  kept[Index(delta_layer)] = layers_[Index(delta_layer)];
}

void CpuSequence::Rollback(int n) {
  if (n == 0) return;
  HEARTH_CHECK(n > 0 && n <= n_kept_before_);
  n_tokens_ -= n;
  n_kept_before_ -= n;
  n_guessed_ = 0;
  layers_.swap(kept_[Index(n_kept_before_)]);  // states before the first draft taken back
  const int64_t page_tokens = pool_->shape().page_tokens;
  const int64_t n_pages = (n_tokens_ + page_tokens - 1) / page_tokens;
  for (; static_cast<int64_t>(pages_.size()) > n_pages; pages_.pop_back()) {
    pool_->Return(pages_.back());
  }
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
  FillRandomFloats(++stream, 1, hidden_);
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
