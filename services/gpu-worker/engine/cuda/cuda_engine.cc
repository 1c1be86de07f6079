// Engine on a GPU: divides a step into batches that the backend computes as one (the sequences that
// decode together; each prompt's rows), and keeps a graph for each size of a decode.
#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "services/gpu-worker/engine/cuda/cuda_backend.h"
#include "services/gpu-worker/engine/cuda/device_experts.h"
#include "services/gpu-worker/engine/cuda/device_state.h"
#include "services/gpu-worker/engine/cuda/device_weights.h"
#include "services/gpu-worker/engine/cuda/miss_server.h"
#include "services/gpu-worker/engine/cuda/vram_plan.h"
#include "services/gpu-worker/engine/engines.h"
#include "services/gpu-worker/engine/forward.h"
#include "services/gpu-worker/engine/step_check.h"
#include "services/gpu-worker/engine/weights.h"
#include "services/gpu-worker/experts/expert_tier.h"
#include "services/gpu-worker/ops/cuda/cuda_status.h"
#include "services/gpu-worker/ops/exact_ops.h"
#include "services/gpu-worker/ops/fast_ops.h"

namespace hearth::worker {
namespace {

constexpr int kSpinMicroseconds = 2000;  // the next layer's misses come within this time
constexpr int kPageTokens = 64;
// What the CUDA context and the kernels' code take, outside our control.
constexpr uint64_t kContextBytes = uint64_t{640} << 20;
// Prompts of more rows have their experts streamed; fewer share the work with the CPU.
constexpr int kExchangeRows = 192;

// Rows of logits that the item wants.
size_t RowsOf(const StepItem& item) {
  return item.logits == LogitsWanted::kAll
             ? item.tokens.size()
             : static_cast<size_t>(item.logits == LogitsWanted::kLast);
}

class CudaEngine final : public Engine {
 public:
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const Checkpoint& checkpoint,
                                                        ExpertSource* experts,
                                                        const EngineOptions& options);
  ~CudaEngine() override { cudaDeviceSynchronize(); }

  const ModelConfig& config() const override { return config_; }
  std::string_view backend() const override { return name_; }
  bool rows_are_independent() const override { return options_.exact; }
  std::unique_ptr<SequenceState> NewSequence() override;
  int64_t PagesNeeded(const SequenceState& state, int64_t n_tokens) const override {
    return static_cast<const CudaSequence&>(state).PagesNeeded(n_tokens);
  }
  int64_t pages_free() const override { return state_->pages_free(); }
  int64_t pages_total() const override { return state_->shape().n_pages; }
  absl::Status Step(std::span<const StepItem> items, StepLogits* logits) override;
  absl::Status device_error() const override { return device_error_; }
  uint64_t progress() const override {
    return parallel_->progress() + misses_->heartbeat() + steps_;
  }
  void Interrupt() override { parallel_->set_interrupted(true); }
  void ClearInterrupt() override { parallel_->set_interrupted(false); }
  absl::Status ReadDeltaState(const SequenceState& state, int layer, std::vector<float>* conv,
                              std::vector<float>* recurrent) const override;
  void SetObserver(TensorObserver observer) override { forward_->SetObserver(std::move(observer)); }
  absl::Status FillContext(SequenceState* state, int64_t n_tokens, uint64_t seed) override;
  ExpertTier* expert_tier() override { return board_.get(); }
  std::string memory_table() const override { return memory_table_; }
  MemoryUse dense_memory() const override {
    return {static_cast<uint64_t>(device_weights_.linears.bytes()), 0};
  }

 private:
  CudaEngine(const ModelConfig& config, const EngineOptions& options)
      : config_(config), options_(options) {}
  absl::Status Init(const Checkpoint& checkpoint, ExpertSource* experts);
  absl::StatusOr<VramPlan> Plan(const SlotLayout& layout, const DeviceStateShape& shape,
                                const CudaBackendShape& backend_shape);
  absl::Status MakeOps();
  struct DecodeItem {
    StepItem item;
    float* logits = nullptr;  // where they go
  };
  absl::Status RunItems(std::span<const StepItem> items, float* logits);
  void NoteDeviceError(const absl::Status& status);
  // Items decode together, or one item's rows are read.
  absl::Status Decode(std::span<const DecodeItem> items);
  absl::Status Read(const StepItem& item, float* logits);
  absl::Status RunBatch(const Batch& batch, float* logits);
  absl::Status RunGraph(const Batch& batch, float* logits);
  void EndStep();
  void AddRows(const StepItem& item, size_t first, size_t n, Batch* batch) const;

