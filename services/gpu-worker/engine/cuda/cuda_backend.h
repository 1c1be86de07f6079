// The op table on a GPU: every call enqueues kernels on one stream.
//
// A batch is S sequences of n rows each. Up to kDecodeRows rows go through the decode kernels,
// whose calls can be captured into a graph: they depend on the batch's S and n alone, everything
// else is read from device memory that Begin fills. More rows (one sequence's prefill) go through
// the tensor-core kernels; their experts that are not in VRAM are computed by the CPU, or from
// kStreamRows rows on streamed to the GPU.
#pragma once

#include <array>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/checkpoint/config.h"
#include "services/gpu-worker/engine/backend.h"
#include "services/gpu-worker/engine/cuda/device_experts.h"
#include "services/gpu-worker/engine/cuda/device_state.h"
#include "services/gpu-worker/engine/cuda/device_weights.h"
#include "services/gpu-worker/engine/cuda/miss_server.h"
#include "services/gpu-worker/experts/miss_division.h"
#include "services/gpu-worker/ops/cuda/attention_cuda.h"
#include "services/gpu-worker/ops/cuda/decode_linear.h"
#include "services/gpu-worker/ops/cuda/delta_cuda.h"
#include "services/gpu-worker/ops/cuda/device.h"
#include "services/gpu-worker/ops/cuda/linear.h"
#include "services/gpu-worker/ops/cuda/rounded_rows.h"
#include "services/gpu-worker/sampling/top_logits.h"

namespace hearth::worker {

inline constexpr int kDecodeRows = 8;

struct CudaBackendShape {
  int max_rows = 0;           // of a batch
  int exchange_rows = 0;      // of a batch whose misses the CPU computes: kDecodeRows at least
  int64_t max_positions = 0;  // of a sequence
  int kept_rows = 0;          // of logits: kDecodeRows for a batch, others for those before it
  bool exact = false;
  int max_drafts = 0;  // 0: no multi-token prediction
};

class CudaBackend final : public Backend {
 public:
  // Borrows everything but the state.
  static absl::StatusOr<std::unique_ptr<CudaBackend>> Create(
      const ModelConfig& config, const CudaBackendShape& shape, const DeviceWeights* weights,
      std::shared_ptr<DeviceState> state, DeviceExperts* experts, MissServer* misses,
      RoutingOverride* routing);

  // Device bytes that Create and Forward's Allocate calls will take.
  static uint64_t ScratchBytes(const ModelConfig& config, const CudaBackendShape& shape);

  float* Allocate(int64_t n) override;
  absl::Status Begin(const Batch& batch) override;
  void Embed(const LinearRef& table, float* x) override;
  void AddRmsNorm(int width, float* x, const float* delta, const float* weight, float eps,
                  float* h) override;
  void Linears(std::span<const Product> products, const float* x) override;
  void RotateAndStore(const AttentionShape& shape, int attention_layer, const AttentionNorms& norms,
                      const float* query_gate, float* k, const float* v, float* q) override;
  void Attention(const AttentionShape& shape, int attention_layer, const float* q,
                 const float* query_gate, float* out) override;
  void DeltaRule(const DeltaShape& shape, int delta_layer, const DeltaWeights& weights,
                 const float* qkvz, const float* ba, float* out) override;
  absl::Status Experts(const Routing& routing, const SharedExpert& shared, int width,
                       const float* h, float* out) override;
  void Mlp(const ExpertRef& mlp, const float* h, float* out) override;
  void Head(const LinearRef& head, const float* h) override;
  absl::Status Finish(float* logits) override;
  void ShiftHidden(int width, const float* h, float* before) override;
  void LoadHidden(int width, bool of_draft, float* out) override;
  void KeepDraftHidden(int width, const float* h) override;
  void Join(int width, const float* a, const float* b, float* out) override;
  void StoreOneBefore(const AttentionShape& shape, int attention_layer, const AttentionNorms& norms,
                      float* k, const float* v) override;
  std::vector<float> Read(const float* values, int64_t n) override;
  const RouterChoice& Choice() override;

  // Logits of up to kDecodeRows wanted rows stay on the device until the next batch: the i-th's
  // place (below kDecodeRows), and its largest.
  size_t LogitsPlace(size_t i) const;
  const TopLogitsRow& Top(size_t i) const { return pinned_top_.as<TopLogitsRow>()[LogitsPlace(i)]; }
  // Copies a row to a place that no batch writes: one of [kDecodeRows, kept_rows).
  void MoveLogits(size_t from, size_t to);
  // Copies a row to the host, where it stays until the next call or batch.
  absl::StatusOr<std::span<const float>> ReadLogits(size_t place);

