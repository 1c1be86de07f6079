#include "common/experts/segment_file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/huge_pages.h"
#include "common/base/numa.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "common/experts/crc32c.h"

namespace hearth {
namespace {

// Address space that nothing else gets; unmaps at the end what was not taken.
class AddressSpace {
 public:
  explicit AddressSpace(size_t bytes) : bytes_(bytes) {
    void* data =
        ::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data != MAP_FAILED) data_ = static_cast<std::byte*>(data);
  }
  AddressSpace(const AddressSpace&) = delete;
  AddressSpace& operator=(const AddressSpace&) = delete;
  ~AddressSpace() {
    if (data_ != nullptr && bytes_ > 0) ::munmap(data_, bytes_);
  }

  std::byte* data() const { return data_; }
  // Keeps [data, data + bytes), unmaps what is around it.
  void Release(std::byte* data, size_t bytes) {
    if (data > data_) ::munmap(data_, static_cast<size_t>(data - data_));
    std::byte* const end = data_ + bytes_;
    if (data + bytes < end) ::munmap(data + bytes, static_cast<size_t>(end - data - bytes));
    data_ = nullptr;
  }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_;
};

size_t RoundUp(size_t bytes, size_t step) { return (bytes + step - 1) / step * step; }

}  // namespace

std::filesystem::path DefaultSegmentPath(const std::filesystem::path& run_dir) {
  std::error_code ignored;
  std::string folder = std::filesystem::absolute(run_dir, ignored).lexically_normal().string();
  while (folder.size() > 1 && folder.back() == '/') folder.pop_back();
  const uint32_t hash = Crc32c(std::as_bytes(std::span(folder)));
  return absl::StrFormat("/dev/shm/hearth-%d-%08x.segment", ::geteuid(), hash);
}

absl::StatusOr<SegmentFile> CheckSegmentFd(UniqueFd fd, const std::string& name) {
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return ErrnoStatus(errno, absl::StrCat("stat ", name));
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": not a regular file"));
  }
  if (info.st_uid != ::geteuid()) {
    return absl::PermissionDeniedError(absl::StrCat(name, ": belongs to user ", info.st_uid,
                                                    ", not to this user (", ::geteuid(),
                                                    "); remove it or choose another --segment"));
  }
  // A memfd has mode 0777 but no name (no links) by which anybody else could open it.
  if ((info.st_mode & 0022) != 0 && info.st_nlink > 0) {
    return absl::PermissionDeniedError(absl::StrFormat(
        "%s: mode %04o lets other users write it; it must be 0600", name, info.st_mode & 07777));
  }
  SegmentFile file;
  file.fd = std::move(fd);
  file.bytes = static_cast<uint64_t>(info.st_size);
  file.is_sparse = static_cast<uint64_t>(info.st_blocks) * 512 < file.bytes;
  struct statfs system {};
  if (::fstatfs(file.fd.get(), &system) == 0 && system.f_type == HUGETLBFS_MAGIC) {
    file.page_bytes = static_cast<uint64_t>(system.f_bsize);
  }
  file.identity = absl::StrCat(info.st_dev, ":", info.st_ino);
  return file;
}

absl::StatusOr<SegmentFile> OpenSegmentFile(const std::filesystem::path& path, FileAccess access) {
  const int mode = access == FileAccess::kRead ? O_RDONLY : O_RDWR;
  // O_NONBLOCK: a FIFO in the segment's place must not make us wait for a peer.
  UniqueFd fd(::open(path.c_str(), mode | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!fd.valid()) {
    if (errno == ELOOP) {
      return absl::InvalidArgumentError(
          absl::StrCat(path.string(), ": a symbolic link, which is never followed"));
    }
    return ErrnoStatus(errno, absl::StrCat("open segment ", path.string()));
  }
  return CheckSegmentFd(std::move(fd), path.string());
}

absl::StatusOr<SharedMapping> SharedMapping::Map(const SegmentFile& file, FileAccess access) {
  SharedMapping mapping;
  if (file.bytes == 0) return mapping;
  const int protection = access == FileAccess::kRead ? PROT_READ : PROT_READ | PROT_WRITE;
  const auto failed = [&file] {
    return ErrnoStatus(errno, absl::StrCat("map ", file.bytes, " bytes of the segment"));
  };
  // The place in memory must be a multiple of a huge page, as the place in the file is.
  const size_t alignment = std::max<size_t>(kHugePageBytes, file.page_bytes);
  const size_t bytes = RoundUp(file.bytes, file.page_bytes);
  AddressSpace space(bytes + alignment);
  if (space.data() == nullptr) return failed();
  const auto address = reinterpret_cast<uintptr_t>(space.data());
  std::byte* const data = space.data() + (RoundUp(address, alignment) - address);
  if (::mmap(data, file.bytes, protection, MAP_SHARED | MAP_FIXED, file.fd.get(), 0) ==
      MAP_FAILED) {
    return failed();
  }
  space.Release(data, bytes);
  AdviseHugePages(data, bytes);
  if (access == FileAccess::kReadWrite) InterleaveOverNodes(data, bytes);
  mapping.data_ = data;
  mapping.size_ = file.bytes;
  return mapping;
}

absl::Status SharedMapping::Populate() const {
  // EINVAL: a kernel before 5.14, where pages come in as they are touched.
  if (size_ == 0 || ::madvise(data_, size_, MADV_POPULATE_READ) == 0 || errno == EINVAL) {
    return absl::OkStatus();
  }
  return absl::ResourceExhaustedError(absl::StrCat("mapping in ", size_,
                                                   " bytes of the segment: ", std::strerror(errno),
                                                   "; is there enough memory for it?"));
}

absl::Status SharedMapping::PopulateForWriting(uint64_t offset, uint64_t bytes) const {
  if (::madvise(data_ + offset, bytes, MADV_POPULATE_WRITE) == 0) return absl::OkStatus();
  if (errno == EINVAL) return absl::UnimplementedError("populating needs Linux 5.14");
  // EFAULT: what would have been SIGBUS on touching it.
  return absl::ResourceExhaustedError(std::strerror(errno));
}

uint64_t SharedMapping::HugeBytes() const { return hearth::HugeBytes(data_, size_); }

SharedMapping::SharedMapping(SharedMapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

SharedMapping& SharedMapping::operator=(SharedMapping&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

SharedMapping::~SharedMapping() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

}  // namespace hearth
