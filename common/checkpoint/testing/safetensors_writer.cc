#include "common/checkpoint/testing/safetensors_writer.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/base/json.h"
#include "common/tensor/linear.h"

namespace hearth::testing {
namespace {

constexpr int kNestedBlock = 256;

template <typename T>
std::string BytesOf(std::span<const T> values) {
  return {reinterpret_cast<const char*>(values.data()), values.size_bytes()};
}

size_t Nearest(std::span<const float> levels, float value) {
  size_t best = 0;
  for (size_t i = 1; i < levels.size(); ++i) {
    if (std::abs(levels[i] - value) < std::abs(levels[best] - value)) best = i;
  }
  return best;
}

// bitsandbytes' signed dynamic map of 8 bits: zero, one, and for each decade 10^(i - 6) the middles
// of 2^i equal parts of [0.1, 1], of both signs; sorted.
std::vector<float> DynamicMap() {
  std::vector<float> map = {0.f, 1.f};
  for (int i = 0; i < 7; ++i) {
    const int n = 1 << i;
    for (int j = 0; j < n; ++j) {
      const double middle = (0.1 + 0.9 * (j + 0.5) / n) * std::pow(10.0, i - 6);
      map.push_back(static_cast<float>(middle));
      map.push_back(static_cast<float>(-middle));
    }
  }
  std::sort(map.begin(), map.end());
  return map;
}

float AbsMax(std::span<const float> values) {
  float max = 0;
  for (const float value : values) max = std::max(max, std::abs(value));
  return max;
}

// Codes of two elements a byte, the earlier in the high half, and one scale a block.
struct Block4Codes {
  std::string codes;
  std::vector<float> absmax;
};

Block4Codes Quantize(std::span<const float> values, std::span<const float> levels,
                     size_t block_size) {
  Block4Codes result;
  result.codes.assign((values.size() + 1) / 2, '\0');
  for (size_t begin = 0; begin < values.size(); begin += block_size) {
    const auto block = values.subspan(begin, std::min(block_size, values.size() - begin));
    const float scale = AbsMax(block);
    result.absmax.push_back(scale);
    for (size_t i = 0; i < block.size(); ++i) {
      const size_t code = Nearest(levels, scale > 0 ? block[i] / scale : 0.f);
      const size_t element = begin + i;
      result.codes[element / 2] = static_cast<char>(
          static_cast<uint8_t>(result.codes[element / 2]) | (element % 2 == 0 ? code << 4 : code));
    }
  }
  return result;
}

// Replaces float scales by 8-bit codes around their mean; returns the mean.
float AddNestedAbsmax(const std::string& name, std::span<const float> absmax,
                      std::vector<RawTensor>& tensors) {
  const std::vector<float> map = DynamicMap();
  double sum = 0;
  for (const float scale : absmax) sum += scale;
  const float offset = static_cast<float>(sum / static_cast<double>(absmax.size()));
  std::vector<float> nested;
  std::string codes;
  for (size_t begin = 0; begin < absmax.size(); begin += kNestedBlock) {
    const size_t end = std::min(absmax.size(), begin + kNestedBlock);
    float scale = 0;
    for (size_t i = begin; i < end; ++i) scale = std::max(scale, std::abs(absmax[i] - offset));
    nested.push_back(scale);
    for (size_t i = begin; i < end; ++i) {
      codes.push_back(
          static_cast<char>(Nearest(map, scale > 0 ? (absmax[i] - offset) / scale : 0.f)));
    }
  }
  tensors.push_back({name + ".absmax", Dtype::kU8, {codes.size()}, codes});
  tensors.push_back(
      {name + ".nested_absmax", Dtype::kF32, {nested.size()}, BytesOf<float>(nested)});
  tensors.push_back({name + ".nested_quant_map", Dtype::kF32, {map.size()}, BytesOf<float>(map)});
  return offset;
}

void AddBlock4(const std::string& name, const std::vector<uint64_t>& shape,
               std::span<const float> values, bool is_fp4, const Block4Options& options,
               std::vector<RawTensor>& tensors) {
  const auto& levels = is_fp4 ? kFp4Levels : kNf4Levels;
  const char* type = is_fp4 ? "fp4" : "nf4";
  const Block4Codes block4 = Quantize(values, levels, static_cast<size_t>(options.block_size));
  tensors.push_back({name, Dtype::kU8, {block4.codes.size(), 1}, block4.codes});
  tensors.push_back({name + ".quant_map", Dtype::kF32, {16}, BytesOf<float>(levels)});
  json::object state = {{"quant_type", type},
                        {"blocksize", options.block_size},
                        {"dtype", "bfloat16"},
                        {"shape", json::array(shape.begin(), shape.end())}};
  if (options.double_quantization) {
    state["nested_offset"] = AddNestedAbsmax(name, block4.absmax, tensors);
    state["nested_blocksize"] = kNestedBlock;
    state["nested_dtype"] = "float32";
  } else {
    tensors.push_back(
        {name + ".absmax", Dtype::kF32, {block4.absmax.size()}, BytesOf<float>(block4.absmax)});
  }
  const std::string text = SerializeJson(state);
  tensors.push_back(
      {absl::StrCat(name, ".quant_state.bitsandbytes__", type), Dtype::kU8, {text.size()}, text});
}

}  // namespace

void AddTensor(std::string name, std::vector<uint64_t> shape, std::span<const float> values,
               Storage storage, const Block4Options& options, std::vector<RawTensor>& tensors) {
  if (storage == Storage::kNf4 || storage == Storage::kFp4) {
    return AddBlock4(name, shape, values, storage == Storage::kFp4, options, tensors);
  }
  if (storage == Storage::kF32) {
    tensors.push_back({std::move(name), Dtype::kF32, std::move(shape), BytesOf<float>(values)});
    return;
  }
  const bool is_f16 = storage == Storage::kF16;
  std::vector<uint16_t> halves;
  for (const float value : values) halves.push_back(is_f16 ? F32ToF16(value) : F32ToBF16(value));
  tensors.push_back({std::move(name), is_f16 ? Dtype::kF16 : Dtype::kBF16, std::move(shape),
                     BytesOf<uint16_t>(halves)});
}

}  // namespace hearth::testing
