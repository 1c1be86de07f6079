#include "services/gpu-worker/engine/cuda/cuda_backend.h"

#include <algorithm>
#include <utility>

#include "common/base/status_macros.h"
#include "services/gpu-worker/engine/forward.h"
#include "services/gpu-worker/engine/rotary.h"
#include "services/gpu-worker/ops/cuda/attention_cuda.h"
#include "services/gpu-worker/ops/cuda/cuda_status.h"
#include "services/gpu-worker/ops/cuda/prefill_delta.h"
#include "services/gpu-worker/ops/cuda/top_logits_cuda.h"

namespace hearth::worker {
namespace {

constexpr int64_t kAlignment = 256;
constexpr int64_t kFirstBucket = 1024;

int64_t Aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

int64_t WidestInput(const ModelConfig& c, const CudaBackendShape& shape) {
  return std::max({int64_t{c.hidden_size} * (shape.max_drafts > 0 ? 2 : 1),
                   int64_t{c.n_heads} * c.head_dim,
                   int64_t{c.linear_value_heads} * c.linear_value_head_dim,
                   int64_t{c.shared_expert_intermediate_size}, int64_t{c.intermediate_size}});
}
}  // namespace

CudaBackend::CudaBackend(const ModelConfig& config, const CudaBackendShape& shape,
                         std::shared_ptr<DeviceState> state, DeviceExperts* experts,
                         MissServer* misses, RoutingOverride* routing)
    : config_(config),
      shape_(shape),
      state_(std::move(state)),
      experts_(*experts),
      misses_(*misses),
      routing_(routing),
      n_states_(static_cast<int>(
          std::ranges::count(config.layers, MixerKind::kDeltaNet, &LayerConfig::mixer))),
      division_(ThisMachinesRates()) {}

absl::StatusOr<std::unique_ptr<CudaBackend>> CudaBackend::Create(
    const ModelConfig& config, const CudaBackendShape& shape, const DeviceWeights* weights,
    std::shared_ptr<DeviceState> state, DeviceExperts* experts, MissServer* misses,
    RoutingOverride* routing) {
  auto backend = std::unique_ptr<CudaBackend>(
      new CudaBackend(config, shape, std::move(state), experts, misses, routing));
  HEARTH_RETURN_IF_ERROR(backend->AllocateAll(*weights));
  return backend;
}

void CudaBackend::Keep(cudaError_t error, std::string_view op) {
  if (error == cudaSuccess || error_ != cudaSuccess) return;
  error_ = error;
  failed_op_ = std::string(op);
}

absl::Status CudaBackend::error() const { return CudaStatus(error_, failed_op_); }

template <typename T>
T* CudaBackend::Take(int64_t n) {
  DeviceBuffer<std::byte>& buffer = memory_.emplace_back();
  Keep(buffer.Allocate(Aligned(n * static_cast<int64_t>(sizeof(T)))), "memory for a step");
  return reinterpret_cast<T*>(buffer.data());
}

float* CudaBackend::Allocate(int64_t n) { return Take<float>(n); }

uint64_t CudaBackend::ScratchBytes(const ModelConfig& c, const CudaBackendShape& shape) {
  // As AllocateAll and MakeActivations take it, with room for their alignment.
  const int64_t rows = shape.max_rows, channels = c.conv_channels();
  const int64_t heads = int64_t{c.n_heads} * c.head_dim, kv = int64_t{c.n_kv_heads} * c.head_dim;
  const int64_t values = int64_t{c.linear_value_heads} * c.linear_value_head_dim;
  const int64_t inner = std::max(c.shared_expert_intermediate_size, c.intermediate_size);
  const int64_t places = rows * c.experts_per_token;
  const DeltaShape delta{c.linear_key_heads, c.linear_value_heads, c.linear_key_head_dim,
                         c.linear_value_head_dim};
  int64_t floats = rows * (int64_t{6} * c.hidden_size + 3 * heads + 2 * kv + 2 * channels +
                           2 * values + int64_t{4} * c.linear_value_heads +
                           std::max(heads, values) + c.n_experts + 2 * inner + 1) +
                   shape.kept_rows * int64_t{c.vocab_size};
  floats += AttentionScratchFloats({c.n_heads, c.n_kv_heads, c.head_dim}, kDecodeRows,
                                   shape.max_positions);
  floats += PrefillDeltaScratchBytes(delta, shape.max_rows) / 4;
  if (shape.max_drafts > 0) floats += rows * 2 * c.hidden_size;
  floats += TopLogitsScratchBytes(kDecodeRows) / 4;
  int64_t halves = 3 * rows * WidestInput(c, shape);
  if (rows > kDecodeRows) halves += places * (c.expert_intermediate_size + c.hidden_size);
  return static_cast<uint64_t>(4 * floats + 2 * halves + 64 * places + (int64_t{8} << 20));
}

absl::Status CudaBackend::AllocateLogits() {
  const auto vocabulary = static_cast<uint64_t>(config_.vocab_size);
  HEARTH_RETURN_IF_ERROR(pinned_logits_.Allocate(vocabulary * kDecodeRows * 4));
  HEARTH_RETURN_IF_ERROR(pinned_top_.Allocate(kDecodeRows * sizeof(TopLogitsRow)));
  logits_ = Allocate(shape_.kept_rows * int64_t{config_.vocab_size});
  const int64_t scratch = TopLogitsScratchBytes(kDecodeRows);
  top_scratch_ = Take<std::byte>(scratch);
  HEARTH_RETURN_IF_ERROR(error());
  return CudaStatus(cudaMemset(top_scratch_, 0, static_cast<size_t>(scratch)), "scratch");
}

absl::Status CudaBackend::AllocateAll(const DeviceWeights& weights) {
  HEARTH_RETURN_IF_ERROR(CudaStatus(stream_.Create(), "a stream"));
  HEARTH_RETURN_IF_ERROR(CudaStatus(dispatched_.Create(), "an event"));
  weights_ = &weights;
  embedding_ = weights.embedding.as<void>();
  embedding_bits_ = weights.embedding_bits;
  HEARTH_RETURN_IF_ERROR(AllocateBatch());
  HEARTH_RETURN_IF_ERROR(AllocateLogits());
  HEARTH_RETURN_IF_ERROR(AllocateRotary());
  return AllocateActivations();
}

// What the host tells the device of a step, and what it hears of it.
absl::Status CudaBackend::AllocateBatch() {
  const ModelConfig& c = config_;
  const int64_t rows = shape_.max_rows, places = rows * c.experts_per_token;
  const int64_t pointers = int64_t{n_states_} * kDecodeRows;
  const int64_t draft_bytes = shape_.max_drafts > 0 ? DraftTables::Bytes(n_states_) : 0;
  const int64_t n_divisions = int64_t{kDecodeRows} * c.experts_per_token + 1;
  batch_bytes_ =
      rows * 12 + pointers * 16 + int64_t{kDecodeRows} * 4 + n_divisions * 2 + draft_bytes;
  HEARTH_RETURN_IF_ERROR(pinned_batch_.Allocate(static_cast<uint64_t>(batch_bytes_)));
  batch_memory_ = Take<std::byte>(batch_bytes_);
  positions_ = reinterpret_cast<int64_t*>(batch_memory_);
  histories_ = reinterpret_cast<float**>(positions_ + rows);
  states_ = histories_ + pointers;
  auto* const draft_memory = reinterpret_cast<std::byte*>(states_ + pointers);
  if (shape_.max_drafts > 0) draft_tables_ = DraftTables::At(draft_memory, n_states_);
  ids_ = reinterpret_cast<int32_t*>(draft_memory + draft_bytes);
  temperatures_ = reinterpret_cast<float*>(ids_ + rows);
  in_place_ = reinterpret_cast<uint16_t*>(temperatures_ + kDecodeRows);

  const int64_t page_tokens = state_->shape().page_tokens;
  max_pages_ = (shape_.max_positions + page_tokens - 1) / page_tokens;
  HEARTH_RETURN_IF_ERROR(
      pinned_pages_.Allocate(static_cast<uint64_t>(max_pages_) * kDecodeRows * 4));
  page_table_ = Take<int32_t>(max_pages_ * kDecodeRows);

  const uint64_t choice_bytes = static_cast<uint64_t>(places * n_layers()) * 4;
  HEARTH_RETURN_IF_ERROR(pinned_choices_.Allocate(choice_bytes));
  if (routing_ != nullptr) {
    HEARTH_RETURN_IF_ERROR(pinned_imposed_.Allocate(choice_bytes));
    imposed_ = Take<int32_t>(places * c.n_layers);
  }
  return error();
}

absl::Status CudaBackend::AllocateRotary() {
  const RotaryTable rotary = MakeRotaryTable(config_.rope);
  const auto half = static_cast<int>(rotary.inverse_frequencies.size());
  rotary_ = Take<double>(half);
  HEARTH_RETURN_IF_ERROR(error());
  HEARTH_RETURN_IF_ERROR(
      CudaStatus(cudaMemcpy(rotary_, rotary.inverse_frequencies.data(),
                            static_cast<size_t>(half) * 8, cudaMemcpyHostToDevice),
                 "rotary frequencies"));
  rotary_table_ = {rotary_, half, rotary.scale};
  return absl::OkStatus();
}

absl::Status CudaBackend::AllocateActivations() {
  const ModelConfig& c = config_;
  const int64_t rows = shape_.max_rows, places = rows * c.experts_per_token;
  const int64_t inner = std::max(c.shared_expert_intermediate_size, c.intermediate_size);
  mixed_ = Allocate(rows * c.conv_channels());
  decay_ = Allocate(rows * c.linear_value_heads);
  beta_ = Allocate(rows * c.linear_value_heads);
  inner_ = Allocate(rows * inner);
  inner2_ = Allocate(rows * inner);
  act_ = Allocate(int64_t{kDecodeRows} * (c.experts_per_token + 1) * c.expert_intermediate_size);
  attention_scratch_ = Allocate(AttentionScratchFloats({c.n_heads, c.n_kv_heads, c.head_dim},
                                                       kDecodeRows, shape_.max_positions));
  shared_ = Allocate(rows * c.hidden_size);
  residual_spare_ = Allocate(int64_t{kMaxNormedRows} * c.hidden_size);
  const int64_t n_arrivals = int64_t{kDecodeRows} * std::max(1, c.linear_key_heads);
  delta_arrivals_ = Take<uint32_t>(n_arrivals);
  HEARTH_RETURN_IF_ERROR(error());
  HEARTH_RETURN_IF_ERROR(
      CudaStatus(cudaMemset(delta_arrivals_, 0, static_cast<size_t>(n_arrivals) * 4), "memset"));
  for (Rounded* rounded : {&rounded_h_, &rounded_mixer_}) {
    rounded->rows = {Take<uint32_t>(kDecodeRows * WidestInput(c, shape_) / 4),
                     Take<float>(kDecodeRows * WidestInput(c, shape_) / 64 + 1)};
  }
  choice_ids_ = Take<int32_t>(places);
  choice_weights_ = Take<float>(places);
  places_ = Take<ExpertPlace>(places + rows);
  is_here_ = Take<uint8_t>(std::max(1, c.n_experts));
  if (rows > kDecodeRows) {
    half_rows_ = Take<uint16_t>(rows * WidestInput(c, shape_));
    high_rows_ = Take<uint16_t>(rows * WidestInput(c, shape_));
    low_rows_ = Take<uint16_t>(rows * WidestInput(c, shape_));
    expert_act_ = Take<uint16_t>(places * c.expert_intermediate_size);
    products_ = Take<uint16_t>(places * c.hidden_size);
    groups_.offsets = Take<int32_t>(c.n_experts + 1);
    groups_.order = Take<int32_t>(places);
    delta_scratch_ = Take<std::byte>(PrefillDeltaScratchBytes(
        {c.linear_key_heads, c.linear_value_heads, c.linear_key_head_dim, c.linear_value_head_dim},
        shape_.max_rows));
  }
  return error();
}

void CudaBackend::Zero(const CudaSequence& sequence) {
  Keep(cudaMemsetAsync(state_->Sequence(sequence.place()), 0,
                       static_cast<size_t>(state_->shape().sequence_floats()) * sizeof(float),
                       stream_.get()),
       "a new sequence");
}

absl::Status CudaBackend::Begin(const Batch& batch) {
  HEARTH_RETURN_IF_ERROR(error());
  batch_ = &batch;
  rounded_h_.of = rounded_mixer_.of = nullptr;
  pending_norm_ = {};
  pending_rotary_ = {};
  residual_of_ = nullptr;
  rows_ = {static_cast<int>(batch.items.size()), batch.items.front().rows.size()};
  const int64_t rows = shape_.max_rows;
  auto* pinned = pinned_batch_.as<std::byte>();
  auto* positions = reinterpret_cast<int64_t*>(pinned);
  auto** histories = reinterpret_cast<float**>(positions + rows);
  auto** states = histories + int64_t{n_states_} * kDecodeRows;
  auto* ids =
      reinterpret_cast<int32_t*>(pinned + (reinterpret_cast<std::byte*>(ids_) - batch_memory_));
  if (shape_.max_drafts > 0) {
    DescribeDrafts(reinterpret_cast<std::byte*>(states + int64_t{n_states_} * kDecodeRows));
  }
  std::ranges::copy(batch.positions, positions);
  std::ranges::copy(batch.ids, ids);
  auto* temperatures = reinterpret_cast<float*>(ids + rows);
  std::fill_n(temperatures, kDecodeRows, 1.f);
  for (size_t i = 0; i < batch.temperatures.size(); ++i) {
    temperatures[LogitsPlace(i)] = batch.temperatures[i];
  }
  if (is_decode()) {
    division_.Plan(rows_.total(),
                   {reinterpret_cast<uint16_t*>(temperatures + kDecodeRows),
                    static_cast<size_t>(rows_.total() * config_.experts_per_token + 1)});
  }
  for (int s = 0; s < rows_.n_sequences; ++s) {
    const auto& sequence =
        static_cast<const CudaSequence&>(*batch.items[static_cast<size_t>(s)].sequence);
    for (int l = 0; l < n_states_; ++l) {
      histories[l * kDecodeRows + s] = state_->History(sequence.place(), l);
      states[l * kDecodeRows + s] = state_->Recurrent(sequence.place(), l);
    }
    HEARTH_RETURN_IF_ERROR(UploadPages(s, sequence));
  }
  const int64_t last = *std::ranges::max_element(batch.positions);
  position_bucket_ = kFirstBucket;
  while (position_bucket_ < last + 1) position_bucket_ *= 2;
  position_bucket_ = std::min(position_bucket_, shape_.max_positions);
  HEARTH_RETURN_IF_ERROR(
      CudaStatus(cudaMemcpyAsync(batch_memory_, pinned, static_cast<size_t>(batch_bytes_),
                                 cudaMemcpyHostToDevice, stream_.get()),
                 "a batch"));
  logits_host_.clear();
  pending_logits_ = 0;
  if (routing_ != nullptr && !batch.is_draft) HEARTH_RETURN_IF_ERROR(ImposeRouting());
  HEARTH_RETURN_IF_ERROR(experts_.BeginStep(stream_.get()));
  if (is_decode()) return absl::OkStatus();
  return experts_.PrepareLists(is_streaming() && experts_.layout().can_cache, stream_.get());
}

absl::Status CudaBackend::UploadPages(int s, const CudaSequence& sequence) {
  PageRow& row = page_rows_[s];
  const size_t n = sequence.pages().size();
  if (row.sequence == sequence.id() && row.version == sequence.pages_version()) {
    return absl::OkStatus();
  }
  row = {sequence.id(), sequence.pages_version()};
  int32_t* pinned = pinned_pages_.as<int32_t>() + s * max_pages_;
  std::ranges::copy(sequence.pages(), pinned);
  return CudaStatus(cudaMemcpyAsync(page_table_ + s * max_pages_, pinned, n * 4,
                                    cudaMemcpyHostToDevice, stream_.get()),
                    "a page table");
}

absl::Status CudaBackend::ImposeRouting() {
  const auto n =
      static_cast<size_t>(rows_.total()) * static_cast<size_t>(config_.experts_per_token);
  std::vector<RoutingOverride::Rows> items;
  for (const BatchItem& item : batch_->items) {
    items.push_back({item.rows.begin, item.rows.end, item.first_position});
  }
  auto* to = pinned_imposed_.as<int32_t>();
  for (int layer = 0; layer < config_.n_layers; ++layer) {
    if (!config_.layers[static_cast<size_t>(layer)].has_experts) continue;
    routing_->Impose(layer, items, config_.experts_per_token,
                     {to + static_cast<size_t>(layer) * n, n});
  }
  return CudaStatus(cudaMemcpyAsync(imposed_, to, n * static_cast<size_t>(config_.n_layers) * 4,
                                    cudaMemcpyHostToDevice, stream_.get()),
                    "imposed routing");
}

absl::Status CudaBackend::Finish(float* logits) {
  HEARTH_RETURN_IF_ERROR(error());
  ++steps_;
  HEARTH_RETURN_IF_ERROR(
      misses_.ServeUntil(stream_.get(), [this] { return misses_.StepsDone() == steps_; }));
  if (logits != nullptr) HEARTH_RETURN_IF_ERROR(CopyLogits(logits));
  const std::span<const int32_t> choices(
      pinned_choices_.as<int32_t>(),
      static_cast<size_t>(n_layers() * rows_.total() * config_.experts_per_token));
  if (is_decode()) {
    awaited_seconds_ += misses_.step_times().awaited;
    if (batch_->is_draft) {
      experts_.EndDraft(choices, rows_.total(), config_.experts_per_token);
    } else {
      division_.Learn(misses_.step_times().layers);
      experts_.EndDecode(choices, rows_.total(), config_.experts_per_token);
    }
  } else {
    experts_.EndPrompt(choices, rows_.total(), config_.experts_per_token, is_streaming());
  }
  return absl::OkStatus();
}

std::vector<float> CudaBackend::Read(const float* values, int64_t n) {
  FlushNorm();
  if (values == residual_of_) values = residual_at_;
  std::vector<float> host(static_cast<size_t>(n));
  Keep(cudaStreamSynchronize(stream_.get()), "reading");
  Keep(cudaMemcpy(host.data(), values, host.size() * 4, cudaMemcpyDeviceToHost), "reading");
  return host;
}

const RouterChoice& CudaBackend::Choice() {
  const auto n =
      static_cast<size_t>(rows_.total()) * static_cast<size_t>(config_.experts_per_token);
  choice_.ids.resize(n);
  Keep(cudaStreamSynchronize(stream_.get()), "reading");
  Keep(cudaMemcpy(choice_.ids.data(), choice_ids_, n * 4, cudaMemcpyDeviceToHost), "reading");
  choice_.weights = Read(choice_weights_, static_cast<int64_t>(n));
  return choice_;
}

}  // namespace hearth::worker
