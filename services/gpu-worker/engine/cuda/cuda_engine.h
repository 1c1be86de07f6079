// Engine on a GPU: divides a step into batches that the backend computes as one (the sequences that
// decode together, by how many drafts they bring; each prompt's rows), and keeps a graph for each
// size of a decode.
#pragma once

#include <array>
#include <atomic>
#include <compare>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "services/gpu-worker/engine/cuda/cuda_backend.h"
#include "services/gpu-worker/engine/cuda/device_experts.h"
#include "services/gpu-worker/engine/cuda/device_state.h"
#include "services/gpu-worker/engine/cuda/device_weights.h"
#include "services/gpu-worker/engine/cuda/miss_server.h"
#include "services/gpu-worker/engine/cuda/vram_plan.h"
#include "services/gpu-worker/engine/engine.h"
#include "services/gpu-worker/engine/forward.h"
#include "services/gpu-worker/engine/weights.h"
#include "services/gpu-worker/experts/expert_tier.h"
#include "services/gpu-worker/ops/ops.h"

namespace hearth::worker {

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
  int max_drafts() const override { return weights_.mtp.has_value() ? options_.max_drafts : 0; }
  absl::Status Draft(std::span<const DraftItem> items, int depth, StepLogits* logits) override;
  void Rollback(SequenceState& state, int n_tokens) override {
    static_cast<CudaSequence&>(state).Rollback(n_tokens);
  }
  absl::StatusOr<std::span<const float>> ReadLogits(int row) override;
  absl::Status device_error() const override { return device_error_; }
  uint64_t progress() const override {
    return parallel_->progress() + misses_->heartbeat() + experts_->progress() + steps_;
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
  absl::StatusOr<VramPlan> Plan(const VramNeeds& needs) const;
  absl::Status MakeOps();
  struct DecodeItem {
    StepItem item;
    int row = 0;  // of the step's logits, where it wants some
    size_t n_rows() const { return item.tokens.size(); }
  };
  // What a batch goes through, each with graphs of its own.
  enum class Pass { kStep, kFirstDraft, kDeeperDraft };
  struct GraphKey {
    Pass pass = Pass::kStep;
    int n_sequences = 0, n_rows = 0;  // of each
    bool has_pending = false;
    bool never_awaits = false;
    int64_t position_bucket = 0;
    auto operator<=>(const GraphKey&) const = default;
  };
  void BeginStep();
  absl::Status RunItems(std::span<const StepItem> items, StepLogits* logits);
  absl::Status DraftGroup(std::span<const DraftItem> items, int depth, int row, StepLogits* logits);
  // What is left of a step or draft that failed must not meet the next one.
  absl::Status Ended(const absl::Status& status);
  void NoteDeviceError(const absl::Status& status);
  // Items of as many rows decode together, or one item's rows are read.
  absl::Status Decode(std::span<const DecodeItem> items, StepLogits* logits);
  absl::Status Read(const StepItem& item, int row, StepLogits* logits);
  // Of logits, cuda_engine_logits.cc: before the first batch, and one of them, whose rows of the
  // step's logits are `rows`.
  void BeginLogits(size_t n_rows, bool by_top, StepLogits* logits);
  absl::Status RunInto(const Batch& batch, Pass pass, bool as_graph, std::span<const int> rows,
                       StepLogits* logits);
  void MakeRoomForLogits();
  // One call after the other, or as a graph.
  absl::Status RunCalls(const Batch& batch, Pass pass, float* logits);
  absl::Status RunGraph(const Batch& batch, Pass pass, float* logits);
  absl::StatusOr<GraphExec> Capture(const Batch& batch, Pass pass);
  void EndStep(const Batch& batch);
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
  std::map<GraphKey, GraphExec> graphs_;
  std::unique_ptr<TierBoard> board_;
  // Scratch of a step.
  std::array<std::vector<DecodeItem>, 1 + kMaxDrafts> decodes_;  // by their drafts
  std::vector<float> scattered_;
  bool gives_top_ = false;
  // Where the backend has the rows that the last step gave as StepLogits::top.
  std::vector<size_t> logits_places_;
  size_t next_place_ = 0;
  std::atomic<uint64_t> steps_{0};
  absl::Status device_error_;
};

}  // namespace hearth::worker
