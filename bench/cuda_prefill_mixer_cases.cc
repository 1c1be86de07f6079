// What a prefill of the 80B model runs between its linear layers, one layer of each.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <string>
#include <tuple>
#include <vector>

#include "bench/cuda_cases.h"
#include "common/tensor/linear.h"
#include "services/gpu-worker/ops/cuda/prefill_attention.h"
#include "services/gpu-worker/ops/cuda/prefill_delta.h"
#include "services/gpu-worker/ops/cuda/prefill_rows.h"
#include "services/gpu-worker/ops/cuda/router_cuda.h"

namespace hearth::bench {
namespace {

constexpr worker::DeltaShape kDelta{
    .key_heads = 16, .value_heads = 32, .key_dim = 128, .value_dim = 128};
constexpr worker::AttentionShape kAttention{.n_heads = 16, .n_kv_heads = 2, .head_dim = 256};
constexpr int kWidth = 2048, kConvolution = 4, kPageTokens = 16;
constexpr float kEps = 1e-6f;

template <typename T>
std::shared_ptr<T> ToDevice(const std::vector<T>& values) {
  void* data = nullptr;
  const size_t bytes = values.size() * sizeof(T);
  if (cudaMalloc(&data, bytes) != cudaSuccess ||
      cudaMemcpy(data, values.data(), bytes, cudaMemcpyHostToDevice) != cudaSuccess) {
    std::fprintf(stderr, "no memory for a case\n");
    std::exit(1);
  }
  return {static_cast<T*>(data), [](T* at) { cudaFree(at); }};
}

// Values of both signs below 1: quickly made, and sums of many stay finite.
std::vector<float> Values(int64_t n, float size) {
  std::vector<float> values(static_cast<size_t>(n));
  uint32_t random = 1;
  for (float& value : values) {
    random = random * 1664525 + 1013904223;
    value = static_cast<float>(static_cast<int32_t>(random)) * 0x1p-31f * size;
  }
  return values;
}
std::shared_ptr<float> Floats(int64_t n, float size = 1) { return ToDevice(Values(n, size)); }
std::shared_ptr<float> Constant(int64_t n, float value) {
  return ToDevice(std::vector<float>(static_cast<size_t>(n), value));
}
std::shared_ptr<uint16_t> Bf16s(int64_t n) {
  std::vector<uint16_t> bits;
  for (const float value : Values(n, 1)) bits.push_back(F32ToBF16(value));
  return ToDevice(bits);
}

void AddDelta(int n_rows, CudaCases* cases) {
  const int64_t n_values = int64_t{kDelta.value_heads} * kDelta.value_dim;
  const int64_t channels = kDelta.channels(), state = n_values * kDelta.key_dim;
  const auto qkvz = Floats(n_rows * (channels + n_values)), ba = Floats(int64_t{n_rows} * 64),
             kernel = Floats(kConvolution * channels, 0.3f), a_log = Floats(32),
             dt_bias = Floats(32), norm = Floats(kDelta.value_dim), out = Floats(n_rows * n_values),
             mixed = Floats(n_rows * channels, 0.1f), decay = Constant(int64_t{n_rows} * 32, 0.98f),
             beta = Constant(int64_t{n_rows} * 32, 0.5f), states = Floats(state),
             histories = Floats((kConvolution - 1) * channels);
  const auto state_table = ToDevice(std::vector<float*>{states.get()});
  const auto history_table = ToDevice(std::vector<float*>{histories.get()});
  const auto scratch = Floats(worker::PrefillDeltaScratchBytes(kDelta, n_rows) / 4);
  const worker::DeltaInputs in{mixed.get(), decay.get(), beta.get()};
  const double rows_bytes = 4.0 * n_rows;
  const std::string shape = std::to_string(n_rows) + " rows";
  cases->push_back(
      {.op = "prefill convolve, gates",
       .shape = shape,
       .bytes = rows_bytes * 2 * static_cast<double>(channels),
       .run = [=, kept = std::vector{mixed, decay, beta, histories}](int, cudaStream_t stream) {
         return worker::ConvolveCuda(kDelta, {1, n_rows},
                                     {kConvolution, kernel.get(), a_log.get(), dt_bias.get()},
                                     qkvz.get(), ba.get(), history_table.get(), in, stream);
       }});
  cases->push_back(
      {.op = "prefill delta rule",
       .shape = shape,
       .bytes = 8.0 * static_cast<double>(state) +
                rows_bytes * static_cast<double>(channels + 5 * n_values),
       .flops = 2.0 * n_rows * kDelta.value_heads * kDelta.key_dim * (512 + 3.0 * kDelta.value_dim),
       .run = [=, kept = std::vector{mixed, decay, beta, states}](int, cudaStream_t stream) {
         return worker::PrefillDeltaRuleCuda(kDelta, n_rows, in, qkvz.get(), norm.get(), kEps,
                                             state_table.get(), scratch.get(), out.get(), stream);
       }});
}

// `n_rows` rows after `context` others.
void AddAttention(int n_rows, int64_t context, CudaCases* cases) {
  const int64_t row = int64_t{kAttention.n_heads} * kAttention.head_dim;
  const int64_t kv_row = int64_t{kAttention.n_kv_heads} * kAttention.head_dim;
  const auto n_pages = static_cast<int>((context + n_rows + kPageTokens - 1) / kPageTokens);
  std::vector<int32_t> pages(static_cast<size_t>(n_pages));
  std::iota(pages.rbegin(), pages.rend(), 0);
  std::vector<int64_t> positions(static_cast<size_t>(n_rows));
  std::iota(positions.begin(), positions.end(), context);
  std::vector<double> frequencies;
  frequencies.reserve(32);
  for (int j = 0; j < 32; ++j) frequencies.push_back(std::pow(1e7, -j / 32.0));
  const auto table = ToDevice(pages);
  const auto at = ToDevice(positions);
  const auto turns = ToDevice(frequencies);
  const auto keys = Bf16s(int64_t{n_pages} * kPageTokens * kv_row),
             values = Bf16s(int64_t{n_pages} * kPageTokens * kv_row);
  const auto q = Floats(n_rows * row), query_gate = Floats(n_rows * row * 2),
             out = Floats(n_rows * row), k = Floats(n_rows * kv_row),
             norm = Floats(kAttention.head_dim);
  const worker::DeviceKv kv{worker::KvType::kBf16, keys.get(), values.get(),
                            table.get(),           n_pages,    kPageTokens};
  const double seen = n_rows * (static_cast<double>(context) + (n_rows + 1) / 2.0);
  const std::string shape = std::to_string(n_rows) + " rows after " + std::to_string(context);
  cases->push_back(
      {.op = "prefill attention",
       .shape = shape,
       .bytes = 4.0 * static_cast<double>(context + n_rows) * static_cast<double>(kv_row) +
                16.0 * n_rows * static_cast<double>(row),
       .flops = 4.0 * seen * static_cast<double>(row),
       .run = [=, kept = std::tuple(table, keys, values)](int, cudaStream_t stream) {
         return worker::PrefillAttentionCuda(kAttention, n_rows, at.get(), q.get(),
                                             query_gate.get(), kv, out.get(), stream);
       }});
  if (context != 0) return;
  cases->push_back(
      {.op = "prefill rotate, store",
       .shape = shape,
       .bytes = 4.0 * n_rows * (2.0 * static_cast<double>(row) + 3.0 * static_cast<double>(kv_row)),
       .run = [=, kept = std::tuple(table, keys, values)](int, cudaStream_t stream) {
         return worker::RotateAndStoreCuda(kAttention, {1, n_rows}, {norm.get(), norm.get(), kEps},
                                           {turns.get(), 32, 1}, at.get(), query_gate.get(),
                                           k.get(), k.get(), kv, q.get(), stream);
       }});
}

void AddRows(int n_rows, CudaCases* cases) {
  const auto x = Floats(int64_t{n_rows} * kWidth), y = Floats(int64_t{n_rows} * kWidth),
             half = Floats(int64_t{n_rows} * kWidth), logits = Floats(int64_t{n_rows} * 512),
             weights = Floats(int64_t{n_rows} * 10);
  const auto ids = ToDevice(std::vector<int32_t>(static_cast<size_t>(n_rows) * 10));
  const std::string shape = std::to_string(n_rows) + " x 2048";
  const double values = double{kWidth} * n_rows;
  cases->push_back({.op = "prefill rows to f16",
                    .shape = shape,
                    .bytes = 6 * values,
                    .run = [=](int, cudaStream_t stream) {
                      return worker::ToHalfRowsCuda(
                          n_rows, kWidth, x.get(), reinterpret_cast<uint16_t*>(half.get()), stream);
                    }});
  cases->push_back({.op = "prefill rows to 2 bf16",
                    .shape = shape,
                    .bytes = 8 * values,
                    .run = [=](int, cudaStream_t stream) {
                      auto* to = reinterpret_cast<uint16_t*>(half.get());
                      return worker::ToSplitRowsCuda(n_rows, kWidth, x.get(), to,
                                                     to + int64_t{n_rows} * kWidth, stream);
                    }});
  cases->push_back({.op = "prefill silu rows",
                    .shape = std::to_string(n_rows) + " x 512",
                    .bytes = 10 * values / 4,
                    .run = [=](int, cudaStream_t stream) {
                      return worker::SiluHalfRowsCuda(n_rows, 512, x.get(), y.get(),
                                                      reinterpret_cast<uint16_t*>(half.get()),
                                                      stream);
                    }});
  cases->push_back({.op = "prefill router",
                    .shape = std::to_string(n_rows) + " x 512",
                    .bytes = 2048.0 * n_rows,
                    .run = [=](int, cudaStream_t stream) {
                      return worker::RouteCuda({n_rows, 512, 10}, true, logits.get(), ids.get(),
                                               weights.get(), stream);
                    }});
}

}  // namespace

void AddPrefillMixerCases(CudaCases* cases) {
  for (const int n_rows : {512, 2048}) {
    AddDelta(n_rows, cases);
    AddAttention(n_rows, 0, cases);
    AddRows(n_rows, cases);
  }
  AddAttention(512, 32256, cases);
}

}  // namespace hearth::bench
