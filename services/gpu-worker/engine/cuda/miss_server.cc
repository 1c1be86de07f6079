#include "services/gpu-worker/engine/cuda/miss_server.h"

#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <span>

#include "common/base/status_macros.h"
#include "services/gpu-worker/ops/cuda/cuda_status.h"

namespace hearth::worker {
namespace {

// Between two looks at the stream's errors: some 100 us.
constexpr int kSpinsACheck = 4096;

template <typename T>
T Acquire(const T& value) {
  return std::atomic_ref<T>(const_cast<T&>(value)).load(std::memory_order_acquire);
}

}  // namespace

absl::StatusOr<std::unique_ptr<MissServer>> MissServer::Create(const Shape& shape, Ops* ops,
                                                               Parallel* parallel,
                                                               ExpertSource* experts) {
  auto server = std::unique_ptr<MissServer>(new MissServer(shape, ops, parallel, experts));
  const auto rows = static_cast<uint64_t>(shape.max_rows);
  const uint64_t row_bytes = rows * static_cast<uint64_t>(shape.width) * sizeof(float);
  const uint64_t miss_bytes = rows * static_cast<uint64_t>(shape.top_k) * sizeof(MissedPlace);
  constexpr uint64_t kRequestBytes = 4096;
  HEARTH_RETURN_IF_ERROR(server->memory_.Allocate(kRequestBytes + 2 * row_bytes + miss_bytes));
  HEARTH_RETURN_IF_ERROR(CudaStatus(server->counters_.Allocate(4), "counters"));
  HEARTH_RETURN_IF_ERROR(CudaStatus(cudaMemset(server->counters_.data(), 0, 16), "memset"));
  auto* at = server->memory_.as<std::byte>();
  Exchange& exchange = server->exchange_;
  exchange.request = new (at) MissRequest;
  exchange.h = reinterpret_cast<float*>(at + kRequestBytes);
  exchange.sums = reinterpret_cast<float*>(at + kRequestBytes + row_bytes);
  exchange.misses = reinterpret_cast<MissedPlace*>(at + kRequestBytes + 2 * row_bytes);
  exchange.counters = server->counters_.data();
  return server;
}

uint32_t MissServer::StepsDone() const { return Acquire(exchange_.request->steps_done); }
bool MissServer::has_request() const { return Acquire(exchange_.request->ticket) != answered_; }
uint64_t MissServer::heartbeat() const { return Acquire(exchange_.request->heartbeat); }

absl::Status MissServer::ServeUntil(cudaStream_t stream, const std::function<bool()>& done) {
  error_ = absl::OkStatus();
  for (int spins = 0; !done(); ++spins) {
    if (ServeOne()) {
      spins = 0;
      continue;
    }
    _mm_pause();
    if (spins < kSpinsACheck) continue;
    spins = 0;
    const cudaError_t error = cudaStreamQuery(stream);
    if (error != cudaSuccess && error != cudaErrorNotReady) return CudaStatus(error, "a step");
  }
  if (Acquire(exchange_.request->failed) != 0) {
    return absl::InternalError("the GPU waited too long for experts of the CPU");
  }
  return error_;
}

bool MissServer::ServeOne() {
  const uint32_t ticket = Acquire(exchange_.request->ticket);
  if (ticket == answered_) return false;
  const MissRequest& request = *exchange_.request;
  const auto start = std::chrono::steady_clock::now();
  const absl::Status status = Compute(request);
  if (!status.ok()) {
    std::fill_n(exchange_.sums, int64_t{request.n_rows} * shape_.width, 0.f);
    if (error_.ok()) error_ = status;
  }
  answered_ = ticket;
  std::atomic_ref<uint32_t>(exchange_.request->answer).store(ticket, std::memory_order_release);
  ++counts_.requests;
  counts_.seconds +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return true;
}

absl::Status MissServer::Compute(const MissRequest& request) {
  const int top_k = shape_.top_k;
  const auto n_places = static_cast<size_t>(request.n_rows) * static_cast<size_t>(top_k);
  const std::span<MissedPlace> misses(exchange_.misses, static_cast<size_t>(request.n_misses));
  std::ranges::sort(misses, [](const MissedPlace& a, const MissedPlace& b) {
    return a.expert != b.expert ? a.expert < b.expert : a.place < b.place;
  });
  choice_.ids.assign(n_places, -1);
  choice_.weights.assign(n_places, 0);
  size_t n_work = 0;
  for (size_t i = 0; i < misses.size(); ++i) {
    const MissedPlace& miss = misses[i];
    choice_.ids[static_cast<size_t>(miss.place)] = miss.expert;
    choice_.weights[static_cast<size_t>(miss.place)] = miss.weight;
    if (i == 0 || misses[i - 1].expert != miss.expert) {
      if (work_.size() == n_work) work_.emplace_back();
      ExpertWork& work = work_[n_work++];
      HEARTH_ASSIGN_OR_RETURN(work.expert, experts_.Get(request.layer, miss.expert));
      work.rows.clear();
      work.places.clear();
    }
    work_[n_work - 1].rows.push_back(miss.place / top_k);
    work_[n_work - 1].places.push_back(miss.place);
  }
  counts_.experts += n_work;
  ops_.Experts(request.n_rows, shape_.width, top_k, exchange_.h, std::span(work_).first(n_work),
               choice_, exchange_.sums);
  // An interrupted pool leaves work out; the step's result is not used then.
  return parallel_.interrupted() ? absl::CancelledError("the step was interrupted")
                                 : absl::OkStatus();
}

}  // namespace hearth::worker
