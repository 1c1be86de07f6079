// config.json and generation_config.json from a stranger, parted by the first NUL; what is accepted
// must be sane.
#include <cstdint>
#include <string_view>

#include "common/checkpoint/config.h"
#include "common/checkpoint/model_tensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const size_t split = text.find('\0');
  const auto config = hearth::ParseModelConfig(
      text.substr(0, split), split == std::string_view::npos ? "" : text.substr(split + 1));
  if (!config.ok()) return 0;
  const hearth::ModelConfig& c = *config;
  if (c.n_heads % c.n_kv_heads != 0 || c.linear_value_heads % c.linear_key_heads != 0 ||
      c.experts_per_token > c.n_experts || c.rope.rotary_dims > c.head_dim ||
      c.rope.rotary_dims % 2 != 0 || static_cast<int>(c.layers.size()) != c.n_layers ||
      c.conv_channels() <= 0) {
    __builtin_trap();
  }
  (void)hearth::ListModelTensors(c);
  (void)hearth::ListMtpTensors(c);
  return 0;
}
