#include "common/synthetic/tensors.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/json.h"
#include "common/synthetic/random.h"
#include "common/tensor/linear.h"

namespace hearth {
namespace {

using Constant = std::shared_ptr<const std::string>;

Constant RawBytes(std::span<const float> values) {
  return std::make_shared<std::string>(reinterpret_cast<const char*>(values.data()),
                                       values.size_bytes());
}

// Root mean square of the 16 levels, all equally likely.
float LevelDeviation() {
  double sum = 0;
  for (const float level : kNf4Levels) sum += static_cast<double>(level) * level;
  return static_cast<float>(std::sqrt(sum / 16));
}

// bitsandbytes' signed dynamic map: zero, one, and for each decade 10^(i - 6) the middles of 2^i
// equal parts of [0.1, 1], of both signs; sorted.
std::vector<float> DynamicMap() {
  std::vector<float> map = {0.F, 1.F};
  for (int i = 0; i < 7; ++i) {
    const int n = 1 << i;
    for (int j = 0; j < n; ++j) {
      const double middle = (0.1 + 0.9 * (j + 0.5) / n) * std::pow(10.0, i - 6);
      map.push_back(static_cast<float>(middle));
      map.push_back(static_cast<float>(-middle));
    }
  }
  std::ranges::sort(map);
  return map;
}

Constant StateText(const LinearSpec& spec) {
  const json::object state = {{"quant_type", "nf4"},
                              {"blocksize", kSyntheticBlock},
                              {"dtype", "bfloat16"},
                              {"shape", {spec.out, spec.in}},
                              {"nested_blocksize", kSyntheticNestedBlock},
                              {"nested_dtype", "float32"},
                              {"nested_offset", NestedOffset(spec)}};
  return std::make_shared<std::string>(SerializeJson(state));
}

SyntheticTensor MakeConstant(std::string name, Dtype dtype, Constant bytes) {
  const uint64_t n = bytes->size() / static_cast<uint64_t>(DtypeBytes(dtype));
  return {.name = std::move(name),
          .dtype = dtype,
          .shape = {n},
          .contents = Contents::kConstant,
          .constant = std::move(bytes)};
}

uint64_t CeilDiv(uint64_t a, uint64_t b) { return (a + b - 1) / b; }

std::vector<SyntheticTensor> Block4Tensors(const LinearSpec& spec) {
  static const Constant levels = RawBytes(kNf4Levels), nested_levels = RawBytes(NestedLevels());
  const std::string name = spec.module + ".weight";
  const uint64_t n = spec.out * spec.in, n_blocks = CeilDiv(n, kSyntheticBlock);
  std::vector<SyntheticTensor> group;
  group.push_back({.name = name,
                   .dtype = Dtype::kU8,
                   .shape = {CeilDiv(n, 2), 1},
                   .contents = Contents::kRandomBytes});
  group.push_back({.name = name + ".absmax",
                   .dtype = Dtype::kU8,
                   .shape = {n_blocks},
                   .contents = Contents::kRandomBytes});
  group.push_back({.name = name + ".nested_absmax",
                   .dtype = Dtype::kF32,
                   .shape = {CeilDiv(n_blocks, kSyntheticNestedBlock)},
                   .contents = Contents::kNestedScales,
                   .mean = NestedOffset(spec) / 4});
  group.push_back(MakeConstant(name + ".nested_quant_map", Dtype::kF32, nested_levels));
  group.push_back(MakeConstant(name + ".quant_map", Dtype::kF32, levels));
  group.push_back(
      MakeConstant(name + ".quant_state.bitsandbytes__nf4", Dtype::kU8, StateText(spec)));
  return group;
}

// Scales between 0.8 and 1.2 of their mean.
void FillScales(uint64_t stream, uint64_t offset, float mean, std::span<std::byte> bytes) {
  for (size_t i = 0; i + sizeof(float) <= bytes.size(); i += sizeof(float)) {
    const uint64_t word = RandomWord(stream, (offset + i) / sizeof(float));
    const float share = static_cast<float>(word >> 40) * (1.F / (1 << 24));
    const float scale = mean * (0.8F + 0.4F * share);
    std::memcpy(bytes.data() + i, &scale, sizeof(scale));
  }
}

}  // namespace

uint64_t SyntheticTensor::n_bytes() const {
  uint64_t n = static_cast<uint64_t>(DtypeBytes(dtype));
  for (const uint64_t dim : shape) n *= dim;
  return n;
}

bool IsQuantised(std::string_view module) {
  return module != "lm_head" && module != "model.embed_tokens" && !module.ends_with(".mlp.gate") &&
         !module.ends_with(".shared_expert_gate") && !module.ends_with(".in_proj_ba");
}

float NestedOffset(const LinearSpec& spec) {
  static const float level_deviation = LevelDeviation();
  return 1.F / (std::sqrt(static_cast<float>(spec.in)) * level_deviation);
}

const std::vector<float>& NestedLevels() {
  static const std::vector<float> levels = DynamicMap();
  return levels;
}

std::vector<SyntheticTensor> LinearTensors(const LinearSpec& spec) {
  if (IsQuantised(spec.module)) return Block4Tensors(spec);
  // Larger than what the layers add, or neighbouring tokens would look alike to the routers: at
  // 8 a prompt of 128 tokens chooses 452 of 512 experts a layer (470 if all were equally likely),
  // at 1 it chooses 173.
  const bool is_embedding = spec.module == "model.embed_tokens";
  return {{.name = spec.module + ".weight",
           .dtype = Dtype::kBF16,
           .shape = {spec.out, spec.in},
           .contents = Contents::kNormalBf16,
           .deviation = is_embedding ? 8.F : 1.F / std::sqrt(static_cast<float>(spec.in))}};
}

SyntheticTensor VectorTensor(const VectorSpec& spec) {
  SyntheticTensor tensor{.name = spec.name,
                         .dtype = Dtype::kBF16,
                         .shape = spec.shape,
                         .contents = Contents::kNormalBf16,
                         .deviation = 0.1F};
  if (spec.name.ends_with("linear_attn.norm.weight")) tensor.mean = 1;  // a plain factor
  if (spec.name.ends_with("conv1d.weight")) tensor.deviation = 0.5F;
  if (spec.name.ends_with("A_log")) {  // some heads forget within a few tokens, some in hundreds
    tensor.mean = -2;
    tensor.deviation = 1.5F;
  }
  return tensor;
}

std::vector<LinearSpec> ExpertLinears(const ModelConfig& config, const std::string& experts) {
  const auto hidden = static_cast<uint64_t>(config.hidden_size);
  const auto width = static_cast<uint64_t>(config.expert_intermediate_size);
  std::vector<LinearSpec> linears;
  for (int e = 0; e < config.n_experts; ++e) {
    const std::string prefix = absl::StrCat(experts, ".", e);
    linears.push_back({prefix + ".gate_proj", width, hidden});
    linears.push_back({prefix + ".up_proj", width, hidden});
    linears.push_back({prefix + ".down_proj", hidden, width});
  }
  return linears;
}

ModelTensors ListSyntheticModel(const ModelConfig& config, bool with_mtp) {
  ModelTensors model = ListModelTensors(config);
  if (!with_mtp) return model;
  const ModelTensors mtp = ListMtpTensors(config);
  model.linears.insert(model.linears.end(), mtp.linears.begin(), mtp.linears.end());
  model.vectors.insert(model.vectors.end(), mtp.vectors.begin(), mtp.vectors.end());
  model.experts.insert(model.experts.end(), mtp.experts.begin(), mtp.experts.end());
  return model;
}

std::vector<SyntheticTensor> ListSyntheticTensors(const ModelConfig& config, bool with_mtp) {
  const ModelTensors model = ListSyntheticModel(config, with_mtp);
  std::vector<SyntheticTensor> tensors;
  const auto add = [&tensors](const LinearSpec& spec) {
    for (SyntheticTensor& tensor : LinearTensors(spec)) tensors.push_back(std::move(tensor));
  };
  for (const LinearSpec& spec : model.linears) add(spec);
  for (const VectorSpec& spec : model.vectors) tensors.push_back(VectorTensor(spec));
  for (const std::string& experts : model.experts) {
    for (const LinearSpec& spec : ExpertLinears(config, experts)) add(spec);
  }
  return tensors;
}

void FillTensor(const SyntheticTensor& tensor, uint64_t seed, uint64_t offset,
                std::span<std::byte> bytes) {
  HEARTH_CHECK(offset % 8 == 0 && offset + bytes.size() <= tensor.n_bytes());
  const uint64_t stream = StreamOf(seed, tensor.name);
  switch (tensor.contents) {
    case Contents::kConstant:
      std::memcpy(bytes.data(), tensor.constant->data() + offset, bytes.size());
      return;
    case Contents::kRandomBytes:
      return FillRandomBytes(stream, offset, bytes);
    case Contents::kNestedScales:
      return FillScales(stream, offset, tensor.mean, bytes);
    case Contents::kNormalBf16:
      return FillNormalBf16(stream, offset / 2, tensor.mean, tensor.deviation, bytes);
  }
}

}  // namespace hearth
