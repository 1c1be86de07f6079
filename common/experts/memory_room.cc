#include "common/experts/memory_room.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <limits>
#include <sstream>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status.h"

namespace hearth {
namespace {

namespace fs = std::filesystem;

// fallocate in pieces, so that a signal stops the reservation of 40 GB within milliseconds.
constexpr uint64_t kReservePiece = 256 << 20;

std::optional<uint64_t> ReadNumber(const fs::path& file) {
  std::ifstream in(file);
  uint64_t value = 0;
  if (!(in >> value)) return std::nullopt;  // "max" as well
  return value;
}

// "key value" lines; a key in kB ("MemAvailable: 12 kB") is scaled by the caller.
uint64_t ReadField(const fs::path& file, std::string_view key) {
  std::ifstream in(file);
  std::string line;
  while (std::getline(in, line)) {
    std::istringstream words(line);
    std::string name;
    uint64_t value = 0;
    if (words >> name >> value && name == key) return value;
  }
  return 0;
}

// The names that control group v1 and v2 give to the same things.
struct MemoryFiles {
  const char* limit;
  const char* usage;
  const char* inactive_file;
  const char* active_file;
};
constexpr MemoryFiles kV1 = {"memory.limit_in_bytes", "memory.usage_in_bytes",
                             "total_inactive_file", "total_active_file"};
constexpr MemoryFiles kV2 = {"memory.max", "memory.current", "inactive_file", "active_file"};

std::optional<uint64_t> RoomOf(const fs::path& group, const MemoryFiles& files) {
  const auto limit = ReadNumber(group / files.limit);
  const auto usage = ReadNumber(group / files.usage);
  // v1 writes "no limit" as a number near 2^63.
  if (!limit || !usage || *limit > (uint64_t{1} << 60)) return std::nullopt;
  const uint64_t cache = ReadField(group / "memory.stat", files.inactive_file) +
                         ReadField(group / "memory.stat", files.active_file);
  const uint64_t used = *usage - std::min(*usage, cache);
  return *limit - std::min(*limit, used);
}

// The tightest of a group and its parents, since each counts its children.
void Tighten(const fs::path& mount, fs::path group, const MemoryFiles& files,
             std::optional<MemoryRoom>* tightest) {
  while (true) {
    const auto room = RoomOf(mount / group.relative_path(), files);
    if (room && (!*tightest || *room < (*tightest)->bytes)) {
      *tightest =
          MemoryRoom{*room, absl::StrCat("the memory limit of control group ", group.string())};
    }
    if (!group.has_relative_path()) return;
    group = group.parent_path();
  }
}

bool IsHugetlbfs(const fs::path& folder, uint64_t* page_bytes = nullptr) {
  struct statfs system {};
  if (::statfs(folder.c_str(), &system) != 0 || system.f_type != HUGETLBFS_MAGIC) return false;
  if (page_bytes != nullptr) *page_bytes = static_cast<uint64_t>(system.f_bsize);
  return true;
}

std::string Mib(uint64_t bytes) {
  return absl::StrFormat("%.1f MiB", static_cast<double>(bytes) / (1 << 20));
}

}  // namespace

std::optional<MemoryRoom> CgroupRoom(const fs::path& proc_cgroup, const fs::path& cgroup_root) {
  std::optional<MemoryRoom> tightest;
  std::ifstream in(proc_cgroup);
  std::string line;  // "4:memory:/path" (v1) or "0::/path" (v2)
  while (std::getline(in, line)) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const fs::path group = fs::path(line.substr(second + 1)).lexically_normal();
    // Inside a container the group's own folder is mounted at the root, so both places are looked
    // at.
    if (controllers == "memory") Tighten(cgroup_root / "memory", group, kV1, &tightest);
    if (controllers.empty()) Tighten(cgroup_root, group, kV2, &tightest);
  }
  return tightest;
}

std::optional<MemoryRoom> MachineRoom(const fs::path& meminfo) {
  const uint64_t kib = ReadField(meminfo, "MemAvailable:");
  if (kib == 0) return std::nullopt;
  return MemoryRoom{kib * 1024, "this machine's available memory"};
}

std::optional<MemoryRoom> HugePagePoolRoom(uint64_t page_bytes, const fs::path& sys_hugepages) {
  const fs::path pool = sys_hugepages / absl::StrCat("hugepages-", page_bytes / 1024, "kB");
  const auto free = ReadNumber(pool / "free_hugepages");
  if (!free) return std::nullopt;
  const uint64_t taken = std::min(*free, ReadNumber(pool / "resv_hugepages").value_or(0));
  return MemoryRoom{(*free - taken) * page_bytes, "the pool of reserved huge pages"};
}

std::optional<MemoryRoom> FileSystemRoom(const fs::path& folder) {
  // A hugetlbfs without a size of its own says 0.
  uint64_t page_bytes = 0;
  if (IsHugetlbfs(folder, &page_bytes)) return HugePagePoolRoom(page_bytes);
  struct statvfs info {};
  if (::statvfs(folder.c_str(), &info) != 0) return std::nullopt;
  return MemoryRoom{info.f_bavail * info.f_frsize, absl::StrCat("free space on ", folder.string())};
}

bool IsInMemory(const fs::path& folder) {
  struct statfs info {};
  if (::statfs(folder.c_str(), &info) != 0) return false;
  return info.f_type == TMPFS_MAGIC || info.f_type == HUGETLBFS_MAGIC || info.f_type == RAMFS_MAGIC;
}

absl::Status CheckRoom(uint64_t need, const fs::path& folder) {
  std::vector<std::optional<MemoryRoom>> rooms;
  if (!folder.empty()) rooms.push_back(FileSystemRoom(folder));
  // Reserved huge pages are no longer part of what other limits count.
  if (!IsHugetlbfs(folder)) rooms.insert(rooms.end(), {CgroupRoom(), MachineRoom()});
  std::erase(rooms, std::nullopt);
  const auto tightest =
      std::ranges::min_element(rooms, {}, [](const auto& room) { return room->bytes; });
  if (tightest == rooms.end() || (*tightest)->bytes >= need) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "the experts need ", Mib(need), ", but ", (*tightest)->limited_by, " leaves ",
      Mib((*tightest)->bytes),
      "; free memory, raise that limit (a tmpfs: mount -o remount,size=...), or choose a smaller ",
      "model"));
}

absl::Status ReserveBytes(int fd, uint64_t bytes, std::stop_token stop) {
  for (uint64_t done = 0; done < bytes;) {
    if (stop.stop_requested()) return absl::CancelledError("stopped while reserving memory");
    const uint64_t piece = std::min(kReservePiece, bytes - done);
    if (::fallocate(fd, 0, static_cast<off_t>(done), static_cast<off_t>(piece)) == 0) {
      done += piece;
    } else if (errno == ENOSPC || errno == ENOMEM || errno == EFBIG) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "the experts need ", bytes, " bytes of shared memory, but it was full after ", done,
          "; free memory, enlarge that tmpfs (mount -o remount,size=...), or "
          "choose a smaller model"));
    } else if (errno != EINTR) {
      return ErrnoStatus(errno, absl::StrCat("reserve ", bytes, " bytes for the segment"));
    }
  }
  return absl::OkStatus();
}

}  // namespace hearth
