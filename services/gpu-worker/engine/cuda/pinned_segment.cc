#include "services/gpu-worker/engine/cuda/pinned_segment.h"

#include <algorithm>
#include <cstdint>
#include <utility>

namespace hearth::worker {
namespace {

// Bytes from `at` to the next cut.
size_t ToNextCut(const std::byte* at, size_t piece_bytes) {
  return piece_bytes - reinterpret_cast<uintptr_t>(at) % piece_bytes;
}

}  // namespace

std::vector<std::span<const std::byte>> PiecesOf(std::span<const std::byte> memory,
                                                 size_t piece_bytes) {
  std::vector<std::span<const std::byte>> pieces;
  while (!memory.empty()) {
    const size_t n = std::min(memory.size(), ToNextCut(memory.data(), piece_bytes));
    pieces.push_back(memory.first(n));
    memory = memory.subspan(n);
  }
  return pieces;
}

void PinnedSegment::Register(std::span<const std::byte> memory,
                             const std::function<void()>& on_piece) {
  Release(on_piece);
  is_registered_ = !memory.empty();
  for (const std::span<const std::byte> piece : PiecesOf(memory, piece_bytes_)) {
    if (cudaHostRegister(const_cast<std::byte*>(piece.data()), piece.size(),
                         cudaHostRegisterReadOnly | cudaHostRegisterPortable |
                             cudaHostRegisterMapped) == cudaSuccess) {
      pieces_.push_back(piece);
    } else {
      is_registered_ = false;
      cudaGetLastError();  // forgotten: copies work without
    }
    on_piece();
  }
}

void PinnedSegment::Release(const std::function<void()>& on_piece) {
  for (const std::span<const std::byte> piece : std::exchange(pieces_, {})) {
    cudaHostUnregister(const_cast<std::byte*>(piece.data()));
    on_piece();
  }
  is_registered_ = false;
}

cudaError_t PinnedSegment::Copy(void* to, const std::byte* from, size_t bytes,
                                cudaStream_t stream) const {
  auto* at = static_cast<std::byte*>(to);
  while (bytes > 0) {
    const size_t n = std::min(bytes, ToNextCut(from, piece_bytes_));
    const cudaError_t error = cudaMemcpyAsync(at, from, n, cudaMemcpyHostToDevice, stream);
    if (error != cudaSuccess) return error;
    at += n, from += n, bytes -= n;
  }
  return cudaSuccess;
}

}  // namespace hearth::worker
