// Compiled for AVX2 with AVX-VNNI (desktop processors without AVX-512).
#define HEARTH_ISA avxvnni
#define HEARTH_AVX_VNNI
#include "services/gpu-worker/ops/simd_avx2.h"
// After the types:
#include "services/gpu-worker/ops/kernels_inl.h"

namespace hearth::worker {
extern const Kernels kAvxVnniKernels;
const Kernels kAvxVnniKernels = avxvnni::MakeKernels("avxvnni");
}  // namespace hearth::worker