  const CudaBackendShape& shape() const { return shape_; }
  cudaStream_t stream() const { return stream_.get(); }
  // Zeroes a new sequence's states; an error is the next step's.
  void Zero(const CudaSequence& sequence);
  // A delta-net layer's states after all tokens seen: history [W - 1, channels], oldest first, and
  // recurrent [Hv, dk, dv]. Waits for the step, and takes memory for the time.
  absl::Status ReadState(const CudaSequence& sequence, int delta_layer, std::vector<float>* history,
                         std::vector<float>* recurrent);
  // After a step that failed: waits until nothing of it runs, so that buffers and slots can be
  // written again.
  void Settle() { misses_.Settle(stream_.get()); }
  // While a graph is being captured nothing may wait.
  void SetCapturing(bool capturing) { is_capturing_ = capturing; }
  // Positions that the captured attention can serve: a power of two above the batch's.
  int64_t position_bucket() const { return position_bucket_; }
  // Whether a sequence of the batch has drafts that its states have yet to see: other calls then.
  bool has_pending() const { return has_pending_; }
  // Whether no layer of this step can miss, so that a captured one must not serve others.
  bool never_awaits() const { return experts_.has_all(); }
  absl::Status error() const;
  const MissDivision& division() const { return division_; }
  // That decode steps waited for the CPU, since the start.
  double awaited_seconds() const { return awaited_seconds_; }

 private:
  CudaBackend(const ModelConfig& config, const CudaBackendShape& shape,
              std::shared_ptr<DeviceState> state, DeviceExperts* experts, MissServer* misses,
              RoutingOverride* routing);
  absl::Status AllocateAll(const DeviceWeights& weights);
  absl::Status AllocateBatch();
  absl::Status AllocateLogits();
  absl::Status AllocateRotary();
  absl::Status AllocateActivations();
  template <typename T>
  T* Take(int64_t n);
  void Keep(cudaError_t error, std::string_view op);
  bool is_decode() const { return rows_.total() <= kDecodeRows; }
  bool is_streaming() const { return rows_.total() > shape_.exchange_rows; }
  absl::Status UploadPages(int s, const CudaSequence& sequence);
  // Of multi-token prediction, cuda_backend_mtp.cc.
  void DescribeDrafts(std::byte* pinned_tables);
  DeltaDrafts DraftsOf(int delta_layer) const;
  void SeePending(const DeltaShape& shape, int delta_layer);
  int n_layers() const { return config_.n_layers + (shape_.max_drafts > 0 ? 1 : 0); }
  absl::Status ImposeRouting();
  void FewRowsLinears(std::span<const Product> products, int n_rows, const float* x);
  std::optional<DecodeLinear> JobOf(const Product& product);
  void FewRows(const LinearRef& weights, int n_rows, const float* x, float* y);
  void PrefillLinears(std::span<const Product> products, const float* x);
  DeviceKv KvOf(int attention_layer) const;
  absl::Status PrefillExperts(const Routing& routing, const SharedExpert& shared, int width,
                              const float* h, float* out);
  absl::Status DecodeExperts(const Routing& routing, const SharedExpert& shared, int width,
                             const float* h, float* out);
  DispatchInputs DispatchOf(const Routing& routing, const float* h) const;
  int32_t* ChoicesOf(const Routing& routing) const;
  const int32_t* ImposedOf(const Routing& routing) const;
  void RecordDispatched();
  absl::StatusOr<int> PlanStreamed(const Routing& routing);
  void RunPromptExperts(const Routing& routing, int width, bool streams, bool asks, const float* h,
                        float* out);
  void DispatchPrompt(const Routing& routing, int width, bool streams, const float* h);
  void AddShared(const SharedExpert& shared, int width, const float* h, float* out);
  absl::Status Await(int width, float* out);
  absl::Status ServeUntilDispatched();
  bool computes_all_logits() const;
  int n_logits() const;
  void FindTop(int n_rows, int64_t vocabulary);
  void Drain();
  absl::Status CopyLogits(float* logits);

  const ModelConfig& config_;
  const CudaBackendShape shape_;
  const std::shared_ptr<DeviceState> state_;
  DeviceExperts& experts_;
  MissServer& misses_;
  RoutingOverride* const routing_;
  const int n_states_;  // delta-net layers
  MissDivision division_;
  double awaited_seconds_ = 0;

