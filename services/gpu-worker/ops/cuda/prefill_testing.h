// What the prefill kernels multiply, rounded on the host as they round it on the device: products
// of these values differ from the device's by the order of their sum alone.
#pragma once

#include <cmath>
#include <vector>

#include "services/gpu-worker/ops/cuda/matrix_testing.h"

namespace hearth::worker {

inline float RoundedToHalf(float value) { return F16ToF32(F32ToF16(value)); }
inline float RoundedToBf16(float value) { return BF16ToF32(F32ToBF16(value)); }

// [out, in] without the rows' order changed; `factor` is the matrix's own, still to be applied.
struct RoundedMatrix {
  explicit RoundedMatrix(const HostMatrix& host) : in(host.ref.in), factor(host.ref.factor) {
    LinearRef ref = host.ref;
    std::vector<uint16_t> scales = host.scales;
    ref.factor = 1;
    if (ref.kind == WeightKind::kTiled4) {
      for (float& level : ref.levels) level = RoundedToHalf(level);
    } else if (ref.kind == WeightKind::kTiled8) {
      for (uint16_t& scale : scales) scale = F32ToF16(F16ToF32(scale) / 256);
      ref.scales = scales.data();
      factor *= 256;
    }
    values.resize(static_cast<size_t>(ref.out * ref.in));
    for (int64_t r = 0; r < ref.out; ++r) {
      DequantizeRow(ref, r, {values.data() + r * in, static_cast<size_t>(in)});
    }
    if (ref.kind == WeightKind::kBF16) factor = 1;
    if (ref.kind != WeightKind::kBF16) {
      for (float& value : values) value = RoundedToHalf(value);
    }
  }
  // One row's products with x, which is taken as it is.
  std::vector<Product> Times(const float* x) const {
    std::vector<Product> products;
    for (auto row = values.begin(); row != values.end(); row += in) {
      Product product;
      for (int64_t i = 0; i < in; ++i) {
        const double term = double{row[i]} * x[i] * factor;
        product.value += term, product.size += std::abs(term);
      }
      products.push_back(product);
    }
    return products;
  }
  int64_t in;
  float factor;
  std::vector<float> values;
};

}  // namespace hearth::worker
