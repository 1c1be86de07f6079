#include "services/gpu-worker/engine/cuda/cuda_backend.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "services/gpu-worker/engine/forward.h"
#include "services/gpu-worker/engine/rotary.h"
#include "services/gpu-worker/ops/cuda/attention_cuda.h"
#include "services/gpu-worker/ops/cuda/cuda_status.h"
#include "services/gpu-worker/ops/cuda/decode_experts.h"
#include "services/gpu-worker/ops/cuda/decode_linear.h"
#include "services/gpu-worker/ops/cuda/delta_cuda.h"
#include "services/gpu-worker/ops/cuda/experts.h"
#include "services/gpu-worker/ops/cuda/norm_cuda.h"
#include "services/gpu-worker/ops/cuda/prefill_attention.h"
#include "services/gpu-worker/ops/cuda/prefill_delta.h"
#include "services/gpu-worker/ops/cuda/prefill_experts.h"
#include "services/gpu-worker/ops/cuda/prefill_linear.h"
#include "services/gpu-worker/ops/cuda/router_cuda.h"
#include "services/gpu-worker/ops/cuda/step_kernels.h"

namespace hearth::worker {
namespace {

constexpr int64_t kAlignment = 256;
constexpr int64_t kFirstBucket = 1024;

int64_t Aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

int64_t WidestInput(const ModelConfig& c) {
  return std::max({int64_t{c.hidden_size}, int64_t{c.n_heads} * c.head_dim,
                   int64_t{c.linear_value_heads} * c.linear_value_head_dim,
                   int64_t{c.shared_expert_intermediate_size}, int64_t{c.intermediate_size}});
}

DeviceMatrix MatrixOf(const LinearRef& ref) {
  DeviceMatrix matrix{
      .data = ref.data, .scales = ref.scales, .out = ref.out, .in = ref.in, .factor = ref.factor};
  std::ranges::copy(ref.levels, matrix.levels.values);
  return matrix;
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
          std::ranges::count(config.layers, MixerKind::kDeltaNet, &LayerConfig::mixer))) {}

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
  int64_t floats =
      rows * (6 * c.hidden_size + 3 * heads + 2 * kv + 2 * channels + 2 * values +
              4 * c.linear_value_heads + std::max(heads, values) + c.n_experts + 2 * inner + 1) +
      kDecodeRows * int64_t{c.vocab_size};
  floats += AttentionScratchFloats({c.n_heads, c.n_kv_heads, c.head_dim}, kDecodeRows,
                                   shape.max_positions);
  floats += PrefillDeltaScratchBytes(delta, shape.max_rows) / 4;
  int64_t halves = 3 * rows * WidestInput(c);
  if (rows > kDecodeRows) halves += places * (c.expert_intermediate_size + c.hidden_size);
  return static_cast<uint64_t>(4 * floats + 2 * halves + 64 * places + (int64_t{8} << 20));
}

