// Random matrices in host and device memory, and their products in double, for the tests of the
// linear kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "common/tensor/linear.h"
#include "common/tensor/tiled.h"
#include "services/gpu-worker/ops/cuda/cuda_testing.h"
#include "services/gpu-worker/ops/cuda/linear.h"

namespace hearth::worker {

// Random codes and scales, or values for kBF16; `ref` borrows the host's copy.
struct HostMatrix {
  HostMatrix(WeightKind kind, int64_t out, int64_t in, uint32_t seed) : ref{.kind = kind} {
    ref.out = out, ref.in = in, ref.levels = kNf4Levels;
    std::mt19937 random(seed);
    data.resize(BytesOf(ref).data);
    if (kind == WeightKind::kBF16) {
      const std::vector<float> values = RandomFloats(out * in, seed);
      auto* to = reinterpret_cast<uint16_t*>(data.data());
      std::transform(values.begin(), values.end(), to, F32ToBF16);
    } else {
      for (auto& byte : data) byte = static_cast<uint8_t>(random());
      scales.resize(BytesOf(ref).absmax / 2);
      for (auto& scale : scales) scale = F32ToF16(static_cast<float>(random() % 1000) / 1000);
      // Rows past the last must not matter, whatever their scales.
      ref.scales = scales.data();
      ref.factor = 0.25f;
    }
    ref.data = data.data();
  }
  HostMatrix(const HostMatrix&) = delete;
  LinearRef ref;
  std::vector<uint8_t> data;
  std::vector<uint16_t> scales;
};

struct Product {
  double value = 0;
  double size = 0;  // sum of the magnitudes: what rounding is measured by
};

// W x of one row: `out` sums in double.
inline std::vector<Product> ProductsInDouble(const LinearRef& ref, const float* x) {
  std::vector<Product> products(static_cast<size_t>(ref.out));
  std::vector<float> row(static_cast<size_t>(ref.in));
  for (int64_t r = 0; r < ref.out; ++r) {
    DequantizeRow(ref, r, row);
    Product& product = products[static_cast<size_t>(r)];
    for (size_t i = 0; i < row.size(); ++i) {
      const double term = double{row[i]} * x[i];
      product.value += term, product.size += std::abs(term);
    }
  }
  return products;
}

// The integer kernels' scheme (fast_ops.h), for the same sums in double: a matrix's levels, and n
// values of its input, as the integers stand for them.
inline LinearRef WithRoundedLevels(LinearRef ref) {
  const IntegerLevels rounded = RoundLevels(ref.levels);
  if (ref.kind != WeightKind::kTiled4) return ref;
  for (size_t i = 0; i < 16; ++i) {
    ref.levels[i] = static_cast<float>(rounded.integers[i]) / rounded.scale;
  }
  return ref;
}
inline std::vector<float> RoundedToInt8(const float* x, int64_t n) {
  std::vector<float> rounded(static_cast<size_t>(n));
  for (int64_t first = 0; first < n; first += kTileColumns) {
    float top = 0;
    for (int64_t i = first; i < first + kTileColumns; ++i) top = std::max(top, std::abs(x[i]));
    const float inverse = top > 0 ? 127 / top : 0;
    for (int64_t i = first; i < first + kTileColumns; ++i) {
      rounded[static_cast<size_t>(i)] = std::nearbyint(x[i] * inverse) * (top / 127);
    }
  }
  return rounded;
}

inline Levels LevelsOf(const LinearRef& ref) {
  Levels levels;
  std::copy(ref.levels.begin(), ref.levels.end(), levels.values);
  return levels;
}

struct DeviceCopy {
  explicit DeviceCopy(const HostMatrix& host)
      : data(ToDevice(host.data)), scales(ToDevice(host.scales)) {
    matrix = {.data = data.data(),
              .scales = scales.data(),
              .out = host.ref.out,
              .in = host.ref.in,
              .factor = host.ref.factor,
              .levels = LevelsOf(host.ref)};
  }
  DeviceBuffer<uint8_t> data;
  DeviceBuffer<uint16_t> scales;
  DeviceMatrix matrix;
};

}  // namespace hearth::worker
