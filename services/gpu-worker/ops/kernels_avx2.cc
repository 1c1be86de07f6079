// Compiled for AVX2, FMA and F16C: what every x86-64 processor since 2013 or so has.
#define HEARTH_ISA avx2
#include "services/gpu-worker/ops/simd_avx2.h"
// After the types:
#include "services/gpu-worker/ops/kernels_inl.h"

namespace hearth::worker {
extern const Kernels kAvx2Kernels;
const Kernels kAvx2Kernels = avx2::MakeKernels("avx2");
}  // namespace hearth::worker
