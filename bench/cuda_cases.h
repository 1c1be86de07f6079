// The cases of hearth-bench-cuda: one a kernel and shape. Each file of cases adds its own.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace hearth::bench {

struct CudaCase {
  std::string op;
  std::string shape;
  double bytes = 0;  // moved through device memory by one run: inputs once, outputs once
  double flops = 0;  // floating-point operations of one run; 0: not worth a column
  // Launches run number `i`. Runs take turns among several sets of inputs, together larger than the
  // card's L2, so that each finds its bytes in device memory. Captured into a graph: launches only.
  std::function<cudaError_t(int i, cudaStream_t stream)> run;
};

using CudaCases = std::vector<CudaCase>;

// Device-to-device copies: the rate that all others are measured by. The first case added.
void AddCopyCase(CudaCases* cases);
void AddLinearCases(CudaCases* cases);
void AddDecodeCases(CudaCases* cases);
void AddExpertCases(CudaCases* cases);
void AddLayerCases(CudaCases* cases);
void AddMixerCases(CudaCases* cases);
void AddAttentionCases(CudaCases* cases);
void AddPrefillCases(CudaCases* cases);
void AddPrefillMixerCases(CudaCases* cases);

// Device memory of random bits for a case, freed by the last owner. Ends the program where the card
// has too little.
std::shared_ptr<void> RandomDeviceBits(size_t bytes);
std::shared_ptr<float> RandomDeviceFloats(size_t n, float size = 1);
// Scales of tiles, and bf16 values: random bits alone would hold infinities.
std::shared_ptr<void> DeviceScales(size_t n);
std::shared_ptr<void> DeviceBf16(size_t n);

}  // namespace hearth::bench
