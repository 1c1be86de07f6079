// The memory that all experts lie in, registered so that the device reads and copies it at the
// link's speed. Engine's thread only.
//
// 40 GB in one call take a second in huge pages, two in small ones (on an H100's host), in which
// nothing would show that the engine is alive: it goes piece by piece, and the caller hears of
// each.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>
#include <span>
#include <vector>

namespace hearth::worker {

class PinnedSegment {
 public:
  static constexpr size_t kPieceBytes = size_t{1} << 30;
  // `piece_bytes`: a multiple of the page size.
  explicit PinnedSegment(size_t piece_bytes = kPieceBytes) : piece_bytes_(piece_bytes) {}
  ~PinnedSegment() {
    Release([] {});
  }
  PinnedSegment(const PinnedSegment&) = delete;
  PinnedSegment& operator=(const PinnedSegment&) = delete;

  // Instead of what was registered before. What can't be registered works too, at half the speed.
  void Register(std::span<const std::byte> memory, const std::function<void()>& on_piece);
  // Nothing may read the memory any more, which may then go.
  void Release(const std::function<void()>& on_piece);
  // Whether kernels can read all of the memory where it is.
  bool is_registered() const { return is_registered_; }

  // Host to device, as cudaMemcpyAsync, which takes no memory of two registrations at once.
  cudaError_t Copy(void* to, const std::byte* from, size_t bytes, cudaStream_t stream) const;

 private:
  const size_t piece_bytes_;
  std::vector<std::span<const std::byte>> pieces_;  // the registered ones
  bool is_registered_ = false;
};

// `memory` cut at the addresses that are multiples of `piece_bytes`.
std::vector<std::span<const std::byte>> PiecesOf(std::span<const std::byte> memory,
                                                 size_t piece_bytes);

}  // namespace hearth::worker
