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
  size_t n_rows = 0;
  bool by_top = true;
  for (const StepItem& item : items) {
    if (static_cast<const CudaSequence*>(item.state)->place() < 0) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "the GPU keeps the states of ", options_.max_sequences, " sequences and all are taken"));
    }
    const size_t n = RowsOf(item);
    n_rows += n;
    by_top = by_top && (n == 0 || item.temperature.has_value()) && n <= kDecodeRows;
  }
  BeginLogits(n_rows, by_top, logits);
  BeginStep();
  return Ended(RunItems(items, logits));
}

void CudaEngine::BeginStep() {
  if (experts_->is_replaced()) experts_->SetProfile(board_->profile());
}

absl::Status CudaEngine::Ended(const absl::Status& status) {
  if (status.ok()) return status;
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

// Prompts as they come, one by one; then what decodes, together. Of an item with drafts only the
// last sure token decodes with them.
absl::Status CudaEngine::RunItems(std::span<const StepItem> items, StepLogits* logits) {
  for (auto& decodes : decodes_) decodes.clear();
  size_t row = 0;
  for (const StepItem& item : items) {
    auto to = static_cast<int>(row);
    row += RowsOf(item);
    const size_t n = item.tokens.size();
    const size_t n_decoded = item.n_drafts > 0 ? static_cast<size_t>(item.n_drafts) + 1 : n == 1;
    StepItem rest = item;
    if (n_decoded < n) {
      StepItem first = item;
      first.n_drafts = 0;
      first.tokens = item.tokens.first(n - n_decoded);
      rest.tokens = item.tokens.last(n_decoded);
      if (n_decoded > 0 && item.logits == LogitsWanted::kLast) first.logits = LogitsWanted::kNone;
      HEARTH_RETURN_IF_ERROR(Read(first, to, logits));
      to += static_cast<int>(RowsOf(first));
    }
    if (n_decoded > 0) decodes_[n_decoded - 1].push_back({rest, to});
  }
  for (const auto& decodes : decodes_) {
    const size_t n_rows = 1 + static_cast<size_t>(&decodes - decodes_.data());
    const size_t at_once = kDecodeRows / n_rows;
    for (size_t first = 0; first < decodes.size(); first += at_once) {
      const auto n = std::min(at_once, decodes.size() - first);
      HEARTH_RETURN_IF_ERROR(Decode(std::span(decodes).subspan(first, n), logits));
    }
  }
  return absl::OkStatus();
}

void CudaEngine::AddRows(const StepItem& item, size_t first, size_t n, Batch* batch) const {
  auto* sequence = static_cast<CudaSequence*>(item.state);
  sequence->Grow(static_cast<int64_t>(n));
  const int begin = batch->n_rows();
  const int end = begin + static_cast<int>(n);
  batch->items.push_back({sequence, {begin, end}, sequence->n_tokens(), item.n_drafts});
  for (size_t i = 0; i < n; ++i) {
    batch->ids.push_back(item.tokens[first + i]);
    batch->positions.push_back(sequence->n_tokens() + static_cast<int64_t>(i));
    const bool wanted = item.logits == LogitsWanted::kAll ||
                        (item.logits == LogitsWanted::kLast && first + i + 1 == item.tokens.size());
    if (!wanted) continue;
    batch->logits_rows.push_back(begin + static_cast<int>(i));
    if (gives_top_) batch->temperatures.push_back(*item.temperature);
  }
}

absl::Status CudaEngine::Decode(std::span<const DecodeItem> items, StepLogits* logits) {
  Batch batch;
  std::vector<int> rows;
  for (const DecodeItem& decode : items) {
    AddRows(decode.item, 0, decode.n_rows(), &batch);
    for (size_t i = 0; i < RowsOf(decode.item); ++i) {
      rows.push_back(decode.row + static_cast<int>(i));
    }
  }
  HEARTH_RETURN_IF_ERROR(
      RunInto(batch, Pass::kStep, /*as_graph=*/!forward_->has_observer(), rows, logits));
  EndStep(batch);
  return absl::OkStatus();
}

absl::Status CudaEngine::Read(const StepItem& item, int row, StepLogits* logits) {
  const auto chunk = static_cast<size_t>(options_.exact ? kDecodeRows : options_.max_batch_tokens);
  for (size_t first = 0; first < item.tokens.size(); first += chunk) {
    Batch batch;
    AddRows(item, first, std::min(chunk, item.tokens.size() - first), &batch);
    std::vector<int> rows;
    for (size_t i = 0; i < batch.logits_rows.size(); ++i) rows.push_back(row++);
    HEARTH_RETURN_IF_ERROR(RunInto(batch, Pass::kStep, /*as_graph=*/false, rows, logits));
    EndStep(batch);
  }
  return absl::OkStatus();
}

absl::Status CudaEngine::RunCalls(const Batch& batch, Pass pass, float* logits) {
  const auto interrupted = [this] { return parallel_->interrupted(); };
  if (pass == Pass::kStep) return forward_->Run(batch, interrupted, logits);
  return forward_->Draft(batch, pass == Pass::kFirstDraft ? 0 : 1, interrupted, logits);
}

absl::StatusOr<GraphExec> CudaEngine::Capture(const Batch& batch, Pass pass) {
  Graph graph;
  HEARTH_RETURN_IF_ERROR(CudaStatus(
      cudaStreamBeginCapture(backend_->stream(), cudaStreamCaptureModeThreadLocal), "capture"));
  backend_->SetCapturing(true);
  const absl::Status status =
      pass == Pass::kStep ? forward_->Enqueue(batch, [] { return false; })
                          : forward_->EnqueueDraft(batch, pass == Pass::kFirstDraft ? 0 : 1);
  backend_->SetCapturing(false);
  const cudaError_t ended = cudaStreamEndCapture(backend_->stream(), graph.put());
  HEARTH_RETURN_IF_ERROR(status);
  HEARTH_RETURN_IF_ERROR(CudaStatus(ended, "capture"));
  GraphExec exec;
  cudaError_t made = cudaGraphInstantiate(exec.put(), graph.get(), 0);
  if (made == cudaSuccess) made = cudaGraphUpload(exec.get(), backend_->stream());
  HEARTH_RETURN_IF_ERROR(CudaStatus(made, "a decode graph"));
  return exec;
}

absl::Status CudaEngine::RunGraph(const Batch& batch, Pass pass, float* logits) {
  HEARTH_RETURN_IF_ERROR(backend_->Begin(batch));
  const GraphKey key{.pass = pass,
                     .n_sequences = static_cast<int>(batch.items.size()),
                     .n_rows = batch.items.front().rows.size(),
                     .has_pending = pass == Pass::kStep && backend_->has_pending(),
                     .never_awaits = backend_->never_awaits(),
                     .position_bucket = backend_->position_bucket()};
  auto found = graphs_.find(key);
  if (found == graphs_.end()) {
    auto exec = Capture(batch, pass);
    if (absl::IsResourceExhausted(exec.status())) {
      // Others have all of the memory: slower, but it goes on.
      cudaGetLastError();
      return RunCalls(batch, pass, logits);
    }
    HEARTH_RETURN_IF_ERROR(exec.status());
    found = graphs_.emplace(key, *std::move(exec)).first;
  }
  HEARTH_RETURN_IF_ERROR(
      CudaStatus(cudaGraphLaunch(found->second.get(), backend_->stream()), "a decode step"));
  HEARTH_RETURN_IF_ERROR(backend_->Finish(logits));
  return parallel_->interrupted() ? absl::CancelledError("the step was interrupted")
                                  : absl::OkStatus();
}

void CudaEngine::EndStep(const Batch& batch) {
  for (const BatchItem& item : batch.items) {
    static_cast<CudaSequence*>(item.sequence)->Advance(item.rows.size(), item.n_drafts);
  }
  ++steps_;
  const MissServer::Counts& counts = misses_->counts();
  board_->Sync(&experts_->cache(), {.pcie_bytes = experts_->pcie_bytes(),
                                    .in_place_bytes = experts_->in_place_bytes(),
                                    .cpu_bytes = counts.experts * experts_->layout().bytes,
                                    .cpu_seconds = counts.seconds,
                                    .awaited_seconds = backend_->awaited_seconds(),
                                    .zero_copy_share = backend_->division().share(1)});
}

}  // namespace hearth::worker
