// Where the CUDA engine's logits go: whole to who asked, or their largest, and the rows stay with
// the backend. Batches write over each other's there, so a step moves those of earlier batches
// away.
#include <algorithm>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "services/gpu-worker/engine/cuda/cuda_engine.h"

namespace hearth::worker {
namespace {

constexpr size_t kNoPlace = SIZE_MAX;  // of rows to come

}  // namespace

void CudaEngine::BeginLogits(size_t n_rows, bool by_top, StepLogits* logits) {
  gives_top_ = by_top && n_rows <= static_cast<size_t>(backend_->shape().kept_rows - kDecodeRows);
  logits_places_.assign(gives_top_ ? n_rows : 0, kNoPlace);
  next_place_ = kDecodeRows;
  logits->n_rows = static_cast<int>(n_rows);
  logits->values.resize(gives_top_ ? 0 : n_rows * static_cast<size_t>(config_.vocab_size));
  logits->top.resize(gives_top_ ? n_rows : 0);
}

absl::Status CudaEngine::RunInto(const Batch& batch, Pass pass, bool as_graph,
                                 std::span<const int> rows, StepLogits* logits) {
  const auto vocabulary = static_cast<size_t>(config_.vocab_size);
  const auto run = [&](float* to) {
    return as_graph ? RunGraph(batch, pass, to) : RunCalls(batch, pass, to);
  };
  if (gives_top_) {
    MakeRoomForLogits();
    HEARTH_RETURN_IF_ERROR(run(nullptr));
    for (size_t i = 0; i < rows.size(); ++i) {
      const auto row = static_cast<size_t>(rows[i]);
      logits_places_[row] = backend_->LogitsPlace(i);
      logits->top[row] = backend_->Top(i);
    }
    return absl::OkStatus();
  }
  if (rows.empty()) return run(logits->values.data());
  // The backend gives the wanted rows one behind the other: here, unless a prompt's lie between.
  const auto place = [&](int row) {
    return logits->values.data() + static_cast<size_t>(row) * vocabulary;
  };
  if (rows.back() - rows.front() + 1 == static_cast<int>(rows.size())) {
    return run(place(rows.front()));
  }
  scattered_.resize(rows.size() * vocabulary);
  HEARTH_RETURN_IF_ERROR(run(scattered_.data()));
  for (size_t i = 0; i < rows.size(); ++i) {
    std::copy_n(scattered_.data() + i * vocabulary, vocabulary, place(rows[i]));
  }
  return absl::OkStatus();
}

void CudaEngine::MakeRoomForLogits() {
  for (size_t& place : logits_places_) {
    if (place >= kDecodeRows) continue;
    backend_->MoveLogits(place, next_place_);
    place = next_place_++;
  }
}

absl::StatusOr<std::span<const float>> CudaEngine::ReadLogits(int row) {
  if (row < 0 || static_cast<size_t>(row) >= logits_places_.size() ||
      logits_places_[static_cast<size_t>(row)] == kNoPlace) {
    return absl::FailedPreconditionError(absl::StrCat("row ", row, " of the logits is not kept"));
  }
  auto values = backend_->ReadLogits(logits_places_[static_cast<size_t>(row)]);
  if (!values.ok()) NoteDeviceError(values.status());
  return values;
}

}  // namespace hearth::worker
