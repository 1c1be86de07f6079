#include "common/machine/machine_info.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <fstream>

#include "absl/strings/str_cat.h"
#include "common/base/thread_pool.h"

namespace hearth {
namespace {

constexpr int kRequestFeature = 0x1023;  // ARCH_REQ_XCOMP_PERM
constexpr int kTileData = 18;            // XFEATURE_XTILEDATA

bool MayUseTiles() { return ::syscall(SYS_arch_prctl, kRequestFeature, kTileData) == 0; }

CpuFeatures Detect() {
  CpuFeatures cpu;
  cpu.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  cpu.avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  cpu.avx512_vnni = cpu.avx512 && __builtin_cpu_supports("avx512vnni");
  cpu.avx512_vbmi = cpu.avx512 && __builtin_cpu_supports("avx512vbmi");
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d) != 0) {
    cpu.avx_vnni = cpu.avx2 && (a >> 4 & 1) != 0;
    cpu.avx512_bf16 = cpu.avx512 && (a >> 5 & 1) != 0;
  }
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d >> 24 & 1) != 0 && MayUseTiles()) {
    cpu.amx_bf16 = (d >> 22 & 1) != 0;
    cpu.amx_int8 = (d >> 25 & 1) != 0;
  }
  return cpu;
}

std::string CpuModel() {
  std::ifstream in("/proc/cpuinfo");
  std::string line;
  while (std::getline(in, line)) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

}  // namespace

std::vector<std::string_view> CpuFeatures::Names() const {
  std::vector<std::string_view> names;
  const auto add = [&names](bool has, std::string_view name) {
    if (has) names.push_back(name);
  };
  add(avx2, "avx2");
  add(avx_vnni, "avx_vnni");
  add(avx512, "avx512");
  add(avx512_vnni, "avx512_vnni");
  add(avx512_vbmi, "avx512_vbmi");
  add(avx512_bf16, "avx512_bf16");
  add(amx_int8, "amx_int8");
  add(amx_bf16, "amx_bf16");
  return names;
}

const CpuFeatures& ThisCpu() {
  static const CpuFeatures features = Detect();
  return features;
}

MachineInfo ThisMachine() {
  MachineInfo machine;
  machine.cpu_model = CpuModel();
  machine.usable_cores = UsableCores();
  machine.memory_bytes = static_cast<uint64_t>(::sysconf(_SC_PHYS_PAGES)) *
                         static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  utsname names{};
  if (::uname(&names) == 0) machine.kernel = absl::StrCat(names.sysname, " ", names.release);
  machine.features = ThisCpu();
  return machine;
}

json::object ToJson(const MachineInfo& machine) {
  json::array features;
  for (const std::string_view name : machine.features.Names()) {
    features.push_back(json::string(name.data(), name.size()));
  }
  return {{"cpu", machine.cpu_model},
          {"cores", machine.usable_cores},
          {"memory_bytes", machine.memory_bytes},
          {"kernel", machine.kernel},
          {"features", features}};
}

}  // namespace hearth