  Stream stream_;
  Event dispatched_;
  std::deque<DeviceBuffer<std::byte>> memory_;  // elements never move
  const DeviceWeights* weights_ = nullptr;
  // Levels of 4-bit weights as the integer kernels take them; nothing where they can't.
  std::deque<std::pair<std::array<float, 16>, std::optional<DecodeLevels>>> levels_;
  const std::optional<DecodeLevels>& LevelsOf(const float (&levels)[16]);
  // Activations that the kernel which made them rounded for the integer kernels, in decode steps:
  // h of a norm, and what attention or the delta rule gave.
  struct Rounded {
    RoundedRows rows;
    const float* of = nullptr;  // null: not rounded in this step
  };
  Rounded rounded_h_, rounded_mixer_;
  RoundedRows Round(const float* of, int width, Rounded* to);
  RoundedRows RoundedOf(const float* x) const;
  // A norm of a few rows waits for the linears that read it and becomes a part of their launch;
  // whatever else comes first flushes it. Since all blocks of that launch read the residual
  // stream, it then moves between two buffers; Forward knows it by the one that it gave.
  struct PendingNorm {
    int width = 0;
    float* x = nullptr;  // null: none
    const float* delta = nullptr;
    const float* weight = nullptr;
    float eps = 0;
    float* h = nullptr;
  };
  PendingNorm pending_norm_;
  const float* residual_of_ = nullptr;  // Forward's
  float* residual_at_ = nullptr;        // where its values are
  float* residual_spare_ = nullptr;     // [kMaxNormedRows, D]
  float* ResidualOf(float* x) { return x == residual_of_ ? residual_at_ : x; }
  bool CanFoldNorm(int width, const float* h) const;
  void FoldNorm(const DecodeLinear* linears, int n_linears);
  void FlushNorm();
  const void* embedding_ = nullptr;
  int embedding_bits_ = 16;

  const Batch* batch_ = nullptr;
  SequenceRows rows_;
  int64_t position_bucket_ = 0;
  bool is_capturing_ = false;
  cudaError_t error_ = cudaSuccess;
  std::string failed_op_;

  // A batch's description: one pinned block and its copy on the device.
  PinnedBuffer pinned_batch_, pinned_pages_, pinned_imposed_, pinned_choices_, pinned_logits_,
      pinned_top_;
  std::byte* batch_memory_ = nullptr;
  int64_t batch_bytes_ = 0;
  int64_t* positions_ = nullptr;  // [max_rows]
  float** histories_ = nullptr;   // [delta layers, kDecodeRows]
  float** states_ = nullptr;      // [delta layers, kDecodeRows]
  // With drafts only.
  struct DraftTables {
    static int64_t Bytes(int n_states);
    static DraftTables At(std::byte* memory, int n_states);
    float** pending = nullptr;       // [delta layers, kDecodeRows]
    float** kept = nullptr;          // [delta layers, kDecodeRows]
    float** hidden = nullptr;        // [kDecodeRows]: of each sequence's last token
    float** hidden_kept = nullptr;   // [kDecodeRows]: where the step's last ones go
    float** hidden_draft = nullptr;  // [kDecodeRows]
    int32_t* n_pending = nullptr;    // [kDecodeRows]
  };
  DraftTables draft_tables_;
  bool has_pending_ = false;
  int32_t* ids_ = nullptr;         // [max_rows]
  float* temperatures_ = nullptr;  // [kDecodeRows], of the logits' rows
  uint16_t* in_place_ = nullptr;   // [kDecodeRows * top_k + 1]
  int32_t* page_table_ = nullptr;  // [kDecodeRows, max_pages]
  int64_t max_pages_ = 0;
  struct PageRow {
    uint64_t sequence = 0;
    uint64_t version = 0;
  };
  PageRow page_rows_[kDecodeRows];  // what the device's table holds
  int32_t* imposed_ = nullptr;      // [n_layers, max_rows * top_k]

  double* rotary_ = nullptr;
  DeviceRotary rotary_table_;
  // Queries and keys that wait for their attention, which makes them itself in steps of one row a
  // sequence.
  NewPosition pending_rotary_;          // k is null: none
  uint32_t* delta_arrivals_ = nullptr;  // [kDecodeRows, Hk]
  // Scratch of ops that are finer than the table's.
  float *shared_, *mixed_, *decay_, *beta_, *attention_scratch_, *inner_, *inner2_, *logits_, *act_;
  std::byte* delta_scratch_ = nullptr;
  int32_t* choice_ids_ = nullptr;
  float* choice_weights_ = nullptr;
  ExpertPlace* places_ = nullptr;
  uint8_t* is_here_ = nullptr;
  uint16_t *half_rows_, *high_rows_, *low_rows_, *expert_act_, *products_;
  PlaceGroups groups_;

  std::byte* top_scratch_ = nullptr;
  std::vector<float> logits_host_;  // of chunks that were drained
  int64_t pending_logits_ = 0;      // values in pinned_logits_
  uint32_t steps_ = 0;              // enqueued
  RouterChoice choice_;             // for observers
};

}  // namespace hearth::worker