  const ModelConfig config_;
  const EngineOptions options_;
  std::string name_, memory_table_;
  ModelWeights weights_;
  DeviceWeights device_weights_;
  std::shared_ptr<DeviceState> state_;
  std::unique_ptr<Parallel> parallel_;
  std::unique_ptr<Ops> ops_;
  std::unique_ptr<MissServer> misses_;
  std::unique_ptr<DeviceExperts> experts_;
  std::unique_ptr<CudaBackend> backend_;
  std::unique_ptr<Forward> forward_;
  std::map<std::pair<int, int64_t>, GraphExec> graphs_;  // by rows and position bucket
  std::unique_ptr<TierBoard> board_;
  // Scratch of a step.
  std::vector<DecodeItem> decodes_;
  std::vector<float> scattered_;
  std::atomic<uint64_t> steps_{0};
  absl::Status device_error_;
};

absl::StatusOr<std::unique_ptr<Engine>> CudaEngine::Create(const Checkpoint& checkpoint,
                                                           ExpertSource* experts,
                                                           const EngineOptions& options) {
  auto engine = std::unique_ptr<CudaEngine>(new CudaEngine(checkpoint.config(), options));
  HEARTH_RETURN_IF_ERROR(engine->Init(checkpoint, experts));
  return engine;
}

absl::Status CudaEngine::MakeOps() {
  parallel_ = std::make_unique<Parallel>(ThreadPoolOptions{
      .n_threads = options_.n_threads, .spin_microseconds = kSpinMicroseconds, .pin = true});
  const Kernels* kernels = options_.exact ? nullptr : FindKernels(options_.isa);
  if (kernels == nullptr && !options_.isa.empty() && !options_.exact) {
    return absl::FailedPreconditionError(
        absl::StrCat("this CPU cannot run the instruction set '", options_.isa, "'"));
  }
  if (kernels != nullptr) {
    ops_ = std::make_unique<FastOps>(parallel_.get(), kernels);
  } else {
    ops_ = std::make_unique<ExactOps>(parallel_.get());
  }
  return absl::OkStatus();
}

absl::StatusOr<VramPlan> CudaEngine::Plan(const SlotLayout& layout, const DeviceStateShape& shape,
                                          const CudaBackendShape& backend_shape) {
  size_t free = 0, total = 0;
  HEARTH_RETURN_IF_ERROR(
      CudaStatus(cudaMemGetInfo(&free, &total),
                 "starting CUDA on the GPU (nvidia-smi shows who else holds its memory)"));
  VramNeeds needs;
  needs.fixed = {{"CUDA context", kContextBytes},
                 {"dense weights", DeviceWeightBytes(weights_, layout, options_.exact)},
                 {absl::StrCat("KV pages (", shape.n_pages * shape.page_tokens, " tokens)"),
                  static_cast<uint64_t>(shape.KvBytes())},
                 {absl::StrCat("states (", shape.max_sequences, " sequences)"),
                  static_cast<uint64_t>(shape.StateBytes())},
                 {"work space", CudaBackend::ScratchBytes(config_, backend_shape)},
                 {"streaming and tables", DeviceExperts::ExtraBytes(config_, layout)}};
  needs.slot_bytes = layout.can_cache ? layout.stride : 0;
  needs.all_experts =
      std::ranges::count(config_.layers, true, &LayerConfig::has_experts) * config_.n_experts;
  needs.wanted_slots = options_.expert_slots;
  // `free` is less the context already.
  return PlanVram(needs, options_.vram_bytes, free + kContextBytes);
}

absl::Status CudaEngine::Init(const Checkpoint& checkpoint, ExpertSource* experts) {
  int n_devices = 0;
  const cudaError_t found = cudaGetDeviceCount(&n_devices);
  if (found != cudaSuccess || n_devices == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("no GPU that CUDA can use: ", cudaGetErrorString(found),
                     "; choose the CPU backend, or look at what nvidia-smi says"));
  }
  cudaDeviceProp properties;
  HEARTH_RETURN_IF_ERROR(CudaStatus(cudaGetDeviceProperties(&properties, 0), "the GPU"));
  name_ = absl::StrCat("cuda (", properties.name, options_.exact ? ", float32)" : ")");