absl::Status CudaBackend::AllocateAll(const DeviceWeights& weights) {
  const ModelConfig& c = config_;
  const int64_t rows = shape_.max_rows, places = rows * c.experts_per_token;
  HEARTH_RETURN_IF_ERROR(CudaStatus(stream_.Create(), "a stream"));
  HEARTH_RETURN_IF_ERROR(CudaStatus(dispatched_.Create(), "an event"));
  HEARTH_RETURN_IF_ERROR(CudaStatus(copied_.Create(), "an event"));
  weights_ = &weights;
  embedding_ = weights.embedding.as<void>();
  embedding_bits_ = weights.embedding_bits;

  const int64_t pointers = int64_t{n_states_} * kDecodeRows;
  batch_bytes_ = rows * 12 + pointers * 16;
  HEARTH_RETURN_IF_ERROR(pinned_batch_.Allocate(static_cast<uint64_t>(batch_bytes_)));
  batch_memory_ = Take<std::byte>(batch_bytes_);
  positions_ = reinterpret_cast<int64_t*>(batch_memory_);
  histories_ = reinterpret_cast<float**>(positions_ + rows);
  states_ = histories_ + pointers;
  ids_ = reinterpret_cast<int32_t*>(states_ + pointers);

  const int64_t page_tokens = state_->shape().page_tokens;
  max_pages_ = (shape_.max_positions + page_tokens - 1) / page_tokens;
  HEARTH_RETURN_IF_ERROR(
      pinned_pages_.Allocate(static_cast<uint64_t>(max_pages_) * kDecodeRows * 4));
  page_table_ = Take<int32_t>(max_pages_ * kDecodeRows);

  const uint64_t choice_bytes = static_cast<uint64_t>(places * c.n_layers) * 4;
  HEARTH_RETURN_IF_ERROR(pinned_choices_.Allocate(choice_bytes));
  if (routing_ != nullptr) {
    HEARTH_RETURN_IF_ERROR(pinned_imposed_.Allocate(choice_bytes));
    imposed_ = Take<int32_t>(places * c.n_layers);
  }
  HEARTH_RETURN_IF_ERROR(
      pinned_logits_.Allocate(static_cast<uint64_t>(c.vocab_size) * kDecodeRows * 4));

  const RotaryTable rotary = MakeRotaryTable(c.rope);
  const auto half = static_cast<int>(rotary.inverse_frequencies.size());
  rotary_ = Take<double>(half);
  HEARTH_RETURN_IF_ERROR(error());
  HEARTH_RETURN_IF_ERROR(
      CudaStatus(cudaMemcpy(rotary_, rotary.inverse_frequencies.data(),
                            static_cast<size_t>(half) * 8, cudaMemcpyHostToDevice),
                 "rotary frequencies"));
  rotary_table_ = {rotary_, half, rotary.scale};

  const int64_t inner = std::max(c.shared_expert_intermediate_size, c.intermediate_size);
  mixed_ = Allocate(rows * c.conv_channels());
  decay_ = Allocate(rows * c.linear_value_heads);
  beta_ = Allocate(rows * c.linear_value_heads);
  inner_ = Allocate(rows * inner);
  inner2_ = Allocate(rows * inner);
  logits_ = Allocate(kDecodeRows * int64_t{c.vocab_size});
  act_ = Allocate(int64_t{kDecodeRows} * (c.experts_per_token + 1) * c.expert_intermediate_size);
  attention_scratch_ = Allocate(AttentionScratchFloats({c.n_heads, c.n_kv_heads, c.head_dim},
                                                       kDecodeRows, shape_.max_positions));
  shared_ = Allocate(rows * c.hidden_size);
  for (Rounded* rounded : {&rounded_h_, &rounded_mixer_}) {
    rounded->rows = {Take<uint32_t>(kDecodeRows * WidestInput(c) / 4),
                     Take<float>(kDecodeRows * WidestInput(c) / 64 + 1)};
  }
  choice_ids_ = Take<int32_t>(places);
  choice_weights_ = Take<float>(places);
  places_ = Take<ExpertPlace>(places + rows);
  is_here_ = Take<uint8_t>(std::max(1, c.n_experts));
  if (rows > kDecodeRows) {
    half_rows_ = Take<uint16_t>(rows * WidestInput(c));
    high_rows_ = Take<uint16_t>(rows * WidestInput(c));
    low_rows_ = Take<uint16_t>(rows * WidestInput(c));
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
  rows_ = {static_cast<int>(batch.items.size()), batch.items.front().rows.size()};
  const int64_t rows = shape_.max_rows;
  auto* pinned = pinned_batch_.as<std::byte>();
  auto* positions = reinterpret_cast<int64_t*>(pinned);
  auto** histories = reinterpret_cast<float**>(positions + rows);
  auto** states = histories + int64_t{n_states_} * kDecodeRows;
  auto* ids = reinterpret_cast<int32_t*>(states + int64_t{n_states_} * kDecodeRows);
  std::ranges::copy(batch.positions, positions);
  std::ranges::copy(batch.ids, ids);
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
  if (routing_ != nullptr) HEARTH_RETURN_IF_ERROR(ImposeRouting());
  HEARTH_RETURN_IF_ERROR(experts_.BeginStep(stream_.get()));
  if (is_decode()) return absl::OkStatus();
  return experts_.PrepareLists(is_streaming() && experts_.layout().can_cache, stream_.get());
}

absl::Status CudaBackend::UploadPages(int s, const CudaSequence& sequence) {
  PageRow& row = page_rows_[s];
  const size_t n = sequence.pages().size();
  if (row.sequence == sequence.id() && row.n_pages == n) return absl::OkStatus();
  row = {sequence.id(), n};
  int32_t* pinned = pinned_pages_.as<int32_t>() + s * max_pages_;
  std::ranges::copy(sequence.pages(), pinned);
  return CudaStatus(cudaMemcpyAsync(page_table_ + s * max_pages_, pinned, n * 4,
                                    cudaMemcpyHostToDevice, stream_.get()),
                    "a page table");
}

absl::Status CudaBackend::ImposeRouting() {
  const auto n = static_cast<size_t>(rows_.total() * config_.experts_per_token);
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

void CudaBackend::Embed(const LinearRef& table, float* x) {
  Keep(EmbedCuda(rows_.total(), static_cast<int>(table.in), embedding_bits_, embedding_, ids_, x,
                 stream_.get()),
       "embedding");
}

RoundedRows CudaBackend::Round(const float* of, int width, Rounded* to) {
  to->of = nullptr;
  if (shape_.exact || !is_decode() || width % 64 != 0) return {};
  to->of = of;
  return to->rows;
}

RoundedRows CudaBackend::RoundedOf(const float* x) const {
  return rounded_h_.of == x       ? rounded_h_.rows
         : rounded_mixer_.of == x ? rounded_mixer_.rows
                                  : RoundedRows{};
}

void CudaBackend::AddRmsNorm(int width, float* x, const float* delta, const float* weight,
                             float eps, float* h) {
  Keep(AddRmsNormCuda(rows_.total(), width, x, {.delta = delta}, weight, eps, h,
                      Round(h, width, &rounded_h_), stream_.get()),
       "norm");
}

const std::optional<DecodeLevels>& CudaBackend::LevelsOf(const float (&levels)[16]) {
  for (const auto& [known, made] : levels_) {
    if (std::ranges::equal(known, levels)) return made;
  }
  std::array<float, 16> values;
  std::ranges::copy(levels, values.begin());
  return levels_.emplace_back(values, MakeDecodeLevels(values)).second;
}

// Up to kDecodeRows rows by the float32 kernels, or what no faster kernel reads.
void CudaBackend::FewRows(const LinearRef& weights, int n_rows, const float* x, float* y) {
  const DeviceMatrix matrix = MatrixOf(weights);
  switch (weights.kind) {
    case WeightKind::kTiled4:
      return Keep(Tiled4LinearCuda(matrix, n_rows, x, y, stream_.get()), "linear");
    case WeightKind::kTiled8:
      return Keep(Tiled8LinearCuda(matrix, n_rows, x, y, stream_.get()), "linear");
    case WeightKind::kF32:
      return Keep(F32LinearCuda(static_cast<const float*>(matrix.data), matrix.out, matrix.in,
                                n_rows, x, y, stream_.get()),
                  "linear");
    default:
      return Keep(Bf16LinearCuda(matrix, n_rows, x, y, stream_.get()), "linear");
  }
}

void CudaBackend::Linears(std::span<const Product> products, const float* x) {
  if (!is_decode()) return PrefillLinears(products, x);
  FewRowsLinears(products, rows_.total(), x);
}

void CudaBackend::FewRowsLinears(std::span<const Product> products, int n_rows, const float* x) {
  DecodeLinear jobs[kMaxDecodeLinears];
  int n_jobs = 0;
  for (const Product& product : products) {
    const LinearRef& weights = *product.weights;
    DecodeLinear job{.weights = MatrixOf(weights), .y = product.y};
    bool is_job = !shape_.exact && n_jobs < kMaxDecodeLinears;
    switch (weights.kind) {
      case WeightKind::kTiled4: {
        const std::optional<DecodeLevels>& levels = LevelsOf(job.weights.levels.values);
        is_job = is_job && levels.has_value();
        if (is_job) job.levels = *levels;
        break;
      }
      case WeightKind::kTiled8:
        job.kind = DecodeKind::kTiled8;
        break;
      case WeightKind::kBF16:
        job.kind = DecodeKind::kBf16;
        break;
      default:
        is_job = false;
    }
    if (is_job) {
      jobs[n_jobs++] = job;
    } else {
      FewRows(weights, n_rows, x, product.y);
    }
  }
  if (n_jobs > 0)
    Keep(DecodeLinearsCuda(jobs, n_jobs, n_rows, x, RoundedOf(x), stream_.get()), "linears");
}

void CudaBackend::PrefillLinears(std::span<const Product> products, const float* x) {
  const auto is = [](WeightKind kind) {
    return [kind](const Product& product) { return product.weights->kind == kind; };
  };
  const auto width = static_cast<int>(products.front().weights->in);
  const int n = rows_.total();
  if (std::ranges::any_of(products, is(WeightKind::kTiled4)) ||
      std::ranges::any_of(products, is(WeightKind::kTiled8))) {
    Keep(ToHalfRowsCuda(n, width, x, half_rows_, stream_.get()), "rows");
  }
  if (std::ranges::any_of(products, is(WeightKind::kBF16))) {
    Keep(ToSplitRowsCuda(n, width, x, high_rows_, low_rows_, stream_.get()), "rows");
  }
  for (const Product& product : products) {
    if (product.weights->kind == WeightKind::kF32) {
      FewRows(*product.weights, n, x, product.y);
      continue;
    }
    Keep(PrefillLinearCuda(product.weights->kind, MatrixOf(*product.weights), n,
                           {half_rows_, high_rows_, low_rows_}, product.y, stream_.get()),
         "linear of a prefill");
  }
}

DeviceKv CudaBackend::KvOf(int attention_layer) const {
  return {.type = state_->shape().kv_type,
          .keys = state_->Keys(attention_layer),
          .values = state_->Values(attention_layer),
          .table = page_table_,
          .max_pages = static_cast<int>(max_pages_),
          .page_tokens = state_->shape().page_tokens,
          .key_scales = state_->KeyScales(attention_layer),
          .value_scales = state_->ValueScales(attention_layer)};
}

void CudaBackend::RotateAndStore(const AttentionShape& shape, int attention_layer,
                                 const AttentionNorms& norms, const float* query_gate, float* k,
                                 const float* v, float* q) {
  Keep(RotateAndStoreCuda(shape, rows_, {norms.q, norms.k, norms.eps}, rotary_table_, positions_,
                          query_gate, k, v, KvOf(attention_layer), q, stream_.get()),
       "rotary");
}

void CudaBackend::Attention(const AttentionShape& shape, int attention_layer, const float* q,
                            const float* query_gate, float* out) {
  const DeviceKv kv = KvOf(attention_layer);
  if (is_decode()) {
    return Keep(AttentionCuda(shape, rows_, positions_, position_bucket_, q, query_gate, kv,
                              attention_scratch_, out, Round(out, shape.head_dim, &rounded_mixer_),
                              stream_.get()),
                "attention");
  }
  if (kv.type == KvType::kBf16) {
    return Keep(PrefillAttentionCuda(shape, rows_.n_rows, positions_, q, query_gate, kv, out,
                                     stream_.get()),
                "attention of a prefill");
  }
  // The tensor-core kernel reads bf16 pages only: a few rows at a time.
  const int64_t q_row = int64_t{shape.n_heads} * shape.head_dim;
  for (int64_t row = 0; row < rows_.n_rows; row += kDecodeRows) {
    const auto n = static_cast<int>(std::min<int64_t>(kDecodeRows, rows_.n_rows - row));
    Keep(AttentionCuda(shape, {1, n}, positions_ + row, position_bucket_, q + row * q_row,
                       query_gate + row * 2 * q_row, kv, attention_scratch_, out + row * q_row,
                       stream_.get()),
         "attention of a prefill");
  }
}

void CudaBackend::DeltaRule(const DeltaShape& shape, int delta_layer, const DeltaWeights& weights,
                            const float* qkvz, const float* ba, float* out) {
  const DeltaInputs inputs{mixed_, decay_, beta_};
  Keep(ConvolveCuda(shape, rows_,
                    {config_.conv_width, weights.conv, weights.a_log, weights.dt_bias}, qkvz, ba,
                    histories_ + int64_t{delta_layer} * kDecodeRows, inputs, stream_.get()),
       "convolution");
  float* const* states = states_ + int64_t{delta_layer} * kDecodeRows;
  if (!is_decode() && shape.key_dim % 16 == 0 && shape.value_dim % 16 == 0) {
    return Keep(PrefillDeltaRuleCuda(shape, rows_.n_rows, inputs, qkvz, weights.norm, weights.eps,
                                     states, delta_scratch_, out, stream_.get()),
                "delta rule of a prefill");
  }
  Keep(DeltaRuleCuda(shape, rows_, inputs, qkvz, weights.norm, weights.eps, states, out,
                     Round(out, shape.value_dim, &rounded_mixer_), 0, stream_.get()),
       "delta rule");
}

absl::Status CudaBackend::Experts(const Routing& routing, const SharedExpert& shared, int width,
                                  const float* h, float* out) {
  return is_decode() ? DecodeExperts(routing, shared, width, h, out)
                     : PrefillExperts(routing, shared, width, h, out);
}

DispatchInputs CudaBackend::DispatchOf(const Routing& routing, const float* h) const {
  return {.ids = choice_ids_,
          .weights = choice_weights_,
          .positions = positions_,
          .slots = experts_.Slots(routing.layer),
          .n_experts = routing.n_experts,
          .h = h};
}

int32_t* CudaBackend::ChoicesOf(const Routing& routing) const {
  return pinned_choices_.as<int32_t>() + int64_t{routing.layer} * rows_.total() * routing.top_k;
}

const int32_t* CudaBackend::ImposedOf(const Routing& routing) const {
  if (routing_ == nullptr) return nullptr;
  return imposed_ + int64_t{routing.layer} * rows_.total() * routing.top_k;
}

void CudaBackend::RecordDispatched() {
  if (!is_capturing_) Keep(cudaEventRecord(dispatched_.get(), stream_.get()), "an event");
}

void CudaBackend::Await(int width, float* out) {
  Keep(AwaitExpertsCuda({0, rows_.total(), config_.experts_per_token, width}, misses_.exchange(),
                        out, stream_.get()),
       "await");
}

// Outside a graph: a launch could block on a full queue behind a kernel that waits for us, so
// nothing more is enqueued before the request has been served.
absl::Status CudaBackend::ServeUntilDispatched() {
  HEARTH_RETURN_IF_ERROR(error());
  if (is_capturing_) return absl::OkStatus();
  return misses_.ServeUntil(stream_.get(), [this] {
    return cudaEventQuery(dispatched_.get()) != cudaErrorNotReady && !misses_.has_request();
  });
}

// out += sigmoid(gate) * shared(h).
void CudaBackend::AddShared(const SharedExpert& shared, int width, const float* h, float* out) {
  Mlp(shared.mlp, h, shared_);
  Keep(AddRmsNormCuda(rows_.total(), width, out, {.shared = shared_, .gate = shared.gate}, nullptr,
                      0, nullptr, stream_.get()),
       "the shared expert");
}

absl::Status CudaBackend::DecodeExperts(const Routing& routing, const SharedExpert& shared,
                                        int width, const float* h, float* out) {
  const DispatchShape dispatch{routing.layer, rows_.total(), routing.top_k, width};
  const std::optional<DecodeLevels>& levels = LevelsOf(experts_.layout().shape.levels.values);
  const bool can_cache = experts_.layout().can_cache;
  const bool shares_slot = can_cache && levels.has_value() && weights_->shared_slots.size() > 0;
  const DecodeRouting decode{
      .logits = routing.logits,
      .normalise = routing.normalise,
      .imposed = ImposedOf(routing),
      .shared_slot = shares_slot ? weights_->shared_slots.data() +
                                       static_cast<uint64_t>(routing.layer) * weights_->slot_stride
                                 : nullptr,
      .shared_gate = shared.gate,
      .ids = choice_ids_,
      .weights = choice_weights_};
  Keep(RouteAndDispatchCuda(dispatch, decode, DispatchOf(routing, h), misses_.exchange(), places_,
                            ChoicesOf(routing), stream_.get()),
       "routing");
  RecordDispatched();
  ExpertsShape shape = experts_.layout().shape;
  shape.n_rows = rows_.total();
  if (can_cache && levels.has_value()) {
    shape.top_k += shares_slot ? 1 : 0;
    Keep(DecodeExpertsCuda(shape, *levels, places_, h, RoundedOf(h), act_, out, stream_.get()),
         "experts");
  } else if (can_cache) {
    Keep(ExpertsCuda(shape, places_, h, act_, out, stream_.get()), "experts");
  } else {
    Keep(
        cudaMemsetAsync(out, 0, static_cast<size_t>(rows_.total()) * static_cast<size_t>(width) * 4,
                        stream_.get()),
        "memset");
  }
  if (!shares_slot) AddShared(shared, width, h, out);
  Await(width, out);
  return ServeUntilDispatched();
}

absl::Status CudaBackend::PrefillExperts(const Routing& routing, const SharedExpert& shared,
                                         int width, const float* h, float* out) {
  const int n = rows_.total();
  const int64_t n_places = int64_t{n} * routing.top_k;
  const bool can_cache = experts_.layout().can_cache, streams = is_streaming() && can_cache;
  Keep(RouteCuda({n, routing.n_experts, routing.top_k}, routing.normalise, routing.logits,
                 choice_ids_, choice_weights_, stream_.get()),
       "router");
  if (const int32_t* imposed = ImposedOf(routing)) {
    Keep(cudaMemcpyAsync(choice_ids_, imposed, static_cast<size_t>(n_places) * 4,
                         cudaMemcpyDeviceToDevice, stream_.get()),
         "imposed routing");
  }
  if (streams) {
    Keep(BeatCuda(misses_.exchange(), stream_.get()), "heartbeat");
    Keep(cudaMemcpyAsync(ChoicesOf(routing), choice_ids_, static_cast<size_t>(n_places) * 4,
                         cudaMemcpyDeviceToHost, stream_.get()),
         "choices");
  } else {
    Keep(DispatchExpertsCuda({routing.layer, n, routing.top_k, width}, DispatchOf(routing, h),
                             misses_.exchange(), places_, is_here_, ChoicesOf(routing),
                             stream_.get()),
         "dispatch");
    RecordDispatched();
  }
  if (can_cache) {
    ExpertsShape shape = experts_.layout().shape;
    shape.n_rows = n;
    Keep(GroupPlacesCuda(static_cast<int>(n_places), routing.n_experts, choice_ids_, groups_,
                         stream_.get()),
         "grouping");
    Keep(ToHalfRowsCuda(n, width, h, half_rows_, stream_.get()), "rows");
    const PrefillPlaces places{groups_, half_rows_, choice_weights_, expert_act_, products_};
    const auto run = [&](const DeviceExperts::List& list) {
      if (list.n == 0) return cudaSuccess;
      return PrefillExpertsCuda(shape, list.experts, list.n, places, stream_.get());
    };
    Keep(run(experts_.Cached(routing.layer)), "experts of a prefill");
    if (streams) {
      Keep(experts_.ForEachStreamed(routing.layer, stream_.get(), run), "streamed experts");
    }
    Keep(CombinePlacesCuda(n, routing.top_k, width, choice_ids_, streams ? nullptr : is_here_,
                           products_, out, stream_.get()),
         "combining");
  } else {
    Keep(cudaMemsetAsync(out, 0, static_cast<size_t>(n) * static_cast<size_t>(width) * 4,
                         stream_.get()),
         "memset");
  }
  AddShared(shared, width, h, out);
  if (streams) return error();
  Await(width, out);
  return ServeUntilDispatched();
}

void CudaBackend::Mlp(const ExpertRef& mlp, const float* h, float* out) {
  const Product first[] = {{&mlp.gate, inner_}, {&mlp.up, inner2_}};
  Linears(first, h);
  Keep(SiluMulCuda(int64_t{rows_.total()} * mlp.gate.out, inner_, inner2_, stream_.get()), "silu");
  const Product second[] = {{&mlp.down, out}};
  Linears(second, inner_);
}

// In chunks of kDecodeRows rows. A decode's is one chunk of all rows, whichever want their logits.
void CudaBackend::Head(const LinearRef& head, const float* h) {
  const bool all = is_decode();
  const auto n = all ? rows_.total() : static_cast<int>(batch_->logits_rows.size());
  for (int first = 0; first < n; first += kDecodeRows) {
    if (first > 0) Drain();
    const int chunk = std::min(kDecodeRows, n - first);
    const int row = all ? first : batch_->logits_rows[static_cast<size_t>(first)];
    const Product product[] = {{&head, logits_}};
    FewRowsLinears(product, chunk, h + row * head.in);
    pending_logits_ = chunk * head.out;
    Keep(cudaMemcpyAsync(pinned_logits_.as<float>(), logits_,
                         static_cast<size_t>(pending_logits_) * 4, cudaMemcpyDeviceToHost,
                         stream_.get()),
         "logits");
  }
  Keep(FinishStepCuda(misses_.exchange(), stream_.get()), "the end of a step");
}

// Takes the chunk of logits that is on its way.
void CudaBackend::Drain() {
  Keep(cudaStreamSynchronize(stream_.get()), "a step");
  const float* from = pinned_logits_.as<float>();
  logits_host_.insert(logits_host_.end(), from, from + pending_logits_);
  pending_logits_ = 0;
}

absl::Status CudaBackend::Finish(float* logits) {
  HEARTH_RETURN_IF_ERROR(error());
  ++steps_;
  HEARTH_RETURN_IF_ERROR(
      misses_.ServeUntil(stream_.get(), [this] { return misses_.StepsDone() == steps_; }));
  const auto vocabulary = static_cast<int64_t>(config_.vocab_size);
  const std::span<const int32_t> choices(
      pinned_choices_.as<int32_t>(),
      static_cast<size_t>(config_.n_layers * rows_.total() * config_.experts_per_token));
  if (is_decode()) {
    for (const int32_t row : batch_->logits_rows) {
      logits = std::copy_n(pinned_logits_.as<float>() + row * vocabulary, vocabulary, logits);
    }
    experts_.EndDecode(choices, rows_.total(), config_.experts_per_token);
    return absl::OkStatus();
  }
  logits = std::ranges::copy(logits_host_, logits).out;
  std::copy_n(pinned_logits_.as<float>(), pending_logits_, logits);
  experts_.EndPrompt(choices, rows_.total(), config_.experts_per_token, is_streaming());
  return absl::OkStatus();
}

std::vector<float> CudaBackend::Read(const float* values, int64_t n) {
  std::vector<float> host(static_cast<size_t>(n));
  Keep(cudaStreamSynchronize(stream_.get()), "reading");
  Keep(cudaMemcpy(host.data(), values, host.size() * 4, cudaMemcpyDeviceToHost), "reading");
  return host;
}

const RouterChoice& CudaBackend::Choice() {
  const auto n = static_cast<size_t>(rows_.total() * config_.experts_per_token);
  choice_.ids.resize(n);
  Keep(cudaStreamSynchronize(stream_.get()), "reading");
  Keep(cudaMemcpy(choice_.ids.data(), choice_ids_, n * 4, cudaMemcpyDeviceToHost), "reading");
  choice_.weights = Read(choice_weights_, static_cast<int64_t>(n));
  return choice_;
}

}  // namespace hearth::worker
