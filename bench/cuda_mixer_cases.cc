// Norms, router, delta net and attention of the 80B model. A run is kLayers layers, each on inputs
// of its own, so that the runs of a graph go through more bytes than an L2 holds.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "bench/cuda_cases.h"
#include "common/tensor/linear.h"
#include "services/gpu-worker/ops/cuda/attention_cuda.h"
#include "services/gpu-worker/ops/cuda/delta_cuda.h"
#include "services/gpu-worker/ops/cuda/exchange.h"
#include "services/gpu-worker/ops/cuda/norm_cuda.h"
#include "services/gpu-worker/ops/cuda/router_cuda.h"

namespace hearth::bench {
namespace {

using worker::AttentionShape;
using worker::DeltaShape;
using worker::SequenceRows;

constexpr int kWidth = 2048, kExperts = 512, kTopK = 10, kConvolution = 4;
constexpr int kLayers = 4;
constexpr double kRotatedBytes = 400e6;
constexpr DeltaShape kDelta{.key_heads = 16, .value_heads = 32, .key_dim = 128, .value_dim = 128};
constexpr AttentionShape kAttention{.n_heads = 16, .n_kv_heads = 2, .head_dim = 256};
constexpr int kPageTokens = 16;
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

std::shared_ptr<float> Floats(int64_t n, float size = 1) {
  return RandomDeviceFloats(static_cast<size_t>(n), size);
}

// Values of both signs below 1, so that sums of many stay finite.
std::shared_ptr<uint16_t> Bf16s(int64_t n) {
  std::vector<uint16_t> values(static_cast<size_t>(n));
  uint32_t random = 1;
  for (uint16_t& value : values) {
    random = random * 1664525 + 1013904223;
    value = F32ToBF16(static_cast<float>(static_cast<int32_t>(random)) * 0x1p-31f);
  }
  return ToDevice(values);
}

// Launches `layer`(number) for each layer of run i.
template <typename Layer>
std::function<cudaError_t(int, cudaStream_t)> Layers(Layer layer) {
  return [layer](int i, cudaStream_t stream) {
    for (int l = 0; l < kLayers; ++l) {
      const cudaError_t error = layer(i * kLayers + l, stream);
      if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
  };
}

std::string ShapeName(const std::string& what) {
  return what + ", " + std::to_string(kLayers) + " layers";
}

void AddNorm(int n_rows, CudaCases* cases) {
  const int64_t n = int64_t{n_rows} * kWidth;
  const auto x = Floats(n), delta = Floats(n, 1e-3f), shared = Floats(n, 1e-3f),
             gate = Floats(n_rows), weight = Floats(kWidth), h = Floats(n);
  const auto layer = [=](int, cudaStream_t stream) {
    return worker::AddRmsNormCuda(n_rows, kWidth, x.get(), {delta.get(), shared.get(), gate.get()},
                                  weight.get(), kEps, h.get(), stream);
  };
  cases->push_back({.op = "add norm",
                    .shape = ShapeName(std::to_string(n_rows) + " x 2048"),
                    .bytes = kLayers * 4.0 * (5.0 * static_cast<double>(n) + kWidth),
                    .flops = kLayers * 8.0 * static_cast<double>(n),
                    .run = Layers(layer)});
}

void AddRouter(int n_rows, CudaCases* cases) {
  const auto logits = Floats(int64_t{n_rows} * kExperts), weights = Floats(int64_t{n_rows} * kTopK);
  const auto ids = ToDevice(std::vector<int32_t>(static_cast<size_t>(n_rows * kTopK)));
  const auto layer = [=](int, cudaStream_t stream) {
    return worker::RouteCuda({n_rows, kExperts, kTopK}, true, logits.get(), ids.get(),
                             weights.get(), stream);
  };
  cases->push_back({.op = "router",
                    .shape = ShapeName(std::to_string(n_rows) + " x 512, 10 of them"),
                    .bytes = kLayers * 4.0 * n_rows * (kExperts + 2 * kTopK),
                    .run = Layers(layer)});
}

// Pointers to n pieces of one memory.
struct Tables {
  std::shared_ptr<float> memory;
  std::shared_ptr<float*> pointers;
};
Tables MakeTables(int n, int64_t size) {
  Tables tables{Floats(n * size, 0.1f), nullptr};
  std::vector<float*> pointers;
  pointers.reserve(static_cast<size_t>(n));
  for (int i = 0; i < n; ++i) pointers.push_back(tables.memory.get() + i * size);
  tables.pointers = ToDevice(pointers);
  return tables;
}

void AddDelta(const SequenceRows& rows, const std::vector<int>& all_parts, CudaCases* cases) {
  const int64_t n_values = int64_t{kDelta.value_heads} * kDelta.value_dim;
  const int64_t total = rows.total(), channels = kDelta.channels();
  const int64_t state = n_values * kDelta.key_dim, history = (kConvolution - 1) * channels;
  const int n_sequences = rows.n_sequences;
  const int n_copies =
      1 + static_cast<int>(kRotatedBytes / (4.0 * static_cast<double>(state) * n_sequences));
  const auto qkvz = Floats(total * (channels + n_values)), ba = Floats(total * 64),
             kernel = Floats(kConvolution * channels, 0.3f), a_log = Floats(32),
             dt_bias = Floats(32), norm = Floats(kDelta.value_dim), out = Floats(total * n_values),
             mixed = Floats(total * channels, 0.05f), decay = Floats(total * 32, 0.1f),
             beta = Floats(total * 32, 0.1f);
  const Tables states = MakeTables(n_sequences * n_copies, state);
  const Tables histories = MakeTables(n_sequences * n_copies, history);
  const std::string shape = std::to_string(n_sequences) + " x " + std::to_string(rows.n_rows);
  const auto convolve = [=](int i, cudaStream_t stream) {
    const worker::DeltaInputs inputs{mixed.get(), decay.get(), beta.get()};
    return worker::ConvolveCuda(
        kDelta, rows, {kConvolution, kernel.get(), a_log.get(), dt_bias.get()}, qkvz.get(),
        ba.get(), histories.pointers.get() + int64_t{i % n_copies} * n_sequences, inputs, stream);
  };
  const auto rows_bytes = 4.0 * static_cast<double>(total);
  const auto wide = static_cast<double>(channels);
  cases->push_back({.op = "convolve, gates",
                    .shape = ShapeName(shape),
                    .bytes = kLayers * (rows_bytes * 2 * wide + 4.0 * kConvolution * wide +
                                        8.0 * static_cast<double>(history) * n_sequences),
                    .run = Layers(convolve)});
  for (const int parts : all_parts) {
    const auto rule = [=](int i, cudaStream_t stream) {
      const worker::DeltaInputs in{mixed.get(), decay.get(), beta.get()};
      return worker::DeltaRuleCuda(kDelta, rows, in, qkvz.get(), norm.get(), kEps,
                                   states.pointers.get() + int64_t{i % n_copies} * n_sequences,
                                   out.get(), parts, stream);
    };
    cases->push_back(
        {.op = "delta rule",
         .shape = ShapeName(shape + ", parts " + std::to_string(parts)),
         .bytes = kLayers * (8.0 * static_cast<double>(state) * n_sequences +
                             rows_bytes * (wide + 2 * static_cast<double>(n_values))),
         .flops = kLayers * 8.0 * static_cast<double>(total) * static_cast<double>(state),
         .run = Layers(rule)});
  }
}

// The convolution, the rule and the norm of one row of each sequence, in one launch.
void AddDeltaStep(int n_sequences, CudaCases* cases) {
  const int64_t n_values = int64_t{kDelta.value_heads} * kDelta.value_dim;
  const int64_t n = n_sequences, channels = kDelta.channels();
  const int64_t state = n_values * kDelta.key_dim, history = (kConvolution - 1) * channels;
  const auto state_bytes = 4.0 * static_cast<double>((state + history) * n);
  const int n_copies = 1 + static_cast<int>(kRotatedBytes / state_bytes);
  const auto qkvz = Floats(n * (channels + n_values)), ba = Floats(n * 64),
             kernel = Floats(kConvolution * channels, 0.3f), a_log = Floats(32),
             dt_bias = Floats(32), norm = Floats(kDelta.value_dim), out = Floats(n * n_values);
  const auto arrivals = ToDevice(std::vector<uint32_t>(static_cast<size_t>(n) * 16));
  const Tables states = MakeTables(n_sequences * n_copies, state);
  const Tables histories = MakeTables(n_sequences * n_copies, history);
  const auto step = [=](int i, cudaStream_t stream) {
    const int64_t first = int64_t{i % n_copies} * n_sequences;
    return worker::DeltaStepCuda(
        kDelta, n_sequences,
        {.weights = {kConvolution, kernel.get(), a_log.get(), dt_bias.get()},
         .qkvz = qkvz.get(),
         .ba = ba.get(),
         .norm = norm.get(),
         .eps = kEps,
         .histories = histories.pointers.get() + first,
         .states = states.pointers.get() + first,
         .arrivals = arrivals.get()},
        out.get(), {}, stream);
  };
  cases->push_back({.op = "delta step",
                    .shape = ShapeName(std::to_string(n_sequences) + " x 1"),
                    .bytes = kLayers * (2 * state_bytes +
                                        4.0 * static_cast<double>(n * (channels + 2 * n_values))),
                    .flops = kLayers * 8.0 * static_cast<double>(n * state),
                    .run = Layers(step)});
}

void AddAttention(worker::KvType type, int n_rows, int64_t context, CudaCases* cases) {
  const int64_t row = int64_t{kAttention.n_heads} * kAttention.head_dim;
  const int64_t kv_row = int64_t{kAttention.n_kv_heads} * kAttention.head_dim;
  const int max_pages = static_cast<int>((context + kPageTokens - 1) / kPageTokens);
  const int64_t pool = int64_t{n_rows} * max_pages * kPageTokens * kv_row;
  const int n_copies = 1 + static_cast<int>(kRotatedBytes / (4.0 * static_cast<double>(pool)));
  std::vector<int32_t> pages(static_cast<size_t>(n_rows) * static_cast<size_t>(max_pages));
  std::iota(pages.rbegin(), pages.rend(), 0);
  std::vector<double> frequencies;
  frequencies.reserve(32);
  for (int j = 0; j < 32; ++j) frequencies.push_back(std::pow(1e7, -j / 32.0));
  const auto table = ToDevice(pages);
  const auto positions = ToDevice(std::vector<int64_t>(static_cast<size_t>(n_rows), context - 1));
  const auto turns = ToDevice(frequencies);
  // Of int8 pages: the same bits, half as many.
  const bool is_int8 = type == worker::KvType::kInt8;
  const int64_t halves = is_int8 ? pool / 2 : pool;  // of a copy
  const auto keys = Bf16s(halves * n_copies), values = Bf16s(halves * n_copies);
  const auto key_scales = Floats(is_int8 ? pool / kAttention.head_dim : 1, 0.01f);
  const auto query_gate = Floats(n_rows * row * 2), k = Floats(n_rows * kv_row),
             norm = Floats(kAttention.head_dim), q = Floats(n_rows * row),
             out = Floats(n_rows * row),
             scratch = Floats(worker::AttentionScratchFloats(kAttention, n_rows, context));
  const auto kv = [=](int i) {
    return worker::DeviceKv{type,
                            keys.get() + i % n_copies * halves,
                            values.get() + i % n_copies * halves,
                            table.get(),
                            max_pages,
                            kPageTokens,
                            key_scales.get(),
                            key_scales.get()};
  };
  const auto attend = [=](int i, cudaStream_t stream) {
    return worker::AttentionCuda(kAttention, {n_rows, 1}, positions.get(), context, q.get(),
                                 query_gate.get(), kv(i), scratch.get(), out.get(), stream);
  };
  const auto rotate = [=](int i, cudaStream_t stream) {
    return worker::RotateAndStoreCuda(kAttention, {n_rows, 1}, {norm.get(), norm.get(), kEps},
                                      {turns.get(), 32, 1}, positions.get(), query_gate.get(),
                                      k.get(), k.get(), kv(i), q.get(), stream);
  };
  const std::string shape =
      std::to_string(n_rows) + " at " + std::to_string(context) + (is_int8 ? ", int8" : "");
  const auto seen = static_cast<double>(n_rows) * static_cast<double>(context);
  cases->push_back({.op = "attention",
                    .shape = ShapeName(shape),
                    .bytes = kLayers * ((is_int8 ? 2.0 : 4.0) * seen * static_cast<double>(kv_row) +
                                        16.0 * n_rows * static_cast<double>(row)),
                    .flops = kLayers * 4.0 * seen * static_cast<double>(row),
                    .run = Layers(attend)});
  cases->push_back({.op = "rotate, store",
                    .shape = ShapeName(shape),
                    .bytes = kLayers * 4.0 * n_rows *
                             (2.0 * static_cast<double>(row) + 3.0 * static_cast<double>(kv_row)),
                    .run = Layers(rotate)});
}

// The choice and the dispatch of a row whose experts are all here, with the flags and the choices
// in pinned memory, as a step has them, or in the device's: what writing over PCIe costs.
void AddRouting(bool is_pinned, CudaCases* cases) {
  const auto logits = Floats(kExperts), weights = Floats(kTopK), h = Floats(kWidth),
             gate = Floats(1);
  const auto ids = ToDevice(std::vector<int32_t>(kTopK));
  const auto positions = ToDevice(std::vector<int64_t>{2047});
  const auto slot = Floats(64);
  const auto* const slot_bytes = reinterpret_cast<const uint8_t*>(slot.get());
  const auto slots = ToDevice(std::vector<const uint8_t*>(kExperts, slot_bytes));
  const auto places = ToDevice(std::vector<worker::ExpertPlace>(kTopK + 1));
  const auto counters = ToDevice(std::vector<uint32_t>(worker::kExchangeCounters));
  const auto clock = ToDevice(std::vector<worker::StepClock>(1));
  const auto on_device = ToDevice(std::vector<uint8_t>(1 << 16));
  std::shared_ptr<uint8_t> memory = on_device;
  if (is_pinned) {
    void* pinned = nullptr;
    if (cudaMallocHost(&pinned, 1 << 16) != cudaSuccess) std::exit(1);
    memory = {static_cast<uint8_t*>(pinned), [](uint8_t* at) { cudaFreeHost(at); }};
  }
  worker::Exchange exchange;
  exchange.request = reinterpret_cast<worker::MissRequest*>(memory.get());
  exchange.misses = reinterpret_cast<worker::MissedPlace*>(memory.get() + 1024);
  exchange.h = reinterpret_cast<float*>(memory.get() + 8192);
  exchange.sums = reinterpret_cast<float*>(memory.get() + 32768);
  exchange.counters = counters.get();
  exchange.clock = clock.get();
  auto* const choices = reinterpret_cast<int32_t*>(memory.get() + 4096);
  const auto layer = [=](int, cudaStream_t stream) {
    return worker::RouteAndDispatchCuda(
        {0, 1, kTopK, kWidth},
        {.logits = logits.get(),
         .shared_slot = slot_bytes,
         .shared_gate = gate.get(),
         .ids = ids.get(),
         .weights = weights.get()},
        {.positions = positions.get(), .slots = slots.get(), .n_experts = kExperts, .h = h.get()},
        exchange, places.get(), choices, stream);
  };
  const auto await = [=](int, cudaStream_t stream) {
    return worker::AwaitExpertsCuda({0, 1, kTopK, kWidth}, exchange, h.get(), stream);
  };
  const std::string where = is_pinned ? ", pinned" : ", device";
  cases->push_back(
      {.op = "route, dispatch",
       .shape = ShapeName("1 x 512" + where),
       .bytes = kLayers * 4.0 * kExperts,
       .run = [=, keep = std::vector<std::shared_ptr<const void>>{memory, slots, places, counters,
                                                                  clock, positions, ids, slot}](
                  int i, cudaStream_t stream) { return Layers(layer)(i, stream); }});
  cases->push_back(
      {.op = "await nothing",
       .shape = ShapeName("1 x 2048" + where),
       .bytes = kLayers * 8.0,
       .run = [=, keep = std::vector<std::shared_ptr<const void>>{memory, counters, clock}](
                  int i, cudaStream_t stream) { return Layers(await)(i, stream); }});
}

}  // namespace

void AddMixerCases(CudaCases* cases) {
  for (const bool is_pinned : {true, false}) AddRouting(is_pinned, cases);
  for (const int n_rows : {1, 8}) AddNorm(n_rows, cases);
  for (const int n_rows : {1, 8}) AddRouter(n_rows, cases);
  for (const int n_sequences : {1, 8}) AddDeltaStep(n_sequences, cases);
  AddDelta({.n_sequences = 1, .n_rows = 1}, {1, 2, 4, 8}, cases);
  AddDelta({.n_sequences = 8, .n_rows = 1}, {1, 4}, cases);
  AddDelta({.n_sequences = 1, .n_rows = 512}, {1, 4, 16}, cases);
}

void AddAttentionCases(CudaCases* cases) {
  for (const worker::KvType type : {worker::KvType::kBf16, worker::KvType::kInt8}) {
    AddAttention(type, 1, 2048, cases);
    AddAttention(type, 8, 2048, cases);
    AddAttention(type, 1, 32768, cases);
    AddAttention(type, 1, 262144, cases);
  }
}

}  // namespace hearth::bench
