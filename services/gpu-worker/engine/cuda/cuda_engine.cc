// Starts the CUDA engine: what it needs, what of the card it takes, and its sequences.
#include "services/gpu-worker/engine/cuda/cuda_engine.h"

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "services/gpu-worker/engine/cuda/cuda_shapes.h"
#include "services/gpu-worker/engine/engines.h"
#include "services/gpu-worker/engine/step_check.h"
#include "services/gpu-worker/ops/cuda/cuda_status.h"
#include "services/gpu-worker/ops/exact_ops.h"
#include "services/gpu-worker/ops/fast_ops.h"

namespace hearth::worker {
namespace {

constexpr int kSpinMicroseconds = 2000;  // the next layer's misses come within this time

}  // namespace

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

absl::StatusOr<VramPlan> CudaEngine::Plan(const VramNeeds& needs) const {
  size_t free = 0, total = 0;
  HEARTH_RETURN_IF_ERROR(
      CudaStatus(cudaMemGetInfo(&free, &total),
                 "starting CUDA on the GPU (nvidia-smi shows who else holds its memory)"));
  // `free` is less the context already.
  return PlanVram(needs, options_.vram_bytes, free + kContextBytes);
}

absl::Status CudaEngine::Init(const Checkpoint& checkpoint, ExpertSource* experts) {
  HEARTH_RETURN_IF_ERROR(CheckModel(config_));
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

  HEARTH_ASSIGN_OR_RETURN(weights_, ReadWeights(checkpoint, options_.max_drafts > 0));
  HEARTH_ASSIGN_OR_RETURN(SlotLayout layout, FindSlotLayout(checkpoint));
  if (options_.exact) layout.can_cache = false;  // tiles round their scales: the CPU has experts
  const CudaShapes shapes = ShapesOf(config_, weights_, layout, options_);
  HEARTH_ASSIGN_OR_RETURN(const VramPlan plan,
                          Plan(NeedsOf(config_, weights_, layout, shapes, options_)));
  memory_table_ = plan.ToText();

  HEARTH_ASSIGN_OR_RETURN(device_weights_,
                          UploadWeights(weights_, layout, options_.exact, options_.n_threads));
  HEARTH_ASSIGN_OR_RETURN(state_, DeviceState::Create(shapes.state));
  HEARTH_RETURN_IF_ERROR(MakeOps());
  HEARTH_ASSIGN_OR_RETURN(
      misses_,
      MissServer::Create({.max_rows = options_.divide_misses ? shapes.backend.max_rows
                                                             : shapes.backend.exchange_rows,
                          .top_k = config_.experts_per_token,
                          .n_experts = config_.n_experts,
                          .width = config_.hidden_size,
                          .await_nanoseconds = static_cast<uint64_t>(options_.expert_wait.count())},
                         ops_.get(), parallel_.get(), experts));
  const bool by_profile = options_.cache_policy == "profile";  // there are no counts yet
  HEARTH_ASSIGN_OR_RETURN(experts_,
                          DeviceExperts::Create(config_, layout, experts, plan.n_slots,
                                                by_profile ? "" : options_.cache_policy,
                                                options_.divide_misses, weights_.mtp.has_value()));
  HEARTH_ASSIGN_OR_RETURN(backend_,
                          CudaBackend::Create(config_, shapes.backend, &device_weights_, state_,
                                              experts_.get(), misses_.get(), options_.routing));
  forward_ = std::make_unique<Forward>(config_, weights_, backend_.get(), shapes.backend.max_rows);
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

absl::Status CudaEngine::ReadDeltaState(const SequenceState& state, int layer,
                                        std::vector<float>* conv,
                                        std::vector<float>* recurrent) const {
  HEARTH_ASSIGN_OR_RETURN(const int delta_layer, DeltaLayerIndex(config_, layer));
  const auto& sequence = static_cast<const CudaSequence&>(state);
  if (sequence.place() < 0) {
    return absl::FailedPreconditionError("the sequence has no place on the GPU");
  }
  std::vector<float> history;
  HEARTH_RETURN_IF_ERROR(backend_->ReadState(sequence, delta_layer, &history, recurrent));
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
