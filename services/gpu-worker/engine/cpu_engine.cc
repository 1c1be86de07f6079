// Engine on the CPU: checks a step, runs it through Forward, and keeps pages and positions
// straight.
#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "services/gpu-worker/engine/cpu_backend.h"
#include "services/gpu-worker/engine/engine.h"
#include "services/gpu-worker/engine/engines.h"
#include "services/gpu-worker/engine/forward.h"
#include "services/gpu-worker/engine/step_check.h"
#include "services/gpu-worker/engine/tiled_weights.h"
#include "services/gpu-worker/engine/weights.h"
#include "services/gpu-worker/ops/exact_ops.h"
#include "services/gpu-worker/ops/fast_ops.h"
#include "services/gpu-worker/state/cpu_sequence.h"
#include "services/gpu-worker/state/kv_pool.h"

namespace hearth::worker {
namespace {

int AttentionLayers(const ModelConfig& config) {
  return static_cast<int>(
      std::ranges::count(config.layers, MixerKind::kFullAttention, &LayerConfig::mixer));
}

// A token's loops follow each other within microseconds; between two tokens the sampler and the
// scheduler run, mostly within this time.
constexpr int kSpinMicroseconds = 200;

// What computes: the kernels, and the weights in their form.
struct Compute {
  std::string name;
  ModelWeights weights;
  PageBuffer memory;                 // of tiled weights
  const Kernels* kernels = nullptr;  // of the fast backend
};

std::unique_ptr<Ops> MakeOps(const Compute& compute, Parallel* parallel) {
  if (compute.kernels != nullptr) return std::make_unique<FastOps>(parallel, compute.kernels);
  return std::make_unique<ExactOps>(parallel);
}

class CpuEngine final : public Engine {
 public:
  CpuEngine(const ModelConfig& config, Compute compute, std::shared_ptr<KvPool> pool,
            ExpertSource* experts, const EngineOptions& options)
      : config_(config),
        options_(options),
        compute_(std::move(compute)),
        pool_(std::move(pool)),
        parallel_({.n_threads = options.n_threads,
                   .spin_microseconds = kSpinMicroseconds,
                   .pin = !options.exact}),
        ops_(MakeOps(compute_, &parallel_)),
        backend_(config_, ops_.get(), experts, options.max_batch_tokens, options.routing),
        forward_(config_, compute_.weights, &backend_, options.max_batch_tokens) {}

  const ModelConfig& config() const override { return config_; }
  std::string_view backend() const override { return compute_.name; }
  std::unique_ptr<SequenceState> NewSequence() override {
    return std::make_unique<CpuSequence>(config_, pool_, max_drafts());
  }
  int64_t PagesNeeded(const SequenceState& state, int64_t n_tokens) const override {
    return static_cast<const CpuSequence&>(state).PagesNeeded(n_tokens);
  }
  int64_t pages_free() const override { return pool_->pages_free(); }
  int64_t pages_total() const override { return pool_->shape().n_pages; }
  absl::Status Step(std::span<const StepItem> items, StepLogits* logits) override;
  int max_drafts() const override {
    return compute_.weights.mtp.has_value() ? options_.max_drafts : 0;
  }
  absl::Status Draft(std::span<const DraftItem> items, int depth, StepLogits* logits) override;
  void Rollback(SequenceState& state, int n_tokens) override {
    static_cast<CpuSequence&>(state).Rollback(n_tokens);
  }
  uint64_t progress() const override { return parallel_.progress(); }
  void Interrupt() override { parallel_.set_interrupted(true); }
  void ClearInterrupt() override { parallel_.set_interrupted(false); }
  absl::Status ReadDeltaState(const SequenceState& state, int layer, std::vector<float>* conv,
                              std::vector<float>* recurrent) const override;
  void SetObserver(TensorObserver observer) override { forward_.SetObserver(std::move(observer)); }
  absl::Status FillContext(SequenceState* state, int64_t n_tokens, uint64_t seed) override;
  MemoryUse dense_memory() const override {
    return {compute_.memory.bytes(), compute_.memory.HugeBytes()};
  }

 private:
  Batch MakeBatch(std::span<const StepItem> items);

