#include "services/gpu-worker/engine/cuda/cuda_shapes.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "services/gpu-worker/engine/cuda/device_experts.h"

namespace hearth::worker {
namespace {

constexpr int kPageTokens = 64;
// Prompts of more rows have their experts streamed; fewer share the work with the CPU.
constexpr int kExchangeRows = 192;

absl::Status NotMadeFor(const char* field, int64_t value, const char* allowed) {
  return absl::UnimplementedError(absl::StrCat("the CUDA backend takes no model with ", field, " ",
                                               value, " (config.json): it must be ", allowed,
                                               "; choose --backend cpu"));
}

}  // namespace

absl::Status CheckModel(const ModelConfig& config) {
  const int d = config.head_dim;
  if (d != 32 && d != 64 && d != 128 && d != 256) {
    return NotMadeFor("head_dim", d, "32, 64, 128 or 256");
  }
  if (config.n_experts > 1024) return NotMadeFor("num_experts", config.n_experts, "at most 1024");
  // With the shared expert's place a row's places fill a warp.
  if (config.experts_per_token > 31) {
    return NotMadeFor("num_experts_per_tok", config.experts_per_token, "at most 31");
  }
  if (config.conv_width > 4) {
    return NotMadeFor("linear_conv_kernel_dim", config.conv_width, "at most 4");
  }
  const int keys = config.linear_key_head_dim, values = config.linear_value_head_dim;
  if (keys > 128) return NotMadeFor("linear_key_head_dim", keys, "at most 128");
  if (values > 128 || values % 4 != 0) {
    return NotMadeFor("linear_value_head_dim", values, "at most 128 and a multiple of 4");
  }
  return absl::OkStatus();
}

CudaShapes ShapesOf(const ModelConfig& config, const ModelWeights& weights,
                    const SlotLayout& layout, const EngineOptions& options) {
  CudaShapes shapes;
  const int max_drafts = weights.mtp.has_value() ? options.max_drafts : 0;
  DeviceStateShape& state = shapes.state;
  state = DeviceStateShape::Of(config, max_drafts);
  state.page_tokens = kPageTokens;
  state.n_pages = (options.kv_tokens + kPageTokens - 1) / kPageTokens;
  state.max_sequences = options.max_sequences;
  state.kv_type = options.exact ? KvType::kF32 : options.int8_kv ? KvType::kInt8 : KvType::kBf16;
  const int chunk = options.exact ? kDecodeRows : std::max(kDecodeRows, options.max_batch_tokens);
  shapes.backend = {.max_rows = chunk,
                    .exchange_rows = layout.can_cache ? std::min(chunk, kExchangeRows) : chunk,
                    .max_positions = state.n_pages * kPageTokens,
                    .kept_rows = kDecodeRows + options.max_sequences * (1 + max_drafts),
                    .exact = options.exact,
                    .max_drafts = max_drafts};
  return shapes;
}

VramNeeds NeedsOf(const ModelConfig& config, const ModelWeights& weights, const SlotLayout& layout,
                  const CudaShapes& shapes, const EngineOptions& options) {
  const DeviceStateShape& state = shapes.state;
  const bool with_mtp = shapes.backend.max_drafts > 0;
  VramNeeds needs;
  needs.fixed = {{"CUDA context", kContextBytes},
                 {"dense weights", DeviceWeightBytes(weights, layout, options.exact)},
                 {absl::StrCat("KV pages (", state.n_pages * state.page_tokens, " tokens)"),
                  static_cast<uint64_t>(state.KvBytes())},
                 {absl::StrCat("states (", state.max_sequences, " sequences)"),
                  static_cast<uint64_t>(state.StateBytes())},
                 {"work space", CudaBackend::ScratchBytes(config, shapes.backend)},
                 {"streaming and tables", DeviceExperts::ExtraBytes(config, layout, with_mtp)}};
  needs.slot_bytes = layout.can_cache ? layout.stride : 0;
  const auto n_layers =
      std::ranges::count(config.layers, true, &LayerConfig::has_experts) + (with_mtp ? 1 : 0);
  needs.all_experts = n_layers * config.n_experts;
  needs.wanted_slots = options.expert_slots;
  return needs;
}

}  // namespace hearth::worker
