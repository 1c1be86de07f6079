#include "common/base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"

namespace hearth {
namespace {

struct OpenFile {
  UniqueFd fd;
  uint64_t size;
};

absl::StatusOr<OpenFile> OpenRegular(const std::filesystem::path& path) {
  // O_NONBLOCK: opening a FIFO must not wait for a writer.
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) return ErrnoStatus(errno, absl::StrCat("open ", path.string()));
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) {
    return ErrnoStatus(errno, absl::StrCat("stat ", path.string()));
  }
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path.string(), ": not a regular file"));
  }
  return OpenFile{std::move(fd), static_cast<uint64_t>(info.st_size)};
}

}  // namespace

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

absl::StatusOr<MappedFile> MappedFile::OpenReadOnly(const std::filesystem::path& path) {
  HEARTH_ASSIGN_OR_RETURN(const OpenFile file, OpenRegular(path));
  MappedFile mapped;
  if (file.size == 0) return mapped;
  void* data = ::mmap(nullptr, file.size, PROT_READ, MAP_SHARED, file.fd.get(), 0);
  if (data == MAP_FAILED) return ErrnoStatus(errno, absl::StrCat("map ", path.string()));
  mapped.data_ = static_cast<const std::byte*>(data);
  mapped.size_ = file.size;
  return mapped;
}

absl::StatusOr<std::string> ReadFile(const std::filesystem::path& path, uint64_t max_bytes) {
  HEARTH_ASSIGN_OR_RETURN(const OpenFile file, OpenRegular(path));
  if (file.size > max_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat(path.string(), ": ", file.size, " bytes, the limit is ", max_bytes));
  }
  std::string text(file.size, '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::read(file.fd.get(), text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, absl::StrCat("read ", path.string()));
    if (n == 0) return absl::DataLossError(absl::StrCat(path.string(), ": shrank while read"));
    done += static_cast<size_t>(n);
  }
  return text;
}

absl::Status WriteFileAtomically(const std::filesystem::path& path, std::string_view bytes) {
  const std::string temporary = absl::StrCat(path.string(), ".tmp.", ::getpid());
  UniqueFd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!fd.valid()) return ErrnoStatus(errno, absl::StrCat("create ", temporary));
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = ::write(fd.get(), bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      const absl::Status status = ErrnoStatus(errno, absl::StrCat("write ", temporary));
      ::unlink(temporary.c_str());
      return status;
    }
    done += static_cast<size_t>(n);
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) {
    const absl::Status status = ErrnoStatus(errno, absl::StrCat("rename to ", path.string()));
    ::unlink(temporary.c_str());
    return status;
  }
  return absl::OkStatus();
}

absl::Status MakePrivateDirectory(const std::filesystem::path& path) {
  std::error_code error;
  if (path.has_parent_path()) std::filesystem::create_directories(path.parent_path(), error);
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return ErrnoStatus(errno, absl::StrCat("create folder ", path.string()));
  }
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) {
    return ErrnoStatus(errno, absl::StrCat("stat ", path.string()));
  }
  if (!S_ISDIR(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path.string(), ": not a folder"));
  }
  if (info.st_uid != ::geteuid() || (info.st_mode & 0022) != 0) {
    return absl::PermissionDeniedError(absl::StrCat(
        path.string(), ": must belong to this user and be writable by nobody else (chmod 700)"));
  }
  return absl::OkStatus();
}

}  // namespace hearth
