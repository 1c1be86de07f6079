#include "common/experts/describe.h"

#include <string>

#include "absl/strings/str_format.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "common/experts/crc32c.h"
#include "common/experts/packing.h"
#include "common/experts/segment_file.h"

namespace hearth {
namespace {

const char* StateName(uint32_t state) {
  switch (state) {
    case kExpertAbsent:
      return "absent";
    case kExpertLoading:
      return "loading";
    case kExpertReady:
      return "ready";
    case kExpertDamaged:
      return "damaged";
    default:
      return "unknown";
  }
}

const char* KindName(WeightKind kind) {
  switch (kind) {
    case WeightKind::kF32:
      return "f32";
    case WeightKind::kF16:
      return "f16";
    case WeightKind::kBF16:
      return "bf16";
    case WeightKind::kBlock4:
      return "block4";
    case WeightKind::kTiled4:
      return "tiled4";
    case WeightKind::kTiled8:
      return "tiled8";
  }
  return "unknown";
}

json::object Linear(const LinearRef& linear) {
  json::object result = {{"kind", KindName(linear.kind)}, {"out", linear.out}, {"in", linear.in}};
  if (linear.kind == WeightKind::kBlock4) result["block_size"] = linear.block_size;
  return result;
}

// What one expert's bytes say; "checksum" only where it was asked for.
json::object Expert(std::span<const std::byte> segment, const ExpertEntry& entry,
                    const DescribeOptions& options) {
  const uint32_t state = entry.state.load(std::memory_order_acquire);
  const uint32_t crc = entry.payload_crc.load(std::memory_order_relaxed);
  json::object result = {{"state", StateName(state)},
                         {"offset", entry.payload_offset},
                         {"bytes", entry.payload_bytes},
                         {"crc32c", absl::StrFormat("%08x", crc)}};
  if (options.checksums && state == kExpertReady) {
    result["checksum"] = Crc32c(PayloadOf(segment, entry)) == crc ? "ok" : "differs";
  }
  return result;
}

struct Totals {
  json::object states;
  uint64_t n = 0, payload_bytes = 0, n_damaged = 0;

  void Count(const json::object& expert) {
    ++n;
    payload_bytes += expert.at("bytes").to_number<uint64_t>();
    auto& count = states[expert.at("state").as_string()];
    count = count.is_null() ? 1 : count.as_int64() + 1;
    if (IsDamaged(expert)) ++n_damaged;
  }
  static bool IsDamaged(const json::object& expert) {
    const auto* checksum = expert.if_contains("checksum");
    return (checksum != nullptr && *checksum == "differs") || expert.at("state") == "damaged";
  }
};

json::object Layer(std::span<const std::byte> segment, const SegmentInfo& info, int layer,
                   const DescribeOptions& options, Totals* totals) {
  json::object result = {{"layer", layer}};
  json::array listed;
  const auto table = TableOf(segment, info);
  bool has_shapes = false;
  for (int e = 0; e < info.n_experts; ++e) {
    const ExpertEntry& entry = table[info.Index(layer, e)];
    if (entry.payload_bytes == 0) continue;
    json::object expert = Expert(segment, entry, options);
    totals->Count(expert);
    const bool is_ready = expert.at("state") == "ready";
    if (is_ready && !has_shapes) {
      if (const auto ref = UnpackExpert(PayloadOf(segment, entry)); ref.ok()) {
        has_shapes = true;
        result["gate_proj"] = Linear(ref->gate);
        result["up_proj"] = Linear(ref->up);
        result["down_proj"] = Linear(ref->down);
      }
    }
    if (options.experts || !is_ready || Totals::IsDamaged(expert)) {
      expert["expert"] = e;
      listed.push_back(std::move(expert));
    }
  }
  if (!listed.empty()) result["experts"] = std::move(listed);
  return result;
}

json::object Describe(std::span<const std::byte> segment, const SegmentInfo& info,
                      const std::string& identity, const DescribeOptions& options) {
  const bool is_ready = HeaderOf(segment).state.load(std::memory_order_acquire) == kSegmentReady;
  Totals totals;
  json::array layers;
  for (int layer = 0; layer < info.n_layers; ++layer) {
    layers.push_back(Layer(segment, info, layer, options, &totals));
  }
  return {{"state", is_ready ? "ready" : "loading"},
          {"layout_version", info.layout_version},
          {"expert_layout", info.expert_layout == kTiledExperts ? "tiled" : "plain"},
          {"fingerprint", info.fingerprint},
          {"identity", identity},
          {"bytes", info.total_bytes},
          {"table_offset", info.table_offset},
          {"payload_offset", info.payload_offset},
          {"n_layers", info.n_layers},
          {"n_experts", info.n_experts},
          {"experts", totals.n},
          {"experts_damaged", totals.n_damaged},
          {"payload_bytes", totals.payload_bytes},
          {"states", std::move(totals.states)},
          {"layers", std::move(layers)}};
}

}  // namespace

json::object DescribeSegment(const SegmentReader& reader, const DescribeOptions& options) {
  return Describe(reader.segment_bytes(), reader.info(), reader.identity(), options);
}

absl::StatusOr<json::object> DescribeSegmentFile(const std::filesystem::path& path,
                                                 const DescribeOptions& options) {
  HEARTH_ASSIGN_OR_RETURN(const SegmentFile file, OpenSegmentFile(path, FileAccess::kRead));
  HEARTH_ASSIGN_OR_RETURN(const SharedMapping mapping, SharedMapping::Map(file, FileAccess::kRead));
  const auto info = CheckHeader(mapping.bytes());
  if (!info.ok()) return Annotate(info.status(), path.string());
  HEARTH_RETURN_IF_ERROR(Annotate(CheckTable(mapping.bytes(), *info), path.string()));
  return Describe(mapping.bytes(), *info, file.identity, options);
}

}  // namespace hearth
