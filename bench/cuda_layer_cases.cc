// All kernels of a decode step's layers in their order: three of a delta net and one of attention,
// as the 80B model repeats them, each with weights of its own. Each kernel reads what the one in
// front of it wrote, as a step's do; the numbers themselves mean nothing.
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "bench/cuda_cases.h"
#include "bench/cuda_experts.h"
#include "bench/cuda_matrices.h"
#include "common/tensor/tiled.h"
#include "services/gpu-worker/ops/cuda/attention_cuda.h"
#include "services/gpu-worker/ops/cuda/chained_launches.h"
#include "services/gpu-worker/ops/cuda/decode_experts.h"
#include "services/gpu-worker/ops/cuda/delta_cuda.h"
#include "services/gpu-worker/ops/cuda/norm_cuda.h"
#include "services/gpu-worker/ops/cuda/router_cuda.h"
#include "services/gpu-worker/ops/cuda/top_logits_cuda.h"

namespace hearth::bench {
namespace {

constexpr worker::DeltaShape kDelta{
    .key_heads = 16, .value_heads = 32, .key_dim = 128, .value_dim = 128};
constexpr worker::AttentionShape kAttention{.n_heads = 16, .n_kv_heads = 2, .head_dim = 256};
constexpr int kWidth = kExpertWidth, kPlaces = kTopK + 1, kPageTokens = 16, kConvolution = 4;
constexpr int kQkvz = 12288, kQueryGate = 8192, kKv = 512, kLayers = 4;
constexpr float kEps = 1e-6f;

#define RETURN_IF_CUDA_ERROR(expression)    \
  do {                                      \
    const cudaError_t error = (expression); \
    if (error != cudaSuccess) return error; \
  } while (false)

using Floats = std::shared_ptr<float>;
Floats Make(int64_t n, float size = 1) { return RandomDeviceFloats(static_cast<size_t>(n), size); }

template <typename T>
std::shared_ptr<void> OnDevice(const std::vector<T>& values) {
  auto data = RandomDeviceBits(values.size() * sizeof(T));
  cudaMemcpy(data.get(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice);
  return data;
}

class Layers {
 public:
  Layers(int n_rows, int64_t context) : n_(n_rows), context_(context) {
    constexpr auto k4 = worker::DecodeKind::kTiled4, kB = worker::DecodeKind::kBf16;
    const auto matrices = [](const std::vector<MatrixCase>& all, int64_t in) {
      std::vector<MatrixCopies> copies;
      copies.reserve(all.size());
      for (const MatrixCase& one : all) copies.emplace_back(one, in, kLayers);
      return copies;
    };
    delta_in_ = matrices({{k4, kQkvz}, {kB, 64}}, kWidth);
    attention_in_ = matrices({{k4, kQueryGate}, {k4, kKv}, {k4, kKv}}, kWidth);
    out_ = matrices({{k4, kWidth}}, 4096);
    router_ = matrices({{kB, kExperts}, {kB, 1}}, kWidth);
    for (int i = 0; i < kLayers * n_; ++i) {
      state_pointers_.push_back(state_.get() + int64_t{i} * 32 * 128 * 128);
      history_pointers_.push_back(history_.get() + int64_t{i} * 3 * kDelta.channels());
    }
    const auto pages = static_cast<int>((context + kPageTokens - 1) / kPageTokens);
    std::vector<int32_t> table(static_cast<size_t>(n_) * static_cast<size_t>(pages));
    std::iota(table.begin(), table.end(), 0);
    const size_t pool = size_t{1} * static_cast<size_t>(n_ * pages * kPageTokens * kKv);
    states_ = OnDevice(state_pointers_), histories_ = OnDevice(history_pointers_);
    table_ = OnDevice(table);
    keys_ = DeviceBf16(pool), values_ = DeviceBf16(pool);
    positions_ = OnDevice(std::vector<int64_t>(static_cast<size_t>(n_), context - 1));
    std::vector<double> frequencies;
    frequencies.reserve(32);
    for (int j = 0; j < 32; ++j) frequencies.push_back(std::pow(1e7, -j / 32.0));
    frequencies_ = OnDevice(frequencies);
    kv_ = {worker::KvType::kBf16,
           keys_.get(),
           values_.get(),
           static_cast<const int32_t*>(table_.get()),
           pages,
           kPageTokens};
    scratch_ = Make(worker::AttentionScratchFloats(kAttention, n_, context));
    tables_ = ExpertTables(kTables, n_, kPlaces, kExperts);
  }

  double bytes() const {
    const double delta = 17.0 / 32 * kWidth * kQkvz + 2.0 * 64 * kWidth + n_ * 8.0 * 32 * 128 * 128;
    const double attention = 17.0 / 32 * kWidth * (kQueryGate + 2 * kKv) +
                             4.0 * n_ * kKv * static_cast<double>(context_);
    double left = 1;
    for (int i = 0; i < n_; ++i) left *= 1 - double{kPlaces} / kExperts;
    const double half =
        17.0 / 32 * kWidth * 4096 + 2.0 * kExperts * kWidth + kExperts * (1 - left) * kExpertBytes;
    return 3 * delta + attention + kLayers * half;
  }

  cudaError_t Run(int i, cudaStream_t stream) const {
    for (int l = 0; l < kLayers; ++l) RETURN_IF_CUDA_ERROR(RunLayer(i, l, stream));
    return cudaSuccess;
  }

 private:
  static constexpr int kTables = 96;

  cudaError_t Linears(const std::vector<MatrixCopies>& matrices, int layer, const Floats& x,
                      const worker::RoundedRows& rounded, const std::vector<float*>& y,
                      cudaStream_t stream) const {
    std::vector<worker::DecodeLinear> linears;
    for (size_t j = 0; j < matrices.size(); ++j) {
      linears.push_back(matrices[j].Of(layer, levels_, y[j]));
    }
    return worker::DecodeLinearsCuda(linears.data(), static_cast<int>(linears.size()), n_, x.get(),
                                     rounded, stream);
  }

  // The residual stream plus delta, its norm and linears of that, as a step of so many rows does
  // it.
  cudaError_t NormAndLinears(const std::vector<MatrixCopies>& matrices, int layer, bool is_first,
                             const std::vector<float*>& y, cudaStream_t stream) const {
    if (n_ > worker::kMaxNormedRows) {
      RETURN_IF_CUDA_ERROR(worker::AddRmsNormCuda(n_, kWidth, x_.get(), {.delta = delta_.get()},
                                                  norm_.get(), kEps, h_.get(), rounded_h_, stream));
      return Linears(matrices, layer, h_, rounded_h_, y, stream);
    }
    std::vector<worker::DecodeLinear> linears;
    for (size_t j = 0; j < matrices.size(); ++j) {
      linears.push_back(matrices[j].Of(layer, levels_, y[j]));
    }
    return worker::NormedDecodeLinearsCuda(linears.data(), static_cast<int>(linears.size()), n_,
                                           {.x = is_first ? x_.get() : spare_.get(),
                                            .delta = delta_.get(),
                                            .weight = norm_.get(),
                                            .eps = kEps,
                                            .sum = is_first ? spare_.get() : x_.get(),
                                            .h = h_.get(),
                                            .rounded = rounded_h_},
                                           stream);
  }

  cudaError_t RunDelta(int l, cudaStream_t stream) const {
    RETURN_IF_CUDA_ERROR(NormAndLinears(delta_in_, l, true, {wide_.get(), ba_.get()}, stream));
    const worker::ConvolveWeights convolution{kConvolution, kernel_.get(), a_log_.get(),
                                              dt_bias_.get()};
    auto* const* states = static_cast<float* const*>(states_.get()) + int64_t{l} * n_;
    auto* const* histories = static_cast<float* const*>(histories_.get()) + int64_t{l} * n_;
    return worker::DeltaStepCuda(kDelta, n_,
                                 {.weights = convolution,
                                  .qkvz = wide_.get(),
                                  .ba = ba_.get(),
                                  .norm = norm_.get(),
                                  .eps = kEps,
                                  .histories = histories,
                                  .states = states,
                                  .arrivals = static_cast<uint32_t*>(arrivals_.get())},
                                 mixer_.get(), rounded_mixer_, stream);
  }

  cudaError_t RunAttention(int l, cudaStream_t stream) const {
    RETURN_IF_CUDA_ERROR(
        NormAndLinears(attention_in_, l, true, {wide_.get(), k_.get(), v_.get()}, stream));
    const auto* positions = static_cast<const int64_t*>(positions_.get());
    const worker::RotaryNorms norms{norm_.get(), norm_.get(), kEps};
    const worker::DeviceRotary rotary{static_cast<const double*>(frequencies_.get()), 32, 1};
    return worker::RotateAndAttendCuda(kAttention, n_, {norms, rotary, k_.get(), v_.get()},
                                       positions, context_, wide_.get(), kv_, scratch_.get(),
                                       mixer_.get(), rounded_mixer_, stream);
  }

  cudaError_t RunLayer(int i, int l, cudaStream_t stream) const {
    RETURN_IF_CUDA_ERROR(l == kLayers - 1 ? RunAttention(l, stream) : RunDelta(l, stream));
    RETURN_IF_CUDA_ERROR(Linears(out_, l, mixer_, rounded_mixer_, {delta_.get()}, stream));
    RETURN_IF_CUDA_ERROR(NormAndLinears(router_, l, false, {logits_.get(), gate_.get()}, stream));
    RETURN_IF_CUDA_ERROR(worker::RouteCuda({n_, kExperts, kTopK}, true, logits_.get(),
                                           static_cast<int32_t*>(ids_.get()), weights_.get(),
                                           stream));
    worker::ExpertsShape shape = AllExperts().shape;
    shape.n_rows = n_, shape.top_k = kPlaces;
    const auto* places = static_cast<const worker::ExpertPlace*>(tables_.get()) +
                         int64_t{(i * kLayers + l) % kTables} * n_ * kPlaces;
    return worker::DecodeExpertsCuda(shape, levels_, places, h_.get(), rounded_h_, act_.get(),
                                     delta_.get(), stream);
  }

  // A row of `columns` for each of the batch.
  Floats Rows(int64_t columns) const { return Make(n_ * columns); }

  int n_;
  int64_t context_;
  worker::DecodeLevels levels_ = worker::MakeDecodeLevels(kNf4Levels).value();
  std::vector<MatrixCopies> delta_in_, attention_in_, out_, router_;
  Floats x_ = Rows(kWidth), spare_ = Rows(kWidth), h_ = Rows(kWidth), delta_ = Rows(kWidth),
         norm_ = Make(kWidth), wide_ = Rows(kQkvz), ba_ = Rows(64),
         kernel_ = Make(int64_t{kConvolution} * kDelta.channels(), 0.3f), a_log_ = Make(32),
         dt_bias_ = Make(32), mixer_ = Rows(4096), k_ = Rows(kKv), v_ = Rows(kKv),
         logits_ = Rows(kExperts), gate_ = Make(n_), weights_ = Rows(kTopK),
         act_ = Rows(int64_t{kPlaces} * kExpertInner),
         state_ = Make(int64_t{kLayers} * n_ * 32 * 128 * 128, 0.1f),
         history_ = Make(int64_t{kLayers} * n_ * 3 * kDelta.channels()), scratch_;
  std::vector<float*> state_pointers_, history_pointers_;
  std::shared_ptr<void> states_, histories_, table_, keys_, values_, positions_, frequencies_,
      tables_, ids_ = RandomDeviceBits(static_cast<size_t>(n_ * kTopK) * 4);
  worker::DeviceKv kv_;
  std::shared_ptr<void> arrivals_ = OnDevice(std::vector<uint32_t>(static_cast<size_t>(n_) * 16));
  Floats h_words_ = Make(n_ * kWidth / 4), h_scales_ = Make(n_ * kWidth / 64),
         mixer_words_ = Make(n_ * 4096 / 4), mixer_scales_ = Make(n_ * 4096 / 64);
  worker::RoundedRows rounded_h_{reinterpret_cast<uint32_t*>(h_words_.get()), h_scales_.get()},
      rounded_mixer_{reinterpret_cast<uint32_t*>(mixer_words_.get()), mixer_scales_.get()};
};

// Of logits that the head has just left in L2.
void AddTopLogits(int n_rows, CudaCases* cases) {
  constexpr int kVocabulary = 151936;
  const auto scratch =
      OnDevice(std::vector<uint8_t>(static_cast<size_t>(worker::TopLogitsScratchBytes(n_rows))));
  const auto rows = RandomDeviceBits(static_cast<size_t>(n_rows) * sizeof(worker::TopLogitsRow));
  const Floats logits = Make(int64_t{n_rows} * kVocabulary, 3), temperatures = Make(n_rows);
  const auto run = [=](int, cudaStream_t stream) {
    return worker::TopLogitsCuda(n_rows, kVocabulary, logits.get(), temperatures.get(),
                                 scratch.get(), static_cast<worker::TopLogitsRow*>(rows.get()),
                                 stream);
  };
  cases->push_back({.op = "decode top logits",
                    .shape = "256 of 151936 x " + std::to_string(n_rows),
                    .bytes = 8.0 * n_rows * kVocabulary,
                    .run = run});
}

}  // namespace

void AddLayerCases(CudaCases* cases) {
  for (const int n : {1, 8}) AddTopLogits(n, cases);
  for (const int n : {1, 8}) {
    const auto layers = std::make_shared<Layers>(n, 2048);
    const std::string shape = "4 at 2048 x " + std::to_string(n);
    const auto run = [=](int i, cudaStream_t stream) { return layers->Run(i, stream); };
    const auto wait = [=](int i, cudaStream_t stream) {
      worker::ChainedLaunches() = false;
      const cudaError_t error = layers->Run(i, stream);
      worker::ChainedLaunches() = true;
      return error;
    };
    cases->push_back({.op = "decode layers", .shape = shape, .bytes = layers->bytes(), .run = run});
    cases->push_back({.op = "decode layers",
                      .shape = shape + ", unchained",
                      .bytes = layers->bytes(),
                      .run = wait});
  }
}

}  // namespace hearth::bench
