// Memory for big arrays that stay: whole pages, huge ones where the system gives them, spread over
// the memory nodes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"

namespace hearth {

class PageBuffer {
 public:
  PageBuffer() = default;
  // Zeroed, all of it there before the first use. ResourceExhausted if the memory limit of this
  // process or the machine leaves less.
  static absl::StatusOr<PageBuffer> Allocate(size_t bytes);
  // Only the address space: zeroed pages come as they are touched.
  static absl::StatusOr<PageBuffer> Reserve(size_t bytes);
  ~PageBuffer();
  PageBuffer(PageBuffer&& other) noexcept;
  PageBuffer& operator=(PageBuffer&& other) noexcept;

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  // Bytes that lie in huge pages, as the kernel tells; 0 where it doesn't.
  uint64_t HugeBytes() const;

 private:
  std::byte* data_ = nullptr;  // at a multiple of 2 MiB
  size_t bytes_ = 0;           // as asked for
  void* mapping_ = nullptr;
  size_t mapping_bytes_ = 0;
};

}  // namespace hearth
