// What machine this is, for everything that reports a measurement.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/json.h"

namespace hearth {

// Instruction sets that the CPU has, the operating system saves, and (AMX) this process was
// allowed to use.
struct CpuFeatures {
  bool avx2 = false;         // with FMA
  bool avx_vnni = false;     // vpdpbusd on 32 bytes
  bool avx512 = false;       // F, BW, DQ and VL
  bool avx512_vnni = false;  // vpdpbusd on 64 bytes
  bool avx512_vbmi = false;
  bool avx512_bf16 = false;
  bool amx_int8 = false;
  bool amx_bf16 = false;

  std::vector<std::string_view> Names() const;
};
// Found once. Asks the kernel for the use of AMX tiles.
const CpuFeatures& ThisCpu();

struct MachineInfo {
  std::string cpu_model;
  int usable_cores = 0;
  uint64_t memory_bytes = 0;
  std::string kernel;  // "Linux 6.1.0"
  CpuFeatures features;
};
MachineInfo ThisMachine();
json::object ToJson(const MachineInfo& machine);

// The commit that this program was built from, and whether files differed from it; "unknown"
// outside a git checkout.
struct BuildInfo {
  std::string_view commit;
  bool is_dirty;
};
BuildInfo ThisBuild();

}  // namespace hearth
