// The kernels over the types of simd_avx512.h or simd_avx2.h. Included once by each kernels_*.cc
// after one of these, with HEARTH_ISA naming the namespace. No templates of the standard library
// here: an instance compiled for one CPU could be linked into code for all.
#include <string_view>

#include "services/gpu-worker/ops/kernels.h"
#include "services/gpu-worker/ops/kernels_vector_inl.h"
// After the vectors:
#include "services/gpu-worker/ops/kernels_products_inl.h"
#include "services/gpu-worker/ops/kernels_sequence_inl.h"

namespace hearth::worker::HEARTH_ISA {
namespace {

constexpr Kernels MakeKernels(std::string_view name) {
  return {.name = name,
          .quantize = Quantize,
          .tiled4 = AnyStrip<true>,
          .tiled8 = AnyStrip<false>,
          .plain_f32 = Plain<float>,
          .plain_f16 = Plain<F16>,
          .plain_bf16 = Plain<BF16>,
          .add_rms_norm = AddRmsNorm,
          .silu_mul = SiluMul,
          .add_scaled = AddScaled,
          .gate_and_divide = GateAndDivide,
          .convolve = Convolve,
          .l2_normalize = L2Normalize,
          .delta_rule = DeltaRule,
          .gated_norm = GatedNorm,
          .top_k = TopK,
          .softmax_terms = SoftmaxTerms,
          .attend_page = AttendPage};
}

}  // namespace
}  // namespace hearth::worker::HEARTH_ISA