  const ModelConfig config_;
  const EngineOptions options_;
  const Compute compute_;
  const std::shared_ptr<KvPool> pool_;
  Parallel parallel_;
  const std::unique_ptr<Ops> ops_;
  CpuBackend backend_;
  Forward forward_;
};

Batch CpuEngine::MakeBatch(std::span<const StepItem> items) {
  Batch batch;
  for (const StepItem& item : items) {
    auto* sequence = static_cast<CpuSequence*>(item.state);
    const int begin = static_cast<int>(batch.ids.size());
    const int end = begin + static_cast<int>(item.tokens.size());
    sequence->Grow(end - begin);
    batch.items.push_back({sequence, {begin, end}, sequence->n_tokens(), item.n_drafts});
    for (int row = begin; row < end; ++row) {
      batch.ids.push_back(item.tokens[static_cast<size_t>(row - begin)]);
      batch.positions.push_back(sequence->n_tokens() + row - begin);
      const bool wanted = item.logits == LogitsWanted::kAll ||
                          (item.logits == LogitsWanted::kLast && row == end - 1);
      if (wanted) batch.logits_rows.push_back(row);
    }
  }
  return batch;
}

absl::Status CpuEngine::Step(std::span<const StepItem> items, StepLogits* logits) {
  HEARTH_RETURN_IF_ERROR(CheckStep(*this, items, options_.max_batch_tokens));
  const Batch batch = MakeBatch(items);
  logits->n_rows = static_cast<int>(batch.logits_rows.size());
  logits->values.resize(batch.logits_rows.size() * static_cast<size_t>(config_.vocab_size));
  HEARTH_RETURN_IF_ERROR(forward_.Run(
      batch, [this] { return parallel_.interrupted(); }, logits->values.data()));
  for (const BatchItem& item : batch.items) {
    static_cast<CpuSequence*>(item.sequence)->Advance(item.rows.size(), item.n_drafts);
  }
  return absl::OkStatus();
}

absl::Status CpuEngine::Draft(std::span<const DraftItem> items, int depth, StepLogits* logits) {
  HEARTH_RETURN_IF_ERROR(
      CheckDraft(*this, items, depth, options_.max_batch_tokens, [](const SequenceState& state) {
        return static_cast<const CpuSequence&>(state).n_guessed();
      }));
  Batch batch;
  batch.is_draft = true;
  for (const DraftItem& item : items) {
    auto* sequence = static_cast<CpuSequence*>(item.state);
    sequence->Grow(depth);
    const int row = batch.n_rows();
    // Where the head keeps what it makes of a token and of the hidden state before it.
    const int64_t position = sequence->n_tokens() - 1 + depth;
    batch.ids.push_back(item.token);
    batch.positions.push_back(position);
    batch.items.push_back(
        {.sequence = sequence, .rows = {row, row + 1}, .first_position = position});
    batch.logits_rows.push_back(row);
    sequence->set_n_guessed(depth + 1);
  }
  logits->n_rows = batch.n_rows();
  logits->values.resize(items.size() * static_cast<size_t>(config_.vocab_size));
  return forward_.Draft(
      batch, depth, [this] { return parallel_.interrupted(); }, logits->values.data());
}

absl::Status CpuEngine::ReadDeltaState(const SequenceState& state, int layer,
                                       std::vector<float>* conv,
                                       std::vector<float>* recurrent) const {
  HEARTH_ASSIGN_OR_RETURN(const int delta_layer, DeltaLayerIndex(config_, layer));
  const auto& sequence = static_cast<const CpuSequence&>(state);
  const auto& history = sequence.conv_history(delta_layer);  // [W - 1, channels]
  *conv = NewestLast(history, config_.conv_channels());
  const auto& values = sequence.recurrent(delta_layer);
  recurrent->assign(values.begin(), values.end());
  return absl::OkStatus();
}

absl::Status CpuEngine::FillContext(SequenceState* state, int64_t n_tokens, uint64_t seed) {
  auto& sequence = static_cast<CpuSequence&>(*state);
  if (sequence.n_tokens() != 0 || n_tokens < 0) {
    return absl::InvalidArgumentError("only a new sequence can be filled");
  }
  if (sequence.PagesNeeded(n_tokens) > pool_->pages_free()) {
    return absl::ResourceExhaustedError(absl::StrCat("a context of ", n_tokens, " tokens needs ",
                                                     sequence.PagesNeeded(n_tokens), " KV pages, ",
                                                     pool_->pages_free(), " are free"));
  }
  sequence.FillRandom(n_tokens, seed);
  return absl::OkStatus();
}

}  // namespace

namespace {

absl::StatusOr<Compute> MakeCompute(const Checkpoint& checkpoint, const EngineOptions& options) {
  Compute compute;
  if (!options.exact) {
    compute.kernels = FindKernels(options.isa);
    if (compute.kernels == nullptr && !options.isa.empty()) {
      return absl::FailedPreconditionError(
          absl::StrCat("this CPU cannot run the instruction set '", options.isa,
                       "'; leave it out to take the best there is"));
    }
  }
  HEARTH_ASSIGN_OR_RETURN(compute.weights, ReadWeights(checkpoint, options.max_drafts > 0));
  if (compute.kernels == nullptr) {  // asked for, or a CPU without AVX2
    compute.name = "float32";
    return compute;
  }
  compute.name = std::string(compute.kernels->name);
  HEARTH_ASSIGN_OR_RETURN(compute.memory, TileWeights(compute.weights, options.n_threads));
  return compute;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> CreateCpuEngine(const Checkpoint& checkpoint,
                                                        ExpertSource* experts,
                                                        const EngineOptions& options) {
  const ModelConfig& config = checkpoint.config();
  HEARTH_ASSIGN_OR_RETURN(Compute compute, MakeCompute(checkpoint, options));
  const int n_mtp_layers = compute.weights.mtp.has_value() ? 1 : 0;
  const KvPoolShape shape{.n_layers = AttentionLayers(config) + n_mtp_layers,
                          .page_tokens = options.page_tokens,
                          .token_floats = int64_t{config.n_kv_heads} * config.head_dim,
                          .n_pages = options.kv_tokens / options.page_tokens};
  HEARTH_ASSIGN_OR_RETURN(std::shared_ptr<KvPool> pool, KvPool::Create(shape));
  return std::make_unique<CpuEngine>(config, std::move(compute), std::move(pool), experts, options);
}

}  // namespace hearth::worker