  HEARTH_ASSIGN_OR_RETURN(weights_, ReadWeights(checkpoint));
  HEARTH_ASSIGN_OR_RETURN(SlotLayout layout, FindSlotLayout(checkpoint));
  if (options_.exact) layout.can_cache = false;  // tiles round their scales: the CPU has experts
  DeviceStateShape shape = DeviceStateShape::Of(config_);
  shape.page_tokens = kPageTokens;
  shape.n_pages = (options_.kv_tokens + kPageTokens - 1) / kPageTokens;
  shape.max_sequences = options_.max_sequences;
  shape.kv_type = options_.exact ? KvType::kF32 : options_.int8_kv ? KvType::kInt8 : KvType::kBf16;
  const int chunk = options_.exact ? kDecodeRows : std::max(kDecodeRows, options_.max_batch_tokens);
  const CudaBackendShape backend_shape{
      .max_rows = chunk,
      .exchange_rows = layout.can_cache ? std::min(chunk, kExchangeRows) : chunk,
      .max_positions = shape.n_pages * kPageTokens,
      .exact = options_.exact};
  HEARTH_ASSIGN_OR_RETURN(const VramPlan plan, Plan(layout, shape, backend_shape));
  memory_table_ = plan.ToText();

  HEARTH_ASSIGN_OR_RETURN(device_weights_,
                          UploadWeights(weights_, layout, options_.exact, options_.n_threads));
  HEARTH_ASSIGN_OR_RETURN(state_, DeviceState::Create(shape));
  HEARTH_RETURN_IF_ERROR(MakeOps());
  HEARTH_ASSIGN_OR_RETURN(
      misses_,
      MissServer::Create({.max_rows = backend_shape.exchange_rows,
                          .top_k = config_.experts_per_token,
                          .width = config_.hidden_size,
                          .await_nanoseconds = static_cast<uint64_t>(options_.expert_wait.count())},
                         ops_.get(), parallel_.get(), experts));
  const bool by_profile = options_.cache_policy == "profile";  // there are no counts yet
  HEARTH_ASSIGN_OR_RETURN(experts_, DeviceExperts::Create(config_, layout, experts, plan.n_slots,
                                                          by_profile ? "" : options_.cache_policy));
  HEARTH_ASSIGN_OR_RETURN(backend_,
                          CudaBackend::Create(config_, backend_shape, &device_weights_, state_,
                                              experts_.get(), misses_.get(), options_.routing));
  forward_ = std::make_unique<Forward>(config_, weights_, backend_.get(), chunk);
  std::vector<TierPart> parts;
  for (const VramPart& part : plan.parts) parts.push_back({"vram", part.name, part.bytes});
  board_ = std::make_unique<TierBoard>(experts_->cache().shape(), PolicyOfThisMachine(),
                                       layout.bytes, std::move(parts));
  if (by_profile) board_->AwaitProfile();
  HEARTH_RETURN_IF_ERROR(backend_->error());
  // What was cleared and copied so far ran on another stream than the steps will.
  return CudaStatus(cudaDeviceSynchronize(), "starting");
}

std::unique_ptr<SequenceState> CudaEngine::NewSequence() {
  auto sequence = std::make_unique<CudaSequence>(state_);
  if (sequence->place() >= 0) {
    backend_->Zero(*sequence);
  }
  return sequence;
}

absl::Status CudaEngine::Step(std::span<const StepItem> items, StepLogits* logits) {
  HEARTH_RETURN_IF_ERROR(CheckStep(*this, items, options_.max_batch_tokens));
  const auto vocabulary = static_cast<size_t>(config_.vocab_size);
  size_t n_rows = 0;
  for (const StepItem& item : items) {
    if (static_cast<const CudaSequence*>(item.state)->place() < 0) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "the GPU keeps the states of ", options_.max_sequences, " sequences and all are taken"));
    }
    n_rows += RowsOf(item);
  }
  logits->n_rows = static_cast<int>(n_rows);
  logits->values.resize(n_rows * vocabulary);
  if (experts_->is_replaced()) experts_->SetProfile(board_->profile());
  const absl::Status status = RunItems(items, logits->values.data());
  if (status.ok()) return status;
  // What is left of a failed step must not meet the next one.
  backend_->Settle();
  NoteDeviceError(status);
  // Items may have advanced: the step must not be tried again, as one that is refused.
  return absl::IsResourceExhausted(status) ? absl::InternalError(status.message()) : status;
}

// What the backend could not enqueue, or the device could not do, is not undone: only a new process
// begins anew. An error that stays when asked for again is the context's.
void CudaEngine::NoteDeviceError(const absl::Status& status) {
  cudaGetLastError();
  cudaStreamQuery(backend_->stream());
  const cudaError_t stays = cudaStreamQuery(backend_->stream());
  const bool is_lost = stays != cudaSuccess && stays != cudaErrorNotReady;
  if (device_error_.ok() && (is_lost || !backend_->error().ok())) device_error_ = status;
}

