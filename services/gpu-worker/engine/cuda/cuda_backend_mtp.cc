// Multi-token prediction on a GPU: the ops of the head, and what sequences keep of drafts.
#include <algorithm>

#include "common/base/status_macros.h"
#include "services/gpu-worker/engine/cuda/cuda_backend.h"
#include "services/gpu-worker/ops/cuda/attention_cuda.h"
#include "services/gpu-worker/ops/cuda/cuda_status.h"
#include "services/gpu-worker/ops/cuda/draft_kernels.h"

namespace hearth::worker {

int64_t CudaBackend::DraftTables::Bytes(int n_states) {
  constexpr int64_t kPointers = sizeof(float*), kCounts = sizeof(int32_t);
  return kDecodeRows * ((2 * n_states + 3) * kPointers + kCounts);
}

CudaBackend::DraftTables CudaBackend::DraftTables::At(std::byte* memory, int n_states) {
  DraftTables tables;
  tables.pending = reinterpret_cast<float**>(memory);
  tables.kept = tables.pending + int64_t{n_states} * kDecodeRows;
  tables.hidden = tables.kept + int64_t{n_states} * kDecodeRows;
  tables.hidden_kept = tables.hidden + kDecodeRows;
  tables.hidden_draft = tables.hidden_kept + kDecodeRows;
  tables.n_pending = reinterpret_cast<int32_t*>(tables.hidden_draft + kDecodeRows);
  return tables;
}

// The batch's part of Begin. Layers that the pass doesn't run choose no experts.
void CudaBackend::DescribeDrafts(std::byte* pinned_tables) {
  const DraftTables tables = DraftTables::At(pinned_tables, n_states_);
  has_pending_ = false;
  for (int s = 0; s < rows_.n_sequences; ++s) {
    const auto& sequence =
        static_cast<const CudaSequence&>(*batch_->items[static_cast<size_t>(s)].sequence);
    const int place = sequence.place(), half = sequence.kept_half();
    for (int l = 0; l < n_states_; ++l) {
      tables.kept[l * kDecodeRows + s] = state_->Kept(place, l, half);
      tables.pending[l * kDecodeRows + s] = state_->Kept(place, l, 1 - half);
    }
    tables.hidden[s] = state_->Hidden(place, sequence.n_pending());
    tables.hidden_kept[s] = state_->Hidden(place, 0);
    tables.hidden_draft[s] = state_->DraftHidden(place);
    tables.n_pending[s] = sequence.n_pending();
    has_pending_ = has_pending_ || sequence.n_pending() > 0;
  }
  const int64_t a_layer = int64_t{rows_.total()} * config_.experts_per_token;
  auto* const choices = pinned_choices_.as<int32_t>();
  std::fill_n(batch_->is_draft ? choices : choices + config_.n_layers * a_layer,
              batch_->is_draft ? config_.n_layers * a_layer : a_layer, -1);
}

DeltaDrafts CudaBackend::DraftsOf(int delta_layer) const {
  if (shape_.max_drafts == 0) return {};
  const int64_t at = int64_t{delta_layer} * kDecodeRows;
  return {.n = batch_->items.front().n_drafts,
          .n_pending = has_pending_ ? draft_tables_.n_pending : nullptr,
          .pending = draft_tables_.pending + at,
          .kept = draft_tables_.kept + at};
}

// The prefill's kernels begin with a state that has seen everything.
void CudaBackend::SeePending(const DeltaShape& shape, int delta_layer) {
  DeltaInputs inputs;
  inputs.drafts = DraftsOf(delta_layer);
  Keep(DeltaRuleCuda(shape, {rows_.n_sequences, 0}, inputs, nullptr, nullptr, 0,
                     states_ + int64_t{delta_layer} * kDecodeRows, nullptr, 0, stream_.get()),
       "pending rows");
}

void CudaBackend::ShiftHidden(int width, const float* h, float* before) {
  FlushNorm();
  Keep(ShiftHiddenCuda(rows_, width, positions_, h,
                       {draft_tables_.hidden, draft_tables_.hidden_kept},
                       batch_->items.front().n_drafts + 1, before, stream_.get()),
       "hidden states");
}

void CudaBackend::LoadHidden(int width, bool of_draft, float* out) {
  Keep(GatherRowsCuda(rows_.total(), width,
                      of_draft ? draft_tables_.hidden_draft : draft_tables_.hidden, out,
                      stream_.get()),
       "hidden states");
}

void CudaBackend::KeepDraftHidden(int width, const float* h) {
  FlushNorm();
  Keep(ScatterRowsCuda(rows_.total(), width, h, draft_tables_.hidden_draft, stream_.get()),
       "hidden states");
}

void CudaBackend::Join(int width, const float* a, const float* b, float* out) {
  FlushNorm();
  Keep(JoinRowsCuda(rows_.total(), width, a, b, out, stream_.get()), "hidden states");
}

void CudaBackend::StoreOneBefore(const AttentionShape& shape, int attention_layer,
                                 const AttentionNorms& norms, float* k, const float* v) {
  Keep(StoreOneBeforeCuda(shape, rows_, {nullptr, norms.k, norms.eps}, rotary_table_, positions_, k,
                          v, KvOf(attention_layer), stream_.get()),
       "keys and values of the head");
}

absl::Status CudaBackend::ReadState(const CudaSequence& sequence, int delta_layer,
                                    std::vector<float>* history, std::vector<float>* recurrent) {
  const DeviceStateShape& shape = state_->shape();
  const int place = sequence.place();
  history->resize(static_cast<size_t>((config_.conv_width - 1) * shape.channels));
  recurrent->resize(static_cast<size_t>(shape.recurrent_floats));
  HEARTH_RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(stream_.get()), "a step"));
  const float* const from =
      state_->History(place, delta_layer) + sequence.n_pending() * shape.channels;
  HEARTH_RETURN_IF_ERROR(CudaStatus(
      cudaMemcpy(history->data(), from, history->size() * 4, cudaMemcpyDeviceToHost), "a state"));

  // A copy sees what the state has yet to see.
  struct Tables {
    float* state;
    const float* pending;
    int32_t n_pending;
  };
  DeviceBuffer<float> copy;
  DeviceBuffer<Tables> tables;
  for (const cudaError_t error : {copy.Allocate(shape.recurrent_floats), tables.Allocate(1)}) {
    HEARTH_RETURN_IF_ERROR(CudaStatus(error, "memory for a state"));
  }
  const Tables of{copy.data(), state_->Kept(place, delta_layer, 1 - sequence.kept_half()),
                  sequence.n_pending()};
  HEARTH_RETURN_IF_ERROR(CudaStatus(tables.CopyFrom(&of, 1), "a state"));
  HEARTH_RETURN_IF_ERROR(
      CudaStatus(cudaMemcpyAsync(copy.data(), state_->Recurrent(place, delta_layer),
                                 recurrent->size() * 4, cudaMemcpyDeviceToDevice, stream_.get()),
                 "a state"));
  if (sequence.n_pending() > 0) {
    const ModelConfig& c = config_;
    Tables* const on_device = tables.data();
    DeltaInputs inputs;
    inputs.drafts = {.n_pending = &on_device->n_pending, .pending = &on_device->pending};
    HEARTH_RETURN_IF_ERROR(
        CudaStatus(DeltaRuleCuda({c.linear_key_heads, c.linear_value_heads, c.linear_key_head_dim,
                                  c.linear_value_head_dim},
                                 {1, 0}, inputs, nullptr, nullptr, 0, &on_device->state, nullptr, 0,
                                 stream_.get()),
                   "pending rows"));
  }
  HEARTH_RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(stream_.get()), "pending rows"));
  return CudaStatus(copy.CopyTo(recurrent->data(), copy.size()), "a state");
}

}  // namespace hearth::worker
