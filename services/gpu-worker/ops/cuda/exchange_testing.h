// What the tests of the exchange share: its memory, a host thread that answers as the engine does,
// and slots.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <thread>
#include <tuple>
#include <vector>

#include "services/gpu-worker/ops/cuda/cuda_testing.h"
#include "services/gpu-worker/ops/cuda/exchange.h"

namespace hearth::worker {

// Host memory that the GPU reads and writes, zeroed.
template <typename T>
class Pinned {
 public:
  explicit Pinned(int64_t n) {
    void* data = nullptr;
    const size_t bytes = static_cast<size_t>(n) * sizeof(T);
    HEARTH_EXPECT_CUDA(cudaHostAlloc(&data, bytes, cudaHostAllocDefault));
    std::memset(data, 0, bytes);
    data_ = static_cast<T*>(data);
  }
  Pinned(const Pinned&) = delete;
  ~Pinned() { cudaFreeHost(data_); }
  T* data() const { return data_; }
  std::vector<T> Values(int64_t n) const { return {data_, data_ + n}; }

 private:
  T* data_ = nullptr;
};

inline constexpr int kMaxRows = 12, kMaxTopK = 32, kMaxWidth = 256;

// The pinned block and the counters of an engine.
struct Memory {
  Memory() {
    std::vector<uint32_t> zeros(kExchangeCounters, 0);
    counters = ToDevice(zeros);
    clock = ToDevice(std::vector<StepClock>(1));
    exchange = {.request = request.data(),
                .misses = misses.data(),
                .h = h.data(),
                .sums = sums.data(),
                .counters = counters.data(),
                .clock = clock.data()};
  }
  uint32_t Load(const uint32_t& value) const {
    return std::atomic_ref<uint32_t>(const_cast<uint32_t&>(value)).load(std::memory_order_acquire);
  }
  Pinned<MissRequest> request{1};
  Pinned<MissedPlace> misses{int64_t{kMaxRows} * kMaxTopK};
  Pinned<float> h{int64_t{kMaxRows} * kMaxWidth}, sums{int64_t{kMaxRows} * kMaxWidth};
  DeviceBuffer<uint32_t> counters;
  DeviceBuffer<StepClock> clock;
  Exchange exchange;
};

// What the host saw when it was asked.
struct Asked {
  int layer = 0, n_rows = 0;
  std::vector<std::tuple<int, int, float>> misses;  // place, expert, weight: sorted
  std::vector<float> h;
};

// Answers until it is destroyed: row r, column c of ticket t gets 1000 t + 10 r + c.
class Answers {
 public:
  Answers(Memory& memory, int width)
      : memory_(memory),
        width_(width),
        thread_([this](const std::stop_token& stop) { Run(stop); }) {}
  static float Sum(uint32_t ticket, int row, int column) {
    return static_cast<float>(1000 * ticket + 10 * static_cast<uint32_t>(row)) +
           static_cast<float>(column);
  }
  // After the stream is idle: ends the thread.
  const std::vector<Asked>& Asks() {
    thread_.request_stop();
    thread_.join();
    return asked_;
  }

 private:
  void Run(const std::stop_token& stop) {
    uint32_t answered = 0;
    const MissRequest& request = *memory_.request.data();
    while (!stop.stop_requested()) {
      const uint32_t ticket = memory_.Load(request.ticket);
      if (ticket == answered) continue;
      Asked asked{.layer = request.layer, .n_rows = request.n_rows, .misses = {}, .h = {}};
      for (int i = 0; i < request.n_misses; ++i) {
        const MissedPlace& miss = memory_.misses.data()[i];
        asked.misses.emplace_back(miss.place, miss.expert, miss.weight);
      }
      std::ranges::sort(asked.misses);
      asked.h.assign(memory_.h.data(), memory_.h.data() + request.n_rows * width_);
      asked_.push_back(std::move(asked));
      for (int r = 0; r < request.n_rows; ++r) {
        for (int c = 0; c < width_; ++c) memory_.sums.data()[r * width_ + c] = Sum(ticket, r, c);
      }
      answered = ticket;
      std::atomic_ref<uint32_t>(memory_.request.data()->answer)
          .store(ticket, std::memory_order_release);
    }
  }

  Memory& memory_;
  const int width_;
  std::vector<Asked> asked_;  // by the thread until it has ended
  std::jthread thread_;
};

class ExchangeTest : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    HEARTH_EXPECT_CUDA(stream_.Create());
    memory_ = std::make_unique<Memory>();
  }
  void Synchronize() { HEARTH_EXPECT_CUDA(cudaStreamSynchronize(stream_.get())); }

  // Slots of experts: every `absent`-th is not there. Never read, so any address will do.
  static std::vector<const uint8_t*> SlotsOf(int n_experts, int absent) {
    std::vector<const uint8_t*> slots;
    for (int e = 0; e < n_experts; ++e) {
      const auto address = static_cast<uintptr_t>(4096 + 64 * e);
      slots.push_back(e % absent == 0 ? nullptr : reinterpret_cast<const uint8_t*>(address));
    }
    return slots;
  }

  Stream stream_;
  std::unique_ptr<Memory> memory_;
};

struct PlaceValue {
  const uint8_t* slot;
  float weight;
  bool operator==(const PlaceValue&) const = default;
};
inline std::vector<PlaceValue> ValuesOf(const DeviceBuffer<ExpertPlace>& places) {
  std::vector<PlaceValue> values;
  for (const ExpertPlace& place : ToHost(places)) values.push_back({place.slot, place.weight});
  return values;
}

}  // namespace hearth::worker