// Prompts as they come, one by one; then what decodes, together.
absl::Status CudaEngine::RunItems(std::span<const StepItem> items, float* logits) {
  const auto vocabulary = static_cast<size_t>(config_.vocab_size);
  decodes_.clear();
  size_t row = 0;
  for (const StepItem& item : items) {
    float* const to = logits + row * vocabulary;
    row += RowsOf(item);
    if (item.tokens.size() == 1) {
      decodes_.push_back({item, to});
    } else {
      HEARTH_RETURN_IF_ERROR(Read(item, to));
    }
  }
  for (size_t first = 0; first < decodes_.size(); first += kDecodeRows) {
    const auto n = std::min<size_t>(kDecodeRows, decodes_.size() - first);
    HEARTH_RETURN_IF_ERROR(Decode(std::span(decodes_).subspan(first, n)));
  }
  return absl::OkStatus();
}

void CudaEngine::AddRows(const StepItem& item, size_t first, size_t n, Batch* batch) const {
  auto* sequence = static_cast<CudaSequence*>(item.state);
  sequence->Grow(static_cast<int64_t>(n));
  const int begin = batch->n_rows();
  const int end = begin + static_cast<int>(n);
  batch->items.push_back({sequence, {begin, end}, sequence->n_tokens()});
  for (size_t i = 0; i < n; ++i) {
    batch->ids.push_back(item.tokens[first + i]);
    batch->positions.push_back(sequence->n_tokens() + static_cast<int64_t>(i));
    const bool wanted = item.logits == LogitsWanted::kAll ||
                        (item.logits == LogitsWanted::kLast && first + i + 1 == item.tokens.size());
    if (wanted) batch->logits_rows.push_back(begin + static_cast<int>(i));
  }
}

absl::Status CudaEngine::Decode(std::span<const DecodeItem> items) {
  const auto vocabulary = static_cast<size_t>(config_.vocab_size);
  Batch batch;
  for (const DecodeItem& decode : items) AddRows(decode.item, 0, 1, &batch);
  // The backend gives the wanted rows one behind the other: here, unless a prompt's lie between.
  float* const first = items.front().logits;
  bool is_together = true;
  size_t n_rows = 0;
  for (const DecodeItem& decode : items) {
    is_together = is_together && decode.logits == first + n_rows * vocabulary;
    n_rows += RowsOf(decode.item);
  }
  if (!is_together) scattered_.resize(n_rows * vocabulary);
  float* const to = is_together ? first : scattered_.data();
  HEARTH_RETURN_IF_ERROR(forward_->has_observer() ? RunBatch(batch, to) : RunGraph(batch, to));
  if (is_together) return absl::OkStatus();
  const float* from = to;
  for (const DecodeItem& decode : items) {
    if (RowsOf(decode.item) == 0) continue;
    std::copy_n(from, vocabulary, decode.logits);
    from += vocabulary;
  }
  return absl::OkStatus();
}

absl::Status CudaEngine::Read(const StepItem& item, float* logits) {
  const auto chunk = static_cast<size_t>(options_.exact ? kDecodeRows : options_.max_batch_tokens);
  for (size_t first = 0; first < item.tokens.size(); first += chunk) {
    Batch batch;
    AddRows(item, first, std::min(chunk, item.tokens.size() - first), &batch);
    HEARTH_RETURN_IF_ERROR(RunBatch(batch, logits));
    logits += static_cast<int64_t>(batch.logits_rows.size()) * config_.vocab_size;
  }
  return absl::OkStatus();
}

absl::Status CudaEngine::RunBatch(const Batch& batch, float* logits) {
  HEARTH_RETURN_IF_ERROR(forward_->Run(
      batch, [this] { return parallel_->interrupted(); }, logits));
  for (const BatchItem& item : batch.items) {
    static_cast<CudaSequence*>(item.sequence)->Advance(item.rows.size());
  }
  EndStep();
  return absl::OkStatus();
}

