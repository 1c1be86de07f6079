#include "common/base/huge_pages.h"

#include <sys/mman.h>

#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>

namespace hearth {

void AdviseHugePages(void* data, size_t bytes) { ::madvise(data, bytes, MADV_HUGEPAGE); }

uint64_t HugeBytes(const void* data, size_t bytes) {
  // The lines of a mapping follow its range: "7f..-7f.. rw-p ...", then "AnonHugePages: n kB".
  std::ifstream maps("/proc/self/smaps");
  const auto begin = reinterpret_cast<uintptr_t>(data), end = begin + bytes;
  uint64_t total = 0;
  bool is_ours = false;
  for (std::string line; std::getline(maps, line);) {
    uint64_t from = 0, to = 0, kib = 0;
    if (std::sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " ", &from, &to) == 2) {
      is_ours = from < end && to > begin;
      continue;
    }
    if (!is_ours) continue;
    for (const char* field : {"AnonHugePages:", "ShmemPmdMapped:", "FilePmdMapped:",
                              "Shared_Hugetlb:", "Private_Hugetlb:"}) {
      if (line.starts_with(field) &&
          std::sscanf(line.c_str() + std::strlen(field), "%" SCNu64, &kib) == 1) {
        total += kib << 10;
      }
    }
  }
  return total;
}

}  // namespace hearth
