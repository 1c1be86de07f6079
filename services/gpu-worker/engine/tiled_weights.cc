#include "services/gpu-worker/engine/tiled_weights.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <vector>

#include "common/base/status_macros.h"
#include "common/base/thread_pool.h"
#include "common/experts/memory_room.h"
#include "common/tensor/tiled.h"

namespace hearth::worker {
namespace {

constexpr uint64_t kAlignment = 64;
// Strips that one thread tiles at once: the head has ten thousand.
constexpr int64_t kStripsAPart = 256;

uint64_t Aligned(uint64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// What becomes of one linear, and where.
struct Move {
  OwnedLinear* linear;
  LinearRef form;
  uint64_t data_offset = 0, scales_offset = 0;
};

void AddLinears(MlpWeights& mlp, std::vector<OwnedLinear*>& all) {
  all.insert(all.end(), {&mlp.gate, &mlp.up, &mlp.down});
}

void AddLinears(LayerWeights& layer, std::vector<OwnedLinear*>& all) {
  AttentionWeights& a = layer.attention;
  DeltaNetWeights& d = layer.delta_net;
  ExpertLayerWeights& e = layer.experts;
  all.insert(all.end(), {&a.q_proj, &a.k_proj, &a.v_proj, &a.o_proj, &d.in_proj_qkvz, &d.in_proj_ba,
                         &d.out_proj, &e.router, &e.shared_expert_gate});
  AddLinears(e.shared_expert, all);
  AddLinears(layer.mlp, all);
}

std::vector<OwnedLinear*> LayerLinears(ModelWeights& weights) {
  std::vector<OwnedLinear*> all;
  for (LayerWeights& layer : weights.layers) AddLinears(layer, all);
  if (weights.mtp.has_value()) {
    all.push_back(&weights.mtp->fc);
    AddLinears(weights.mtp->layer, all);
  }
  std::erase_if(all, [](const OwnedLinear* linear) { return linear->ref.data == nullptr; });
  return all;
}

std::vector<Move> PlanMoves(ModelWeights& weights, DenseReader reader, uint64_t* total) {
  std::vector<Move> moves;
  for (OwnedLinear* linear : LayerLinears(weights)) {
    moves.push_back({.linear = linear, .form = DenseForm(linear->ref, false, reader)});
  }
  moves.push_back({.linear = &weights.head, .form = DenseForm(weights.head.ref, true, reader)});
  *total = 0;
  for (Move& move : moves) {
    const LinearBytes bytes = BytesOf(move.form);
    move.data_offset = *total;
    *total += Aligned(bytes.data);
    move.scales_offset = *total;
    *total += Aligned(bytes.absmax);
  }
  return moves;
}

// Rows [first, first + n) of a plain matrix, whose rows begin at whole bytes and blocks.
LinearRef Rows(const LinearRef& plain, int64_t first, int64_t n) {
  LinearRef rows = plain;
  rows.out = n;
  LinearRef before = plain;
  before.out = first;
  rows.data = static_cast<const std::byte*>(plain.data) + BytesOf(before).data;
  if (plain.absmax != nullptr) rows.absmax = plain.absmax + BytesOf(before).absmax / sizeof(float);
  return rows;
}

// One part of a tiled 8-bit matrix has a factor of its own, so that matrices in several parts are
// brought to one: the largest, which divides the others' scales by a power of two.
struct Part {
  size_t move;
  int64_t first_strip, n_strips;
  float factor = 1;
};

std::vector<Part> PlanParts(const std::vector<Move>& moves) {
  std::vector<Part> parts;
  for (size_t i = 0; i < moves.size(); ++i) {
    const LinearRef& form = moves[i].form;
    const bool is_tiled = form.kind == WeightKind::kTiled4 || form.kind == WeightKind::kTiled8;
    const int64_t n_strips = is_tiled ? TileStrips(form) : 1;
    const int64_t step = is_tiled ? kStripsAPart : 1;
    for (int64_t first = 0; first < n_strips; first += step) {
      parts.push_back({i, first, std::min(step, n_strips - first)});
    }
  }
  return parts;
}

void MovePart(const Move& move, std::byte* memory, Part* part) {
  const LinearRef& plain = move.linear->ref;
  std::byte* data = memory + move.data_offset;
  auto* scales = reinterpret_cast<uint16_t*>(memory + move.scales_offset);
  if (move.form.kind == plain.kind) {
    const LinearBytes bytes = BytesOf(plain);
    std::memcpy(data, plain.data, bytes.data);
    if (bytes.absmax > 0) std::memcpy(scales, plain.absmax, bytes.absmax);
    return;
  }
  if (move.form.kind == WeightKind::kF32) {
    for (int64_t row = 0; row < plain.out; ++row) {
      DequantizeRow(plain, row,
                    std::span(reinterpret_cast<float*>(data) + row * plain.in,
                              static_cast<size_t>(plain.in)));
    }
    return;
  }
  const int64_t first = part->first_strip * kTileRows;
  const LinearRef rows =
      Rows(plain, first, std::min(plain.out - first, part->n_strips * kTileRows));
  const int64_t tile = part->first_strip * (plain.in / kTileColumns);
  const bool is_4 = move.form.kind == WeightKind::kTiled4;
  const auto fill = is_4 ? Tile4 : Tile8;
  part->factor =
      fill(rows, data + tile * (is_4 ? kTile4Bytes : kTile8Bytes), scales + tile * kTileRows);
}

void ScalePart(const Move& move, std::byte* memory, const Part& part, float factor) {
  if (part.factor == factor) return;
  auto* scales = reinterpret_cast<uint16_t*>(memory + move.scales_offset);
  const int64_t a_strip = move.form.in / kTileColumns * kTileRows;
  const float ratio = part.factor / factor;
  for (int64_t i = part.first_strip * a_strip; i < (part.first_strip + part.n_strips) * a_strip;
       ++i) {
    scales[i] = F32ToF16(F16ToF32(scales[i]) * ratio);
  }
}

void Repoint(const Move& move, float factor, std::byte* memory) {
  OwnedLinear& linear = *move.linear;
  linear.ref = move.form;
  linear.ref.data = memory + move.data_offset;
  const void* scales = memory + move.scales_offset;
  if (linear.ref.kind == WeightKind::kBlock4) {
    linear.ref.absmax = static_cast<const float*>(scales);
  } else {
    linear.ref.scales = static_cast<const uint16_t*>(scales);
    linear.ref.factor = factor;
  }
  linear.absmax = {};
  linear.aligned = {};
}

}  // namespace

LinearRef DenseForm(const LinearRef& linear, bool is_head, DenseReader reader) {
  if (reader != DenseReader::kCudaExact) {
    if (CanTile4(linear)) return Tiled4Form(linear);
    if (is_head && linear.kind != WeightKind::kBlock4 && CanTile8(linear)) {
      return Tiled8Form(linear);
    }
  }
  if (reader == DenseReader::kCpu || (linear.kind == WeightKind::kBF16 && linear.in % 8 == 0)) {
    return linear;
  }
  return {.kind = WeightKind::kF32, .out = linear.out, .in = linear.in};
}

std::vector<OwnedLinear*> DenseLinears(ModelWeights& weights) {
  std::vector<OwnedLinear*> all = LayerLinears(weights);
  all.push_back(&weights.head);
  return all;
}

uint64_t TiledBytes(ModelWeights& weights, DenseReader reader) {
  uint64_t total = 0;
  PlanMoves(weights, reader, &total);
  return total;
}

absl::StatusOr<PageBuffer> TileWeights(ModelWeights& weights, int n_threads, DenseReader reader) {
  uint64_t total = 0;
  const std::vector<Move> moves = PlanMoves(weights, reader, &total);
  HEARTH_RETURN_IF_ERROR(CheckRoom(total, {}));
  HEARTH_ASSIGN_OR_RETURN(PageBuffer buffer, PageBuffer::Allocate(total));
  std::vector<Part> parts = PlanParts(moves);
  ThreadPool pool(n_threads);
  pool.ParallelFor(static_cast<int>(parts.size()), [&](int i) {
    Part& part = parts[static_cast<size_t>(i)];
    MovePart(moves[part.move], buffer.data(), &part);
  });
  std::vector<float> factors(moves.size(), 0);
  for (const Part& part : parts) factors[part.move] = std::max(factors[part.move], part.factor);
  pool.ParallelFor(static_cast<int>(parts.size()), [&](int i) {
    const Part& part = parts[static_cast<size_t>(i)];
    const WeightKind kind = moves[part.move].form.kind;
    if (kind == WeightKind::kTiled4 || kind == WeightKind::kTiled8) {
      ScalePart(moves[part.move], buffer.data(), part, factors[part.move]);
    }
  });
  for (size_t i = 0; i < moves.size(); ++i) Repoint(moves[i], factors[i], buffer.data());
  return buffer;
}

}  // namespace hearth::worker
