// The inner loops of the float32 ops. Each sums in a fixed order that depends on n alone.
#pragma once

#include <cstdint>

#include "common/tensor/linear.h"

namespace hearth::worker {

// sum of a[i] b[i]: 64 lanes, added up as a tree.
float Dot(const float* a, const float* b, int64_t n);
// y += a x.
void AddScaled(float a, const float* x, int64_t n, float* y);
// x *= a, then y += b x: one pass over a row of the delta state.
void ScaleThenAddTo(float a, float* x, float b, int64_t n, float* y);
// x += a d, then y += b x.
void AddThenAddTo(float a, const float* d, float* x, float b, int64_t n, float* y);
// As DequantizeRow, faster for 4-bit rows whose blocks don't straddle rows. The same values.
void DequantizeRowFast(const LinearRef& weights, int64_t row, float* values);

float Sigmoid(float x);
float Silu(float x);
float Softplus(float x);

}  // namespace hearth::worker
