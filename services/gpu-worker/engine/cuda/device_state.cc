#include "services/gpu-worker/engine/cuda/device_state.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/synthetic/random.h"
#include "common/tensor/linear.h"
#include "services/gpu-worker/ops/cuda/cuda_status.h"

namespace hearth::worker {

DeviceStateShape DeviceStateShape::Of(const ModelConfig& c, int max_drafts) {
  constexpr int64_t kVector = 4;  // floats that kernels read at once
  DeviceStateShape shape;
  shape.attention_layers = static_cast<int>(
      std::ranges::count(c.layers, MixerKind::kFullAttention, &LayerConfig::mixer));
  shape.delta_layers =
      static_cast<int>(std::ranges::count(c.layers, MixerKind::kDeltaNet, &LayerConfig::mixer));
  shape.n_kv_heads = c.n_kv_heads;
  shape.token_values = int64_t{c.n_kv_heads} * c.head_dim;
  shape.channels = c.conv_channels();
  shape.history_floats = (c.conv_width - 1 + max_drafts) * shape.channels;
  shape.recurrent_floats =
      int64_t{c.linear_value_heads} * c.linear_key_head_dim * c.linear_value_head_dim;
  if (max_drafts == 0) return shape;
  ++shape.attention_layers;
  shape.max_drafts = max_drafts;
  const int64_t kept = max_drafts * (shape.channels + int64_t{2} * c.linear_value_heads);
  shape.kept_floats = (kept + kVector - 1) / kVector * kVector;
  shape.hidden_floats = c.hidden_size;
  return shape;
}

absl::StatusOr<std::shared_ptr<DeviceState>> DeviceState::Create(const DeviceStateShape& shape) {
  auto state = std::shared_ptr<DeviceState>(new DeviceState(shape));
  const int64_t n_pools = int64_t{2} * shape.attention_layers;
  for (const cudaError_t error : {state->kv_.Allocate(n_pools * shape.PoolBytes()),
                                  state->kv_scales_.Allocate(n_pools * shape.PoolScales())}) {
    HEARTH_RETURN_IF_ERROR(
        CudaStatus(error, absl::StrCat("memory for ", shape.n_pages, " KV pages")));
  }
  HEARTH_RETURN_IF_ERROR(
      CudaStatus(state->states_.Allocate(shape.StateBytes() / 4),
                 absl::StrCat("memory for the states of ", shape.max_sequences, " sequences")));
  for (int64_t page = shape.n_pages - 1; page >= 0; --page) {
    state->free_pages_.push_back(static_cast<int32_t>(page));
  }
  for (int place = shape.max_sequences - 1; place >= 0; --place) {
    state->free_places_.push_back(place);
  }
  return state;
}

cudaError_t DeviceState::FillRandom(const CudaSequence& sequence, uint64_t seed,
                                    cudaStream_t stream) const {
  constexpr float kWhole = 32;  // of int8 pages: four deviations fit
  const uint64_t random = StreamOf(seed, "context");
  const auto n_values = static_cast<size_t>(shape_.page_tokens * shape_.token_values);
  std::vector<float> page(n_values), states(static_cast<size_t>(shape_.sequence_floats()));
  FillRandomFloats(random, 1, page);
  FillRandomFloats(random + 1, 0.1F, states);
  std::vector<uint16_t> rounded(n_values);
  std::ranges::transform(page, rounded.begin(), F32ToBF16);
  std::vector<int8_t> whole(n_values);
  std::ranges::transform(page, whole.begin(), [](float value) {
    return static_cast<int8_t>(std::clamp(value * kWhole, -127.F, 127.F));
  });
  const void* values = shape_.kv_type == KvType::kF32    ? static_cast<const void*>(page.data())
                       : shape_.kv_type == KvType::kBf16 ? static_cast<const void*>(rounded.data())
                                                         : whole.data();
  const size_t page_bytes = n_values * static_cast<size_t>(shape_.kv_value_bytes());
  const std::vector<float> scales(static_cast<size_t>(shape_.page_tokens * shape_.n_kv_heads),
                                  1 / kWhole);
  cudaError_t error = cudaMemcpyAsync(Sequence(sequence.place()), states.data(), states.size() * 4,
                                      cudaMemcpyHostToDevice, stream);
  const auto copy = [&](void* to, const void* from, size_t bytes) {
    if (error == cudaSuccess) {
      error = cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream);
    }
  };
  for (int layer = 0; layer < shape_.attention_layers; ++layer) {
    for (const int32_t number : sequence.pages()) {
      const auto at = static_cast<size_t>(number);
      for (void* pool : {Keys(layer), Values(layer)}) {
        copy(static_cast<std::byte*>(pool) + at * page_bytes, values, page_bytes);
      }
      if (shape_.kv_type != KvType::kInt8) continue;
      for (float* pool : {KeyScales(layer), ValueScales(layer)}) {
        copy(pool + at * scales.size(), scales.data(), scales.size() * 4);
      }
    }
  }
  const cudaError_t ended = cudaStreamSynchronize(stream);
  return error == cudaSuccess ? ended : error;
}

int32_t DeviceState::TakePage() {
  HEARTH_CHECK(!free_pages_.empty());
  const int32_t page = free_pages_.back();
  free_pages_.pop_back();
  return page;
}

int DeviceState::TakePlace() {
  if (free_places_.empty()) return -1;
  const int place = free_places_.back();
  free_places_.pop_back();
  return place;
}

namespace {
uint64_t NextId() {
  static std::atomic<uint64_t> next{1};
  return next++;
}
}  // namespace

CudaSequence::CudaSequence(std::shared_ptr<DeviceState> state)
    : state_(std::move(state)), id_(NextId()), place_(state_->TakePlace()) {}

CudaSequence::~CudaSequence() {
  for (const int32_t page : pages_) state_->ReturnPage(page);
  if (place_ >= 0) state_->ReturnPlace(place_);
}

int64_t CudaSequence::PagesNeeded(int64_t n) const {
  const int64_t page_tokens = state_->shape().page_tokens;
  const int64_t pages = (n_tokens_ + n + page_tokens - 1) / page_tokens;
  return std::max<int64_t>(0, pages - static_cast<int64_t>(pages_.size()));
}

void CudaSequence::Grow(int64_t n) {
  for (int64_t i = PagesNeeded(n); i > 0; --i, ++pages_version_) {
    pages_.push_back(state_->TakePage());
  }
}

void CudaSequence::Advance(int64_t n, int n_drafts) {
  n_tokens_ += n;
  n_pending_ = n_drafts;
  kept_half_ = 1 - kept_half_;
  n_guessed_ = 0;
}

void CudaSequence::Rollback(int n) {
  if (n == 0) return;
  HEARTH_CHECK(n > 0 && n <= n_pending_);
  n_tokens_ -= n;
  n_pending_ -= n;
  n_guessed_ = 0;
  const int64_t page_tokens = state_->shape().page_tokens;
  const int64_t n_pages = (n_tokens_ + page_tokens - 1) / page_tokens;
  for (; static_cast<int64_t>(pages_.size()) > n_pages; pages_.pop_back(), ++pages_version_) {
    state_->ReturnPage(pages_.back());
  }
}

}  // namespace hearth::worker
