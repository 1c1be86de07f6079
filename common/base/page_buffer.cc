#include "common/base/page_buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/huge_pages.h"
#include "common/base/numa.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"

namespace hearth {

absl::StatusOr<PageBuffer> PageBuffer::Reserve(size_t bytes) {
  PageBuffer buffer;
  if (bytes == 0) return buffer;
  const size_t rounded = RoundUpToHugePages(bytes);
  buffer.mapping_bytes_ = rounded + kHugePageBytes;
  void* mapping = ::mmap(nullptr, buffer.mapping_bytes_, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return ErrnoStatus(errno, absl::StrCat("allocate ", bytes, " bytes"));
  buffer.mapping_ = mapping;
  const auto address = reinterpret_cast<uintptr_t>(mapping);
  buffer.data_ = static_cast<std::byte*>(mapping) + (RoundUpToHugePages(address) - address);
  buffer.bytes_ = bytes;
  AdviseHugePages(buffer.data_, rounded);
  InterleaveOverNodes(buffer.data_, rounded);
  return buffer;
}

absl::StatusOr<PageBuffer> PageBuffer::Allocate(size_t bytes) {
  HEARTH_ASSIGN_OR_RETURN(PageBuffer buffer, Reserve(bytes));
  if (bytes == 0) return buffer;
  // A request: without it the pages come at the first touch.
  if (::madvise(buffer.data_, RoundUpToHugePages(bytes), MADV_POPULATE_WRITE) != 0 &&
      errno == ENOMEM) {
    return ErrnoStatus(ENOMEM, absl::StrCat("allocate ", bytes, " bytes"));
  }
  return buffer;
}

PageBuffer::~PageBuffer() {
  if (mapping_ != nullptr) ::munmap(mapping_, mapping_bytes_);
}

PageBuffer::PageBuffer(PageBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      mapping_(std::exchange(other.mapping_, nullptr)),
      mapping_bytes_(std::exchange(other.mapping_bytes_, 0)) {}

PageBuffer& PageBuffer::operator=(PageBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(mapping_, other.mapping_);
  std::swap(mapping_bytes_, other.mapping_bytes_);
  return *this;
}

uint64_t PageBuffer::HugeBytes() const {
  return std::min<uint64_t>(bytes_, hearth::HugeBytes(data_, bytes_));
}

}  // namespace hearth
