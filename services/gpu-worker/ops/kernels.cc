#include "services/gpu-worker/ops/kernels.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace hearth::worker {

extern const Kernels kAmxKernels, kAvx512Kernels, kAvxVnniKernels, kAvx2Kernels;

namespace {

// __builtin_cpu_supports also asks the operating system whether it keeps the registers.
bool HasAvx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

// CPUID leaf 7, subleaf 1, EAX bit 4; neither compiler here knows its name.
bool HasAvxVnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return HasAvx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
}

bool HasAvx512() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
}

// CPUID leaf 7, EDX bits 24 (tiles) and 25 (int8). The kernel gives a process the 8 KB of tile
// state only when asked: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
bool HasAmx() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  unsigned a = 0, b = 0, c = 0, d = 0;
  return HasAvx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d >> 24 & 3) == 3 &&
         ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

std::vector<const Kernels*> UsableKernels() {
  std::vector<const Kernels*> usable;
  if (HasAvx512()) usable.push_back(&kAvx512Kernels);
  if (HasAvxVnni()) usable.push_back(&kAvxVnniKernels);
  if (HasAvx2()) usable.push_back(&kAvx2Kernels);
  if (HasAmx()) usable.push_back(&kAmxKernels);
  return usable;
}

const Kernels* FindKernels(std::string_view name) {
  for (const Kernels* kernels : UsableKernels()) {
    if (name.empty() || kernels->name == name) return kernels;
  }
  return nullptr;
}

}  // namespace hearth::worker
