// The end of CudaBackend's steps: logits, the largest of each row, and copies of whole rows.
#include <algorithm>

#include "common/base/status_macros.h"
#include "services/gpu-worker/engine/cuda/cuda_backend.h"
#include "services/gpu-worker/ops/cuda/cuda_status.h"
#include "services/gpu-worker/ops/cuda/top_logits_cuda.h"

namespace hearth::worker {

// Of a decode (a token and its drafts) all rows, whichever want their logits: so a graph serves
// all.
bool CudaBackend::computes_all_logits() const {
  return is_decode() && rows_.n_rows == 1 + batch_->items.front().n_drafts;
}

int CudaBackend::n_logits() const {
  return computes_all_logits() ? rows_.total() : static_cast<int>(batch_->logits_rows.size());
}

size_t CudaBackend::LogitsPlace(size_t i) const {
  return computes_all_logits() ? static_cast<size_t>(batch_->logits_rows[i]) : i;
}

// Up to kDecodeRows rows are kept; more leave in chunks of as many.
void CudaBackend::Head(const LinearRef& head, const float* h) {
  FlushNorm();  // a head has blocks enough to norm it a thousand times
  const int n = n_logits();
  for (int first = 0; first < n; first += kDecodeRows) {
    if (first > 0) Drain();
    const int chunk = std::min(kDecodeRows, n - first);
    const int row = computes_all_logits() ? first : batch_->logits_rows[static_cast<size_t>(first)];
    const Product product[] = {{&head, logits_}};
    FewRowsLinears(product, chunk, h + row * head.in);
    if (n <= kDecodeRows) {
      FindTop(n, head.out);
      continue;
    }
    pending_logits_ = chunk * head.out;
    Keep(cudaMemcpyAsync(pinned_logits_.as<float>(), logits_,
                         static_cast<size_t>(pending_logits_) * 4, cudaMemcpyDeviceToHost,
                         stream_.get()),
         "logits");
  }
  Keep(FinishStepCuda(misses_.exchange(), stream_.get()), "the end of a step");
}

void CudaBackend::FindTop(int n_rows, int64_t vocabulary) {
  Keep(TopLogitsCuda(n_rows, static_cast<int>(vocabulary), logits_, temperatures_, top_scratch_,
                     pinned_top_.as<TopLogitsRow>(), stream_.get()),
       "the largest logits");
}

void CudaBackend::MoveLogits(size_t from, size_t to) {
  const auto vocabulary = static_cast<size_t>(config_.vocab_size);
  Keep(cudaMemcpyAsync(logits_ + to * vocabulary, logits_ + from * vocabulary, vocabulary * 4,
                       cudaMemcpyDeviceToDevice, stream_.get()),
       "a row of logits");
}

// Takes the chunk of logits that is on its way.
void CudaBackend::Drain() {
  Keep(cudaStreamSynchronize(stream_.get()), "a step");
  const float* from = pinned_logits_.as<float>();
  logits_host_.insert(logits_host_.end(), from, from + pending_logits_);
  pending_logits_ = 0;
}

absl::StatusOr<std::span<const float>> CudaBackend::ReadLogits(size_t place) {
  const auto vocabulary = static_cast<size_t>(config_.vocab_size);
  float* const row = pinned_logits_.as<float>();
  HEARTH_RETURN_IF_ERROR(
      CudaStatus(cudaMemcpyAsync(row, logits_ + place * vocabulary, vocabulary * 4,
                                 cudaMemcpyDeviceToHost, stream_.get()),
                 "a row of logits"));
  HEARTH_RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(stream_.get()), "a row of logits"));
  return std::span<const float>(row, vocabulary);
}

absl::Status CudaBackend::CopyLogits(float* logits) {
  if (n_logits() > kDecodeRows) {
    logits = std::ranges::copy(logits_host_, logits).out;
    std::copy_n(pinned_logits_.as<float>(), pending_logits_, logits);
    return absl::OkStatus();
  }
  for (size_t i = 0; i < batch_->logits_rows.size(); ++i) {
    HEARTH_ASSIGN_OR_RETURN(const std::span<const float> row, ReadLogits(LogitsPlace(i)));
    logits = std::ranges::copy(row, logits).out;
  }
  return absl::OkStatus();
}

}  // namespace hearth::worker
