// Experts packed into slots and rows' choices among them, for the tests of the experts' kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "services/gpu-worker/ops/cuda/cuda_testing.h"
#include "services/gpu-worker/ops/cuda/experts.h"
#include "services/gpu-worker/ops/cuda/matrix_testing.h"

namespace hearth::worker {

struct Expert {
  Expert(int width, int inner, uint32_t seed)
      : gate(WeightKind::kTiled4, inner, width, seed),
        up(WeightKind::kTiled4, inner, width, seed + 1),
        down(WeightKind::kTiled4, width, inner, seed + 2) {
    gate.ref.factor = 0.125f, up.ref.factor = std::ldexp(1.f, -static_cast<int>(seed % 5));
  }
  HostMatrix gate, up, down;
};

// Slots of `n` experts side by side: three factors, then data and scales at multiples of 64 bytes.
struct Slots {
  Slots(int n, int width, int inner) {
    for (int e = 0; e < n; ++e) {
      experts.push_back(std::make_unique<Expert>(width, inner, static_cast<uint32_t>(10 * e + 1)));
    }
    int64_t end = 64;
    const auto take = [&](const LinearRef& ref, int64_t factor) {
      const auto rounded = [](uint64_t bytes) {
        return static_cast<int64_t>((bytes + 63) / 64 * 64);
      };
      SlotMatrix matrix{.data = end, .scales = 0, .factor = factor};
      end += rounded(BytesOf(ref).data);
      matrix.scales = end;
      end += rounded(BytesOf(ref).absmax);
      return matrix;
    };
    shape.gate = take(experts[0]->gate.ref, 0);
    shape.up = take(experts[0]->up.ref, 4);
    shape.down = take(experts[0]->down.ref, 8);
    shape.width = width, shape.inner = inner;
    shape.levels = LevelsOf(experts[0]->gate.ref);
    slot_bytes = end;
    std::vector<uint8_t> bytes(static_cast<size_t>(n * end));
    for (int e = 0; e < n; ++e) {
      uint8_t* slot = bytes.data() + e * end;
      const auto put = [&](const HostMatrix& host, const SlotMatrix& matrix) {
        std::memcpy(slot + matrix.factor, &host.ref.factor, 4);
        std::memcpy(slot + matrix.data, host.data.data(), host.data.size());
        std::memcpy(slot + matrix.scales, host.scales.data(), host.scales.size() * 2);
      };
      put(experts[static_cast<size_t>(e)]->gate, shape.gate);
      put(experts[static_cast<size_t>(e)]->up, shape.up);
      put(experts[static_cast<size_t>(e)]->down, shape.down);
    }
    memory = ToDevice(bytes);
  }
  std::vector<std::unique_ptr<Expert>> experts;
  ExpertsShape shape;
  int64_t slot_bytes = 0;
  DeviceBuffer<uint8_t> memory;
};

// An expert of -1 is not here.
struct Choice {
  std::vector<int> experts;
  std::vector<float> weights;
};

inline Choice Choose(int n_rows, int top_k, int n_experts, bool with_absent) {
  Choice choice;
  for (int p = 0; p < n_rows * top_k; ++p) {
    const bool absent = with_absent && p % 3 == 1;
    choice.experts.push_back(absent ? -1 : p * 5 % n_experts);
    choice.weights.push_back(0.05f + 0.1f * static_cast<float>(p % 7));
  }
  return choice;
}

// The table of rows [first_row, first_row + n_rows).
inline std::vector<ExpertPlace> PlacesOf(const Slots& slots, int n_rows, int top_k,
                                         const Choice& choice, int first_row) {
  std::vector<ExpertPlace> places;
  for (int p = first_row * top_k; p < (first_row + n_rows) * top_k; ++p) {
    const int e = choice.experts[static_cast<size_t>(p)];
    places.push_back({.slot = e < 0 ? nullptr : slots.memory.data() + e * slots.slot_bytes,
                      .weight = choice.weights[static_cast<size_t>(p)]});
  }
  return places;
}

}  // namespace hearth::worker
