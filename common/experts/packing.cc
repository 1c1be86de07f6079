#include "common/experts/packing.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <optional>

#include "absl/strings/str_cat.h"
#include "common/base/checked.h"
#include "common/base/status_macros.h"
#include "common/experts/layout.h"
#include "common/tensor/tiled.h"

namespace hearth {
namespace {

// Where one linear's parts lie; both sides compute it from kind, shape and block size alone, so
// that a header can be checked against it.
struct Placement {
  PackedLinear header;
  uint64_t data_bytes;
  uint64_t absmax_bytes;
};

struct ExpertPlacement {
  std::array<Placement, 3> linears;  // gate, up, down
  uint64_t total_bytes;
};

bool HasBlocks(const LinearRef& linear) {
  return linear.kind == WeightKind::kBlock4 || linear.kind == WeightKind::kTiled4;
}

absl::Status CheckLinear(const LinearRef& linear, const char* name) {
  if (linear.kind > WeightKind::kTiled4) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": unknown kind ", static_cast<uint32_t>(linear.kind)));
  }
  if (linear.out < 1 || linear.in < 1 || linear.out > kMaxLinearDim || linear.in > kMaxLinearDim) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": shape [", linear.out, ", ", linear.in,
                                                   "], allowed are 1 to ", kMaxLinearDim));
  }
  if (!HasBlocks(linear)) return absl::OkStatus();
  if (linear.kind == WeightKind::kTiled4 &&
      (linear.in % kTileColumns != 0 || linear.block_size != kTileColumns ||
       !std::isnormal(linear.factor) || linear.factor < 0)) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": no tiles of ", linear.block_size,
                                                   " columns at a width of ", linear.in));
  }
  if (linear.block_size < 1 || linear.block_size > (1 << 16)) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": block size ", linear.block_size, ", allowed are 1 to 65536"));
  }
  const bool finite = std::all_of(linear.levels.begin(), linear.levels.end(),
                                  [](float level) { return std::isfinite(level); });
  if (!finite) return absl::InvalidArgumentError(absl::StrCat(name, ": a level is not finite"));
  return absl::OkStatus();
}

// Rounds up; the sizes here are bounded by kMaxLinearDim, far from overflow.
uint64_t AlignTensor(uint64_t offset) {
  return (offset + kTensorAlignment - 1) / kTensorAlignment * kTensorAlignment;
}

Placement PlaceLinear(const LinearRef& linear, uint64_t* cursor) {
  const bool has_blocks = HasBlocks(linear);
  const LinearBytes sizes = BytesOf(linear);
  Placement placed{};
  placed.header.kind = static_cast<uint32_t>(linear.kind);
  placed.header.block_size = has_blocks ? static_cast<uint32_t>(linear.block_size) : 0;
  placed.header.out = linear.out;
  placed.header.in = linear.in;
  if (has_blocks) std::copy(linear.levels.begin(), linear.levels.end(), placed.header.levels);
  if (linear.kind == WeightKind::kTiled4) placed.header.factor = linear.factor;
  placed.data_bytes = sizes.data;
  placed.absmax_bytes = has_blocks ? sizes.absmax : 0;
  placed.header.data_offset = *cursor;
  *cursor = AlignTensor(*cursor + placed.data_bytes);
  if (has_blocks) {
    placed.header.absmax_offset = *cursor;
    *cursor = AlignTensor(*cursor + placed.absmax_bytes);
  }
  return placed;
}

absl::StatusOr<ExpertPlacement> PlaceExpert(const ExpertRef& expert) {
  HEARTH_RETURN_IF_ERROR(CheckLinear(expert.gate, "gate_proj"));
  HEARTH_RETURN_IF_ERROR(CheckLinear(expert.up, "up_proj"));
  HEARTH_RETURN_IF_ERROR(CheckLinear(expert.down, "down_proj"));
  if (expert.up.out != expert.gate.out || expert.up.in != expert.gate.in ||
      expert.down.out != expert.gate.in || expert.down.in != expert.gate.out) {
    return absl::InvalidArgumentError(
        absl::StrCat("shapes don't fit together: gate_proj [", expert.gate.out, ", ",
                     expert.gate.in, "], up_proj [", expert.up.out, ", ", expert.up.in,
                     "], down_proj [", expert.down.out, ", ", expert.down.in, "]"));
  }
  ExpertPlacement placement;
  uint64_t cursor = sizeof(PackedExpert);
  placement.linears[0] = PlaceLinear(expert.gate, &cursor);
  placement.linears[1] = PlaceLinear(expert.up, &cursor);
  placement.linears[2] = PlaceLinear(expert.down, &cursor);
  placement.total_bytes = cursor;
  return placement;
}

