// Matrices of random weights in device memory, for the cases of decode steps.
#pragma once

#include <cstdint>
#include <memory>

#include "bench/cuda_cases.h"
#include "common/tensor/tiled.h"
#include "services/gpu-worker/ops/cuda/decode_linear.h"

namespace hearth::bench {

struct MatrixCase {
  worker::DecodeKind kind;
  int64_t out;
};

// One matrix in several copies, which runs take in turn.
struct MatrixCopies {
  MatrixCopies(const MatrixCase& matrix, int64_t in, int n)
      : kind(matrix.kind),
        ref{.kind = kind == worker::DecodeKind::kTiled4   ? WeightKind::kTiled4
                    : kind == worker::DecodeKind::kTiled8 ? WeightKind::kTiled8
                                                          : WeightKind::kBF16,
            .out = matrix.out,
            .in = in},
        bytes(BytesOf(ref)) {
    const auto copies = static_cast<size_t>(n);
    const bool is_bf16 = kind == worker::DecodeKind::kBf16;
    data = is_bf16 ? DeviceBf16(copies * bytes.data / 2) : RandomDeviceBits(copies * bytes.data);
    scales = DeviceScales(is_bf16 ? 1 : copies * bytes.absmax / 2);
  }
  worker::DecodeLinear Of(int copy, const worker::DecodeLevels& levels, float* y) const {
    const auto at = static_cast<size_t>(copy);
    return {
        .kind = kind,
        .weights = {.data = static_cast<const uint8_t*>(data.get()) + at * bytes.data,
                    .scales = static_cast<const uint16_t*>(scales.get()) + at * bytes.absmax / 2,
                    .out = ref.out,
                    .in = ref.in},
        .levels = levels,
        .y = y};
  }
  worker::DecodeKind kind;
  LinearRef ref;
  LinearBytes bytes;
  std::shared_ptr<void> data, scales;
};

}  // namespace hearth::bench
