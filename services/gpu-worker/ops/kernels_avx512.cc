// Compiled for AVX-512 with VNNI, VBMI and BF16's neighbours; called only where the CPU has them.
#define HEARTH_ISA avx512
#include "services/gpu-worker/ops/simd_avx512.h"
// After the types:
#include "services/gpu-worker/ops/kernels_inl.h"

namespace hearth::worker {
extern const Kernels kAvx512Kernels;
const Kernels kAvx512Kernels = avx512::MakeKernels("avx512");
}  // namespace hearth::worker
