// Embedding, norms and linears of the fast CPU backend.
#include <algorithm>
#include <cstring>
#include <vector>

#include "services/gpu-worker/ops/fast_ops.h"
#include "services/gpu-worker/ops/vector_math.h"

namespace hearth::worker {
namespace {

// Strips that a thread takes at once: 68 KB of weights at a width of 2048, which stay in its
// second-level cache while the groups of rows pass.
constexpr int64_t kStripsAPiece = 4;

bool IsTiled(const LinearRef& weights) {
  return weights.kind == WeightKind::kTiled4 || weights.kind == WeightKind::kTiled8;
}

}  // namespace

void FastOps::Embed(const LinearRef& table, std::span<const int32_t> ids, float* x) {
  exact_.Embed(table, ids, x);
}

void FastOps::AddRmsNorm(int n_rows, int width, float* x, const float* delta, const float* weight,
                         float eps, float* h) {
  const auto row = [&](int64_t t) {
    kernels_.add_rms_norm(x + t * width, delta == nullptr ? nullptr : delta + t * width, weight,
                          eps, width, h + t * width);
  };
  if (int64_t{n_rows} * width * 4 < kInlineProducts) {
    for (int t = 0; t < n_rows; ++t) row(t);
  } else {
    parallel_.Each(n_rows, row);
  }
}

const IntegerLevels& FastOps::LevelsOf(const std::array<float, 16>& levels) {
  for (const auto& [known, rounded] : levels_) {
    if (std::memcmp(known.data(), levels.data(), sizeof known) == 0) return rounded;
  }
  return levels_.emplace_back(levels, RoundLevels(levels)).second;
}

FastOps::Weights FastOps::Prepare(const LinearRef& ref) {
  Weights weights;
  weights.ref = ref;
  switch (ref.kind) {
    case WeightKind::kTiled4:
    case WeightKind::kTiled8:
      weights.matrix = {.data = static_cast<const uint8_t*>(ref.data),
                        .scales = ref.scales,
                        .n_tiles = ref.in / kTileColumns,
                        .factor = ref.factor};
      if (ref.kind == WeightKind::kTiled4) {
        const IntegerLevels& levels = LevelsOf(ref.levels);
        weights.matrix.factor /= levels.scale;
        for (size_t i = 0; i < 16; ++i) {
          weights.matrix.levels[i] = static_cast<uint8_t>(128 + levels.integers[i]);
        }
      }
      break;
    case WeightKind::kF32:
      weights.plain = kernels_.plain_f32;
      break;
    case WeightKind::kF16:
      weights.plain = kernels_.plain_f16;
      break;
    case WeightKind::kBF16:
      weights.plain = kernels_.plain_bf16;
      break;
    case WeightKind::kBlock4:
      break;  // the caller takes the float32 backend
  }
  return weights;
}

void FastOps::Outputs(const Weights& weights, int64_t first, int64_t n, const RowGroup& group,
                      const float* x, int64_t x_stride, float* out, int64_t stride) const {
  if (weights.plain != nullptr) {
    const int64_t width = weights.ref.kind == WeightKind::kF32 ? 4 : 2;
    weights.plain(static_cast<const char*>(weights.ref.data) + first * weights.ref.in * width,
                  weights.ref.in, static_cast<int>(n), x, x_stride, group.n_rows, out, stride);
    return;
  }
  const auto kernel = weights.ref.kind == WeightKind::kTiled4 ? kernels_.tiled4 : kernels_.tiled8;
  int64_t r = 0;
  for (; r + kTileRows <= n; r += kTileRows) {
    kernel(weights.matrix, (first + r) / kTileRows, group, out + r, stride);
  }
  if (r == n) return;
  float whole[kMaxGroup * kTileRows];  // the last strip's rows beyond the matrix are not wanted
  kernel(weights.matrix, (first + r) / kTileRows, group, whole, kTileRows);
  for (int t = 0; t < group.n_rows; ++t) {
    std::copy_n(whole + t * kTileRows, n - r, out + t * stride + r);
  }
}

void FastOps::Quantize(int n_rows, int64_t width, const float* x, int group_size,
                       QuantizedRows* rows) {
  rows->Reshape(n_rows, width, group_size);
  const auto row = [&](int64_t t) {
    const int64_t first = rows->GroupBegin(t);
    kernels_.quantize(x + t * width, width, static_cast<int>(t - first), rows->GroupRows(first),
                      rows->q(first), rows->scales(first));
  };
  if (n_rows * width * 4 < kInlineProducts) {
    for (int t = 0; t < n_rows; ++t) row(t);
  } else {
    parallel_.Each(n_rows, row);
  }
}

void FastOps::Linear(const LinearRef& ref, int n_rows, const float* x, float* y) {
  if (n_rows == 0) return;
  const Weights weights = Prepare(ref);
  const bool is_tiled = IsTiled(ref);
  if (!is_tiled && weights.plain == nullptr) return exact_.Linear(ref, n_rows, x, y);
  if (is_tiled) Quantize(n_rows, ref.in, x, kMaxGroup, &input_);

  const auto piece = [&](int64_t begin, int64_t end) {
    for (int64_t first = 0; first < n_rows; first += kMaxGroup) {
      const int n = static_cast<int>(std::min<int64_t>(kMaxGroup, n_rows - first));
      const RowGroup group = is_tiled ? input_.Group(first, n) : RowGroup{.n_rows = n};
      Outputs(weights, begin, end - begin, group, x + first * ref.in, ref.in,
              y + first * ref.out + begin, ref.out);
    }
  };
  if (ref.out * ref.in * n_rows < kInlineProducts) return piece(0, ref.out);
  const int64_t outputs = kStripsAPiece * kTileRows;
  parallel_.Each((ref.out + outputs - 1) / outputs,
                 [&](int64_t i) { piece(i * outputs, std::min(ref.out, (i + 1) * outputs)); });
}

void FastOps::AddGated(int n_rows, int width, const float* shared, const float* gate, float* out) {
  const auto row = [&](int64_t t) {
    kernels_.add_scaled(Sigmoid(gate[t]), shared + t * width, width, out + t * width);
  };
  if (int64_t{n_rows} * width < kInlineProducts) {
    for (int t = 0; t < n_rows; ++t) row(t);
  } else {
    parallel_.Each(n_rows, row);
  }
}

}  // namespace hearth::worker
