// The tensors of a synthetic model, as published checkpoints name and store them, and their
// contents. Both ways to such a model (files, and straight into memory) draw from here, so both
// give the same bytes.
//
// Weights are about N(0, 1 / in), so that activations keep their size through any number of layers.
// 4-bit codes are uniform; scales vary by a quarter around what gives the codes that deviation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/checkpoint/config.h"
#include "common/checkpoint/model_tensors.h"
#include "common/checkpoint/safetensors.h"

namespace hearth {

enum class Contents { kConstant, kRandomBytes, kNormalBf16, kNestedScales };

struct SyntheticTensor {
  std::string name;
  Dtype dtype = Dtype::kU8;
  std::vector<uint64_t> shape;
  Contents contents = Contents::kConstant;
  float mean = 0;       // kNormalBf16; kNestedScales: of the scales
  float deviation = 0;  // kNormalBf16
  std::shared_ptr<const std::string> constant = nullptr;  // kConstant; shared by many tensors

  uint64_t n_bytes() const;
};

// Linears that published files keep in bf16: router, shared expert's gate, in_proj_ba, embedding
// and head.
bool IsQuantised(std::string_view module);

inline constexpr int kSyntheticBlock = 64;
inline constexpr int kSyntheticNestedBlock = 256;

// One tensor, or the group of six of an NF4 linear: codes, absmax, nested_absmax, nested_quant_map,
// quant_map, quant_state.
std::vector<SyntheticTensor> LinearTensors(const LinearSpec& spec);
SyntheticTensor VectorTensor(const VectorSpec& spec);
float NestedOffset(const LinearSpec& spec);  // the middle of a 4-bit linear's scales
const std::vector<float>& NestedLevels();    // bitsandbytes' 256 levels of absmax codes
std::vector<LinearSpec> ExpertLinears(const ModelConfig& config, const std::string& experts);

// All of a model, with or without a multi-token prediction head.
ModelTensors ListSyntheticModel(const ModelConfig& config, bool with_mtp);
// The same in the order of its files.
std::vector<SyntheticTensor> ListSyntheticTensors(const ModelConfig& config, bool with_mtp);

// Bytes `offset` (a multiple of 8) to offset + bytes.size() of a tensor.
void FillTensor(const SyntheticTensor& tensor, uint64_t seed, uint64_t offset,
                std::span<std::byte> bytes);

}  // namespace hearth
