#include "services/gpu-worker/ops/vector_math.h"

#include <cmath>
#include <span>

// One body, compiled for what the CPU turns out to have. Not under sanitizers, whose start-up
// clashes with ifunc resolvers, and not with clang 14, which lacks it for C++.
#if defined(__x86_64__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define HEARTH_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define HEARTH_CLONES
#endif

namespace hearth::worker {
namespace {

constexpr int kLanes = 64;

}  // namespace

HEARTH_CLONES float Dot(const float* a, const float* b, int64_t n) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) lanes[j] += a[i + j] * b[i + j];
  }
  for (int j = 0; i + j < n; ++j) lanes[j] += a[i + j] * b[i + j];
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int j = 0; j < width; ++j) lanes[j] += lanes[j + width];
  }
  return lanes[0];
}

HEARTH_CLONES void AddScaled(float a, const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] += a * x[i];
}

HEARTH_CLONES void ScaleThenAddTo(float a, float* x, float b, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) {
    x[i] *= a;
    y[i] += b * x[i];
  }
}

HEARTH_CLONES void AddThenAddTo(float a, const float* d, float* x, float b, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) {
    x[i] += a * d[i];
    y[i] += b * x[i];
  }
}

namespace {

// `n_pairs` bytes to 2 n_pairs values of one block.
HEARTH_CLONES void DequantizeBlock(const uint8_t* codes, int64_t n_pairs, const float* levels,
                                   float scale, float* values) {
  float scaled[16];
  for (int c = 0; c < 16; ++c) scaled[c] = levels[c] * scale;
  for (int64_t i = 0; i < n_pairs; ++i) {
    values[2 * i] = scaled[codes[i] >> 4];
    values[2 * i + 1] = scaled[codes[i] & 15];
  }
}

}  // namespace

void DequantizeRowFast(const LinearRef& weights, int64_t row, float* values) {
  if (weights.kind != WeightKind::kBlock4 || weights.in % weights.block_size != 0) {
    return DequantizeRow(weights, row, std::span(values, static_cast<size_t>(weights.in)));
  }
  const int64_t n_blocks = weights.in / weights.block_size, pairs = weights.block_size / 2;
  const auto* codes = static_cast<const uint8_t*>(weights.data) + row * n_blocks * pairs;
  for (int64_t b = 0; b < n_blocks; ++b) {
    DequantizeBlock(codes + b * pairs, pairs, weights.levels.data(),
                    weights.absmax[row * n_blocks + b], values + b * weights.block_size);
  }
}

float Sigmoid(float x) { return 1 / (1 + std::exp(-x)); }
float Silu(float x) { return x / (1 + std::exp(-x)); }
// As the public implementation: linear above 20, where log1p(exp(x)) is x in float32.
float Softplus(float x) { return x > 20 ? x : std::log1p(std::exp(x)); }

}  // namespace hearth::worker
