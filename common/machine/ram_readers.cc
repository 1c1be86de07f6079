#include "common/machine/ram_readers.h"

#include <algorithm>
#include <span>

#include "common/base/status_macros.h"
#include "common/machine/peak_loops.h"

namespace hearth {
namespace {

constexpr uint64_t kPiece = 256 << 10;  // read between two looks at whether to end

}  // namespace

absl::StatusOr<std::unique_ptr<RamReaders>> RamReaders::Start(int n_threads, uint64_t bytes) {
  const uint64_t least = static_cast<uint64_t>(n_threads) * kPiece;
  HEARTH_ASSIGN_OR_RETURN(PageBuffer buffer, PageBuffer::Allocate(std::max(bytes, least)));
  auto readers = std::unique_ptr<RamReaders>(new RamReaders(std::move(buffer)));
  for (int i = 0; i < n_threads; ++i) {
    readers->threads_.emplace_back(
        [raw = readers.get(), i, n_threads](const std::stop_token& stop) {
          raw->Read(i, n_threads, stop);
        });
  }
  for (int n = readers->n_reading_; n < n_threads; n = readers->n_reading_) {
    readers->n_reading_.wait(n);
  }
  readers->TakeRate();
  return readers;
}

void RamReaders::Read(int thread, int n_threads, const std::stop_token& stop) {
  const uint64_t n_pieces = buffer_.bytes() / kPiece / static_cast<uint64_t>(n_threads);
  const std::byte* const part = buffer_.data() + static_cast<uint64_t>(thread) * n_pieces * kPiece;
  uint64_t sum = 0;
  bool is_first = true;
  for (uint64_t i = 0; !stop.stop_requested(); i = (i + 1) % n_pieces) {
    sum ^= ReadOnce({part + i * kPiece, kPiece});
    bytes_read_.fetch_add(kPiece, std::memory_order_relaxed);
    if (std::exchange(is_first, false)) {
      n_reading_.fetch_add(1);
      n_reading_.notify_all();
    }
  }
  sum_.fetch_xor(sum, std::memory_order_relaxed);  // keeps the reads
}

double RamReaders::TakeRate() {
  const Clock::time_point now = Clock::now();
  const uint64_t bytes = bytes_read_.load(std::memory_order_relaxed);
  const double seconds = std::chrono::duration<double>(now - taken_at_).count();
  taken_at_ = now;
  return static_cast<double>(bytes - std::exchange(taken_, bytes)) / seconds;
}

}  // namespace hearth
