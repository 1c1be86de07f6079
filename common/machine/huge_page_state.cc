#include "common/machine/huge_page_state.h"

#include <fstream>

#include "common/base/huge_pages.h"

namespace hearth {
namespace {

std::string Chosen(const std::filesystem::path& file) {
  std::ifstream in(file);
  std::string line;
  std::getline(in, line);
  const size_t open = line.find('['), close = line.find(']');
  if (open == std::string::npos || close == std::string::npos || close < open) return "unknown";
  return line.substr(open + 1, close - open - 1);
}

uint64_t Pages(const std::filesystem::path& file) {
  std::ifstream in(file);
  uint64_t pages = 0;
  return in >> pages ? pages : 0;
}

}  // namespace

HugePageState ReadHugePageState(const std::filesystem::path& sys_mm) {
  HugePageState state;
  state.anonymous = Chosen(sys_mm / "transparent_hugepage/enabled");
  state.shmem = Chosen(sys_mm / "transparent_hugepage/shmem_enabled");
  const auto pool = sys_mm / "hugepages/hugepages-2048kB";
  state.pool_bytes = Pages(pool / "nr_hugepages") * kHugePageBytes;
  state.pool_free_bytes = Pages(pool / "free_hugepages") * kHugePageBytes;
  return state;
}

}  // namespace hearth
