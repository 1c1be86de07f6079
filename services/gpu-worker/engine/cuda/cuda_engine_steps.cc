// How the CUDA engine runs a step.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "services/gpu-worker/engine/cuda/cuda_engine.h"
#include "services/gpu-worker/engine/step_check.h"
#include "services/gpu-worker/ops/cuda/cuda_status.h"

namespace hearth::worker {
namespace {

// Rows of logits that the item wants.
size_t RowsOf(const StepItem& item) {
  return item.logits == LogitsWanted::kAll
             ? item.tokens.size()
             : static_cast<size_t>(item.logits == LogitsWanted::kLast);
}

}  // namespace

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
  board_->Sync(&experts_->cache(), {.pcie_bytes = experts_->pcie_bytes(),
                                    .in_place_bytes = experts_->in_place_bytes(),
                                    .cpu_bytes = counts.experts * experts_->layout().bytes,
                                    .cpu_seconds = counts.seconds,
                                    .awaited_seconds = backend_->awaited_seconds(),
                                    .costs = backend_->division().costs()});
}

}  // namespace hearth::worker
