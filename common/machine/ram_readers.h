// Threads that read RAM as fast as they can, while something else is measured.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/page_buffer.h"

namespace hearth {

class RamReaders {
 public:
  // Each of `n_threads` (>= 1) reads its own part of `bytes`, over and over, until this is
  // destroyed. ResourceExhausted without the memory. All of them read when it returns.
  static absl::StatusOr<std::unique_ptr<RamReaders>> Start(int n_threads, uint64_t bytes);
  ~RamReaders() = default;

  // Bytes a second since the last call, or since the start; the caller's thread only.
  double TakeRate();

 private:
  using Clock = std::chrono::steady_clock;
  explicit RamReaders(PageBuffer buffer) : buffer_(std::move(buffer)) {}
  void Read(int thread, int n_threads, const std::stop_token& stop);

  const PageBuffer buffer_;
  std::atomic<uint64_t> bytes_read_{0}, sum_{0};
  std::atomic<int> n_reading_{0};
  uint64_t taken_ = 0;
  Clock::time_point taken_at_;
  std::vector<std::jthread> threads_;  // last: they end first
};

}  // namespace hearth
