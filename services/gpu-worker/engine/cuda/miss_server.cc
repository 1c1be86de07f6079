#include "services/gpu-worker/engine/cuda/miss_server.h"

#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <span>

#include "absl/strings/str_cat.h"
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

absl::Status WaitedTooLong() {
  return absl::InternalError("the GPU waited too long for experts of the CPU");
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
  HEARTH_RETURN_IF_ERROR(CudaStatus(server->counters_.Allocate(kExchangeCounters), "counters"));
  HEARTH_RETURN_IF_ERROR(CudaStatus(
      cudaMemset(server->counters_.data(), 0, static_cast<size_t>(server->counters_.bytes())),
      "memset"));
  HEARTH_RETURN_IF_ERROR(CudaStatus(server->clock_.Allocate(1), "a clock"));
  HEARTH_RETURN_IF_ERROR(
      CudaStatus(cudaMemset(server->clock_.data(), 0, sizeof(StepClock)), "memset"));
  auto* at = server->memory_.as<std::byte>();
  Exchange& exchange = server->exchange_;
  exchange.request = new (at) MissRequest;
  exchange.h = reinterpret_cast<float*>(at + kRequestBytes);
  exchange.sums = reinterpret_cast<float*>(at + kRequestBytes + row_bytes);
  exchange.misses = reinterpret_cast<MissedPlace*>(at + kRequestBytes + 2 * row_bytes);
  exchange.counters = server->counters_.data();
  exchange.clock = server->clock_.data();
  exchange.await_nanoseconds = shape.await_nanoseconds;
  return server;
}

std::unique_ptr<MissServer> MissServer::Over(const Exchange& exchange, const Shape& shape, Ops* ops,
                                             Parallel* parallel, ExpertSource* experts) {
  auto server = std::unique_ptr<MissServer>(new MissServer(shape, ops, parallel, experts));
  server->exchange_ = exchange;
  server->answered_ = exchange.request->ticket;
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
  if (Acquire(exchange_.request->failed) != 0) return WaitedTooLong();
  return error_;
}

void MissServer::Settle(cudaStream_t stream) {
  // Errors of the step are known already, and those of the GPU stay.
  ServeUntil(stream, [stream] {
    return cudaStreamQuery(stream) != cudaErrorNotReady;
  }).IgnoreError();
  if (Acquire(exchange_.request->failed) == 0) return;
  std::atomic_ref<uint32_t>(exchange_.request->failed).store(0, std::memory_order_relaxed);
  cudaMemsetAsync(exchange_.counters + kTimedOutCounter, 0, sizeof(uint32_t), stream);
}

bool MissServer::ServeOne() {
  const uint32_t ticket = Acquire(exchange_.request->ticket);
  if (ticket == answered_) return false;
  const auto start = std::chrono::steady_clock::now();
  Request request;
  absl::Status status = ReadRequest(&request);
  if (status.ok()) status = Compute(request);
  if (!status.ok()) {
    std::fill_n(exchange_.sums, int64_t{request.n_rows} * shape_.width, 0.f);
    if (error_.ok()) error_ = status;
  }
  answered_ = ticket;
  std::atomic_ref<uint32_t>(exchange_.request->answer).store(ticket, std::memory_order_release);
  ++counts_.requests;
  const std::chrono::nanoseconds took = std::chrono::steady_clock::now() - start;
  counts_.seconds += std::chrono::duration<double>(took).count();
  // Outside a graph the answer comes before the kernel that waits for it, and nobody else looks.
  if (error_.ok() && static_cast<uint64_t>(took.count()) > exchange_.await_nanoseconds) {
    error_ = WaitedTooLong();
  }
  return true;
}

// Into misses_.
absl::Status MissServer::ReadRequest(Request* request) {
  const MissRequest asked = *exchange_.request;
  const int n_places = asked.n_rows * shape_.top_k;
  if (asked.n_rows < 1 || asked.n_rows > shape_.max_rows || asked.n_misses < 1 ||
      asked.n_misses > n_places) {
    return absl::InternalError(absl::StrCat("the GPU asked for ", asked.n_misses, " places of ",
                                            asked.n_rows, " rows, at most ", shape_.max_rows));
  }
  *request = {asked.layer, asked.n_rows};
  misses_.assign(exchange_.misses, exchange_.misses + asked.n_misses);
  for (const MissedPlace& miss : misses_) {
    if (miss.place >= 0 && miss.place < n_places) continue;
    return absl::InternalError(absl::StrCat("the GPU asked for place ", miss.place));
  }
  return SortMisses();
}

// By experts, each one's by places: into buckets first, since a prompt has thousands.
absl::Status MissServer::SortMisses() {
  first_of_.assign(static_cast<size_t>(shape_.n_experts) + 1, 0);
  for (const MissedPlace& miss : misses_) {
    if (miss.expert < 0 || miss.expert >= shape_.n_experts) {
      return absl::InternalError(absl::StrCat("the GPU asked for expert ", miss.expert));
    }
    ++first_of_[static_cast<size_t>(miss.expert) + 1];
  }
  std::partial_sum(first_of_.begin(), first_of_.end(), first_of_.begin());
  sorted_.resize(misses_.size());
  for (const MissedPlace& miss : misses_) {
    sorted_[first_of_[static_cast<size_t>(miss.expert)]++] = miss;
  }
  misses_.swap(sorted_);
  const auto same_expert = [](const MissedPlace& a, const MissedPlace& b) {
    return a.expert == b.expert;
  };
  for (auto begin = misses_.begin(); begin != misses_.end();) {
    const auto end = std::find_if_not(
        begin, misses_.end(), [&](const MissedPlace& miss) { return same_expert(miss, *begin); });
    std::ranges::sort(begin, end, {}, &MissedPlace::place);
    begin = end;
  }
  return absl::OkStatus();
}

absl::Status MissServer::Compute(const Request& request) {
  const int top_k = shape_.top_k;
  const auto n_places = static_cast<size_t>(request.n_rows) * static_cast<size_t>(top_k);
  choice_.ids.assign(n_places, -1);
  choice_.weights.assign(n_places, 0);
  size_t n_work = 0;
  for (size_t i = 0; i < misses_.size(); ++i) {
    const MissedPlace& miss = misses_[i];
    choice_.ids[static_cast<size_t>(miss.place)] = miss.expert;
    choice_.weights[static_cast<size_t>(miss.place)] = miss.weight;
    if (i == 0 || misses_[i - 1].expert != miss.expert) {
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
