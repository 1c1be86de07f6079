// How much memory this process may still take, and what limits it: asked before a segment is
// reserved, because a limit that is hit later is a SIGBUS or the kernel's killer, not an error.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <stop_token>
#include <string>

#include "absl/status/status.h"

namespace hearth {

struct MemoryRoom {
  uint64_t bytes = 0;
  std::string
      limited_by;  // for people: "the memory limit of control group /x", "free space on /dev/shm"
};

// Room under the tightest memory limit of this process's control groups (v1 and v2, up to the
// root); nothing where there is no limit. File cache counts as room, since the kernel drops it
// first. The paths are for tests.
std::optional<MemoryRoom> CgroupRoom(const std::filesystem::path& proc_cgroup = "/proc/self/cgroup",
                                     const std::filesystem::path& cgroup_root = "/sys/fs/cgroup");

// Memory that the machine can give (MemAvailable).
std::optional<MemoryRoom> MachineRoom(const std::filesystem::path& meminfo = "/proc/meminfo");

// Pages of that size that the operator reserved and nobody took; nothing without such a pool.
std::optional<MemoryRoom> HugePagePoolRoom(
    uint64_t page_bytes, const std::filesystem::path& sys_hugepages = "/sys/kernel/mm/hugepages");

// Free space of the file system that holds `folder`.
std::optional<MemoryRoom> FileSystemRoom(const std::filesystem::path& folder);

// Whether files of `folder` are memory (tmpfs, hugetlbfs) and not a disk's.
bool IsInMemory(const std::filesystem::path& folder);

// ResourceExhausted with need, have, limit and what to change, if `need` bytes in `folder` (empty:
// a memfd) don't fit.
absl::Status CheckRoom(uint64_t need, const std::filesystem::path& folder);

// Gives the first `bytes` of a file their memory now (fallocate): ResourceExhausted when there is
// none left, where touching the pages later would be SIGBUS. Cancelled within milliseconds when
// `stop` is requested.
absl::Status ReserveBytes(int fd, uint64_t bytes, std::stop_token stop);

}  // namespace hearth
