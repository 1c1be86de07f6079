#include "common/base/page_buffer.h"

#include <sys/mman.h>

#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"

namespace hearth {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

}  // namespace

absl::StatusOr<PageBuffer> PageBuffer::Allocate(size_t bytes) {
  PageBuffer buffer;
  if (bytes == 0) return buffer;
  const size_t rounded = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  buffer.mapping_bytes_ = rounded + kHugePage;
  void* mapping = ::mmap(nullptr, buffer.mapping_bytes_, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return ErrnoStatus(errno, absl::StrCat("allocate ", bytes, " bytes"));
  buffer.mapping_ = mapping;
  const auto address = reinterpret_cast<uintptr_t>(mapping);
  buffer.data_ = static_cast<std::byte*>(mapping) + (kHugePage - address % kHugePage) % kHugePage;
  buffer.bytes_ = bytes;
  // Both are requests: without them the pages are small, or come at the first touch.
  ::madvise(buffer.data_, rounded, MADV_HUGEPAGE);
  if (::madvise(buffer.data_, rounded, MADV_POPULATE_WRITE) != 0 && errno == ENOMEM) {
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
  // The lines of a mapping follow its range: "7f..-7f.. rw-p ...", then "AnonHugePages: n kB".
  std::ifstream maps("/proc/self/smaps");
  const auto begin = reinterpret_cast<uintptr_t>(data_), end = begin + bytes_;
  uint64_t total = 0;
  bool is_ours = false;
  for (std::string line; std::getline(maps, line);) {
    uint64_t from = 0, to = 0;
    if (std::sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " ", &from, &to) == 2) {
      is_ours = from < end && to > begin;
    } else if (uint64_t kib = 0;
               is_ours && std::sscanf(line.c_str(), "AnonHugePages: %" SCNu64, &kib) == 1) {
      total += kib << 10;
    }
  }
  return total;
}

}  // namespace hearth
