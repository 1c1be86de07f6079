// What this system allows of huge pages, as its operator set it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace hearth {

struct HugePageState {
  // The chosen word of "always [madvise] never"; "unknown" where the kernel has none.
  std::string anonymous = "unknown";
  std::string shmem = "unknown";  // memfd; a tmpfs has an option of its own
  uint64_t pool_bytes = 0;        // reserved for hugetlbfs, of 2 MiB
  uint64_t pool_free_bytes = 0;
  bool gives_anonymous() const { return anonymous == "always" || anonymous == "madvise"; }
};
HugePageState ReadHugePageState(const std::filesystem::path& sys_mm = "/sys/kernel/mm");

}  // namespace hearth
