#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "bench/cuda_cases.h"

namespace hearth::bench {
namespace {

void Require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

std::shared_ptr<void> DeviceCopy(const void* host, size_t bytes) {
  void* data = nullptr;
  Require(cudaMalloc(&data, bytes), "memory for a case");
  std::shared_ptr<void> owner(data, [](void* at) { cudaFree(at); });
  Require(cudaMemcpy(data, host, bytes, cudaMemcpyHostToDevice), "inputs of a case");
  return owner;
}

}  // namespace

std::shared_ptr<void> RandomDeviceBits(size_t bytes) {
  std::vector<uint64_t> words((bytes + 7) / 8);
  std::mt19937_64 random(1);
  for (uint64_t& word : words) word = random();
  return DeviceCopy(words.data(), words.size() * 8);
}

std::shared_ptr<float> RandomDeviceFloats(size_t n, float size) {
  std::vector<float> values(n);
  std::mt19937 random(2);
  std::normal_distribution<float> normal(0, size);
  for (float& value : values) value = normal(random);
  return std::static_pointer_cast<float>(DeviceCopy(values.data(), n * sizeof(float)));
}

void AddCopyCase(CudaCases* cases) {
  constexpr size_t kBytes = size_t{512} << 20;
  const auto from = RandomDeviceBits(kBytes), to = RandomDeviceBits(kBytes);
  cases->push_back({.op = "copy",
                    .shape = "512 MiB, device to device",
                    .bytes = 2.0 * kBytes,
                    .run = [=](int, cudaStream_t stream) {
                      return cudaMemcpyAsync(to.get(), from.get(), kBytes, cudaMemcpyDeviceToDevice,
                                             stream);
                    }});
}

}  // namespace hearth::bench