absl::Status CudaEngine::RunGraph(const Batch& batch, float* logits) {
  HEARTH_RETURN_IF_ERROR(backend_->Begin(batch));
  const std::pair key(batch.n_rows(), backend_->position_bucket());
  auto found = graphs_.find(key);
  if (found == graphs_.end()) {
    Graph graph;
    HEARTH_RETURN_IF_ERROR(CudaStatus(
        cudaStreamBeginCapture(backend_->stream(), cudaStreamCaptureModeThreadLocal), "capture"));
    backend_->SetCapturing(true);
    const absl::Status status = forward_->Enqueue(batch, [] { return false; });
    backend_->SetCapturing(false);
    const cudaError_t ended = cudaStreamEndCapture(backend_->stream(), graph.put());
    HEARTH_RETURN_IF_ERROR(status);
    HEARTH_RETURN_IF_ERROR(CudaStatus(ended, "capture"));
    GraphExec exec;
    cudaError_t made = cudaGraphInstantiate(exec.put(), graph.get(), 0);
    if (made == cudaSuccess) made = cudaGraphUpload(exec.get(), backend_->stream());
    if (made == cudaErrorMemoryAllocation) {  // others have all of it: slower, but it goes on
      cudaGetLastError();
      return RunBatch(batch, logits);
    }
    HEARTH_RETURN_IF_ERROR(CudaStatus(made, "a decode graph"));
    found = graphs_.emplace(key, std::move(exec)).first;
  }
  HEARTH_RETURN_IF_ERROR(
      CudaStatus(cudaGraphLaunch(found->second.get(), backend_->stream()), "a decode step"));
  HEARTH_RETURN_IF_ERROR(backend_->Finish(logits));
  if (parallel_->interrupted()) return absl::CancelledError("the step was interrupted");
  for (const BatchItem& item : batch.items) static_cast<CudaSequence*>(item.sequence)->Advance(1);
  EndStep();
  return absl::OkStatus();
}

void CudaEngine::EndStep() {
  ++steps_;
  const MissServer::Counts& counts = misses_->counts();
  board_->Sync(&experts_->cache(), experts_->pcie_bytes(),
               counts.experts * experts_->layout().bytes, counts.seconds);
}

absl::Status CudaEngine::ReadDeltaState(const SequenceState& state, int layer,
                                        std::vector<float>* conv,
                                        std::vector<float>* recurrent) const {
  HEARTH_ASSIGN_OR_RETURN(const int delta_layer, DeltaLayerIndex(config_, layer));
  const int place = static_cast<const CudaSequence&>(state).place();
  if (place < 0) return absl::FailedPreconditionError("the sequence has no place on the GPU");
  const DeviceStateShape& shape = state_->shape();
  std::vector<float> history(static_cast<size_t>(shape.history_floats));
  recurrent->resize(static_cast<size_t>(shape.recurrent_floats));
  HEARTH_RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(backend_->stream()), "a step"));
  HEARTH_RETURN_IF_ERROR(CudaStatus(cudaMemcpy(history.data(), state_->History(place, delta_layer),
                                               history.size() * 4, cudaMemcpyDeviceToHost),
                                    "reading a state"));
  HEARTH_RETURN_IF_ERROR(
      CudaStatus(cudaMemcpy(recurrent->data(), state_->Recurrent(place, delta_layer),
                            recurrent->size() * 4, cudaMemcpyDeviceToHost),
                 "reading a state"));
  *conv = NewestLast(history, config_.conv_channels());
  return absl::OkStatus();
}

absl::Status CudaEngine::FillContext(SequenceState* state, int64_t n_tokens, uint64_t seed) {
  auto& sequence = static_cast<CudaSequence&>(*state);
  if (sequence.n_tokens() != 0 || n_tokens < 0) {
    return absl::InvalidArgumentError("only a new sequence can be filled");
  }
  if (sequence.place() < 0) return absl::ResourceExhaustedError("no place for one more sequence");
  if (sequence.PagesNeeded(n_tokens) > state_->pages_free()) {
    return absl::ResourceExhaustedError(absl::StrCat("a context of ", n_tokens, " tokens needs ",
                                                     sequence.PagesNeeded(n_tokens), " KV pages, ",
                                                     state_->pages_free(), " are free"));
  }
  sequence.Grow(n_tokens);
  const cudaError_t error = state_->FillRandom(sequence, seed, backend_->stream());
  sequence.Advance(n_tokens);
  return CudaStatus(error, "filling a context");
}

}  // namespace

int CountCudaDevices() {
  int n = 0;
  return cudaGetDeviceCount(&n) == cudaSuccess ? n : 0;
}

absl::StatusOr<std::unique_ptr<Engine>> CreateCudaEngine(const Checkpoint& checkpoint,
                                                         ExpertSource* experts,
                                                         const EngineOptions& options) {
  return CudaEngine::Create(checkpoint, experts, options);
}

}  // namespace hearth::worker
