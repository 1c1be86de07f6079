#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "bench/cuda_cases.h"
#include "common/tensor/linear.h"

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

// Values that differ from `bits` in what `mask` lets vary.
std::shared_ptr<void> DeviceHalves(size_t n, uint16_t bits, uint16_t mask) {
  std::vector<uint16_t> values(n);
  std::minstd_rand random(4);
  for (uint16_t& value : values) value = static_cast<uint16_t>(bits ^ ((random() >> 8) & mask));
  return DeviceCopy(values.data(), n * 2);
}

}  // namespace

std::shared_ptr<void> DeviceScales(size_t n) { return DeviceHalves(n, F32ToF16(0.02f), 0x1ff); }
std::shared_ptr<void> DeviceBf16(size_t n) { return DeviceHalves(n, F32ToBF16(0.02f), 0x807f); }

std::shared_ptr<void> RandomDeviceBits(size_t bytes) {
  std::vector<uint64_t> words((bytes + 7) / 8);
  uint64_t random = 1;
  for (uint64_t& word : words) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    word = random ^ random >> 33;
  }
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
