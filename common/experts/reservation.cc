#include "common/experts/reservation.h"

#include <linux/magic.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "common/base/huge_pages.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "common/base/thread_pool.h"
#include "common/experts/memory_room.h"

namespace hearth {
namespace {

// Handed to a thread at once: a stop is noticed within milliseconds.
constexpr uint64_t kPiece = 64 << 20;
// Zeroing is as fast as memory is written, which few cores use up.
constexpr int kMaxThreads = 8;

// Tries the first huge page of a mapping without memory.
bool GivesHugePagesOnAdvice(const SharedMapping& mapping) {
  return mapping.PopulateForWriting(0, kHugePageBytes).ok() && mapping.HugeBytes() > 0;
}

absl::Status PopulateAll(const SharedMapping& mapping, const std::stop_token& stop) {
  const uint64_t total = mapping.bytes().size();
  std::mutex mutex;
  absl::Status first_error;
  std::atomic<bool> failed{false};
  ThreadPool pool(std::min(UsableCores(), kMaxThreads));
  pool.ParallelFor(static_cast<int>((total + kPiece - 1) / kPiece), [&](int i) {
    const uint64_t begin = static_cast<uint64_t>(i) * kPiece;
    if (failed || stop.stop_requested()) return;
    absl::Status status = mapping.PopulateForWriting(begin, std::min(kPiece, total - begin));
    if (status.ok()) return;
    failed = true;
    const std::lock_guard lock(mutex);
    first_error = std::move(status);
  });
  if (stop.stop_requested()) return absl::CancelledError("stopped while reserving memory");
  return first_error;
}

}  // namespace

absl::StatusOr<SharedMapping> ReserveAndMap(const SegmentFile& file, std::stop_token stop) {
  if (file.page_bytes <= kSmallPageBytes && file.bytes >= kHugePageBytes) {
    if (::ftruncate(file.fd.get(), static_cast<off_t>(file.bytes)) != 0) {
      return ErrnoStatus(errno, absl::StrCat("give the segment ", file.bytes, " bytes"));
    }
    HEARTH_ASSIGN_OR_RETURN(SharedMapping mapping,
                            SharedMapping::Map(file, FileAccess::kReadWrite));
    if (GivesHugePagesOnAdvice(mapping)) {
      const absl::Status populated = PopulateAll(mapping, stop);
      if (populated.ok()) return mapping;
      if (!absl::IsResourceExhausted(populated)) return populated;
    }
    // What is missing now is reserved below, which also says how much was to be had.
  }
  HEARTH_RETURN_IF_ERROR(ReserveBytes(file.fd.get(), file.bytes, stop));
  return SharedMapping::Map(file, FileAccess::kReadWrite);
}

uint64_t PageBytesOf(const std::filesystem::path& folder) {
  struct statfs system {};
  if (::statfs(folder.c_str(), &system) != 0 || system.f_type != HUGETLBFS_MAGIC) return 1;
  return static_cast<uint64_t>(system.f_bsize);
}

}  // namespace hearth