// What `linear` becomes in this layout, without places.
LinearRef Target(const LinearRef& linear, ExpertLayout layout) {
  return layout == kTiledExperts && CanTile4(linear) ? Tiled4Form(linear) : linear;
}

ExpertRef Target(const ExpertRef& expert, ExpertLayout layout) {
  return {Target(expert.gate, layout), Target(expert.up, layout), Target(expert.down, layout)};
}

// Completes the header.
void CopyLinear(const LinearRef& from, Placement& to, std::span<std::byte> payload) {
  if (static_cast<uint32_t>(from.kind) != to.header.kind) {
    to.header.factor = Tile4(from, payload.data() + to.header.data_offset,
                             reinterpret_cast<uint16_t*>(payload.data() + to.header.absmax_offset));
    return;
  }
  std::memcpy(payload.data() + to.header.data_offset, from.data, to.data_bytes);
  if (to.absmax_bytes > 0) {
    std::memcpy(payload.data() + to.header.absmax_offset, from.absmax, to.absmax_bytes);
  }
}

// What a header says, without places: enough to compute where things must lie.
LinearRef Described(const PackedLinear& header) {
  LinearRef linear;
  linear.kind = static_cast<WeightKind>(header.kind);
  linear.out = header.out;
  linear.in = header.in;
  if (linear.kind == WeightKind::kTiled4) linear.factor = header.factor;
  if (!HasBlocks(linear)) return linear;
  linear.block_size = static_cast<int32_t>(std::min(header.block_size, uint32_t{1} << 30));
  std::copy(std::begin(header.levels), std::end(header.levels), linear.levels.begin());
  return linear;
}

void PointInto(std::span<const std::byte> payload, const Placement& placed, LinearRef* linear) {
  linear->data = payload.data() + placed.header.data_offset;
  if (placed.absmax_bytes > 0) {
    const std::byte* scales = payload.data() + placed.header.absmax_offset;
    if (linear->kind == WeightKind::kTiled4) {
      linear->scales = reinterpret_cast<const uint16_t*>(scales);
    } else {
      linear->absmax = reinterpret_cast<const float*>(scales);
    }
  }
}

}  // namespace

absl::StatusOr<uint64_t> PackedExpertBytes(const ExpertRef& expert, ExpertLayout layout) {
  HEARTH_RETURN_IF_ERROR(PlaceExpert(expert).status());  // bad shapes have no target
  HEARTH_ASSIGN_OR_RETURN(const ExpertPlacement placement, PlaceExpert(Target(expert, layout)));
  return placement.total_bytes;
}

absl::Status PackExpert(const ExpertRef& expert, ExpertLayout layout,
                        std::span<std::byte> payload) {
  HEARTH_RETURN_IF_ERROR(PlaceExpert(expert).status());
  HEARTH_ASSIGN_OR_RETURN(ExpertPlacement placement, PlaceExpert(Target(expert, layout)));
  if (placement.total_bytes != payload.size()) {
    return absl::FailedPreconditionError(absl::StrCat("expert takes ", placement.total_bytes,
                                                      " bytes, reserved are ", payload.size()));
  }
  auto& [gate, up, down] = placement.linears;
  // Padding is zeroed too: it is part of the checksum.
  std::memset(payload.data(), 0, payload.size());
  CopyLinear(expert.gate, gate, payload);
  CopyLinear(expert.up, up, payload);
  CopyLinear(expert.down, down, payload);
  const PackedExpert headers{gate.header, up.header, down.header};
  std::memcpy(payload.data(), &headers, sizeof headers);
  return absl::OkStatus();
}

absl::StatusOr<ExpertRef> UnpackExpert(std::span<const std::byte> payload) {
  PackedExpert headers;
  if (payload.size() < sizeof headers) return absl::DataLossError("payload is too short");
  // A copy: what was checked is what is used, whatever happens to the shared bytes meanwhile.
  std::memcpy(&headers, payload.data(), sizeof headers);
  ExpertRef expert{Described(headers.gate), Described(headers.up), Described(headers.down)};
  const absl::StatusOr<ExpertPlacement> placement = PlaceExpert(expert);
  if (!placement.ok()) return absl::DataLossError(placement.status().message());
  const auto& [gate, up, down] = placement->linears;
  const PackedExpert expected{gate.header, up.header, down.header};
  if (placement->total_bytes != payload.size() ||
      std::memcmp(&headers, &expected, sizeof headers) != 0) {
    return absl::DataLossError("headers don't describe this payload");
  }
  PointInto(payload, gate, &expert.gate);
  PointInto(payload, up, &expert.up);
  PointInto(payload, down, &expert.down);
  return expert;
}

}  // namespace hearth
