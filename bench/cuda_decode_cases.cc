// The integer linears of a decode step of the 80B model, alone and as many as share an input.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bench/cuda_cases.h"
#include "bench/cuda_matrices.h"
#include "services/gpu-worker/ops/cuda/chained_launches.h"

namespace hearth::bench {
namespace {

using worker::DecodeKind;
using worker::DecodeLinear;

// Together larger than any L2.
constexpr double kRotatedBytes = 200e6;

void AddLinears(const std::string& name, const std::vector<MatrixCase>& matrices, int64_t in,
                int n_rows, CudaCases* cases) {
  double weight_bytes = 0, outputs = 0;
  for (const MatrixCase& matrix : matrices) {
    weight_bytes +=
        static_cast<double>(matrix.out * in) * (matrix.kind == DecodeKind::kTiled4   ? 17.0 / 32
                                                : matrix.kind == DecodeKind::kTiled8 ? 33.0 / 32
                                                                                     : 2);
    outputs += static_cast<double>(matrix.out);
  }
  const int n_copies = 2 + static_cast<int>(kRotatedBytes / weight_bytes);
  auto all = std::make_shared<std::vector<MatrixCopies>>();
  std::vector<std::shared_ptr<float>> y;
  for (const MatrixCase& matrix : matrices) {
    all->emplace_back(matrix, in, n_copies);
    y.push_back(RandomDeviceFloats(static_cast<size_t>(n_rows * matrix.out)));
  }
  const auto x = RandomDeviceFloats(static_cast<size_t>(n_rows * in));
  const auto words = RandomDeviceBits(static_cast<size_t>(n_rows * in));
  const auto scales = RandomDeviceFloats(static_cast<size_t>(n_rows * in / 64));
  const worker::RoundedRows rounded = {static_cast<uint32_t*>(words.get()), scales.get()};
  const auto levels = worker::MakeDecodeLevels(kNf4Levels).value();
  const auto run = [=, words = words, scales = scales](int i, cudaStream_t stream) {
    std::vector<DecodeLinear> linears;
    for (size_t j = 0; j < all->size(); ++j) {
      linears.push_back((*all)[j].Of(i % n_copies, levels, y[j].get()));
    }
    return worker::DecodeLinearsCuda(linears.data(), static_cast<int>(linears.size()), n_rows,
                                     x.get(), rounded, stream);
  };
  const CudaCase one = {.op = "decode linear",
                        .shape = name + " x " + std::to_string(n_rows),
                        .bytes = weight_bytes + 4.0 * n_rows * (static_cast<double>(in) + outputs),
                        .flops = 2.0 * n_rows * static_cast<double>(in) * outputs,
                        .run = run};
  cases->push_back(one);
  CudaCase waiting = one;
  waiting.shape += ", unchained";
  waiting.run = [run](int i, cudaStream_t stream) {
    worker::ChainedLaunches() = false;
    const cudaError_t error = run(i, stream);
    worker::ChainedLaunches() = true;
    return error;
  };
  cases->push_back(waiting);
}

}  // namespace

void AddDecodeCases(CudaCases* cases) {
  constexpr auto k4 = DecodeKind::kTiled4, k8 = DecodeKind::kTiled8, kB = DecodeKind::kBf16;
  for (const int n : {1, 2, 4, 8}) AddLinears("12288 of 2048", {{k4, 12288}}, 2048, n, cases);
  for (const int n : {1, 8}) {
    AddLinears("8192 + 512 + 512 of 2048", {{k4, 8192}, {k4, 512}, {k4, 512}}, 2048, n, cases);
    AddLinears("12288 + 64 bf16 of 2048", {{k4, 12288}, {kB, 64}}, 2048, n, cases);
    AddLinears("512 + 512 + 512 bf16 + 1 bf16 of 2048", {{k4, 512}, {k4, 512}, {kB, 512}, {kB, 1}},
               2048, n, cases);
    AddLinears("2048 of 4096", {{k4, 2048}}, 4096, n, cases);
    AddLinears("512 of 2048", {{k4, 512}}, 2048, n, cases);
    AddLinears("2048 of 512", {{k4, 2048}}, 512, n, cases);
    AddLinears("151936 8-bit of 2048", {{k8, 151936}}, 2048, n, cases);
    AddLinears("512 bf16 of 2048", {{kB, 512}}, 2048, n, cases);
  }
}

}  // namespace hearth::bench
