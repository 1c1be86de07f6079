// How a step on the GPU finds its experts: those in VRAM through a device table, the others through
// a request to CPU threads, answered while the GPU computes the rest and joined by flags, without
// the host taking part in any launch.
//
//   DispatchExpertsCuda  looks the router's choice up, writes the places of the hits for the
//   experts'
//                        kernels, and asks for the misses: rows, places and activations to pinned
//                        host memory, then a ticket.
//   AwaitExpertsCuda     waits until the ticket has been answered and adds the CPU's sums.
//
// A decode step may also read missed experts where they lie in registered host memory: they become
// places like the hits, and the CPU is asked for the rest only.
//
// Tickets count up by one a request; a layer without misses asks nothing and waits for nothing. A
// wait ends after `await_nanoseconds` with `failed` set, so that a GPU is never stuck.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/base/line_fit.h"
#include "services/gpu-worker/ops/cuda/experts.h"

namespace hearth::worker {

struct MissedPlace {
  int32_t place = 0;
  int32_t expert = 0;
  float weight = 0;
};

// What the layers of a decode step took on the GPU.
struct StepTimes {
  // A point a layer: different missed experts, seconds from their dispatch until all is summed.
  LineSums layers;
  double awaited = 0;  // seconds of these in which the kernels waited for the CPU
};

// In pinned host memory. The GPU writes everything but `answer`, `ticket` last.
struct MissRequest {
  uint32_t ticket = 0;
  int32_t layer = 0;
  int32_t n_rows = 0;
  int32_t n_misses = 0;
  uint32_t heartbeat = 0;   // grows by one a dispatch or BeatCuda
  uint32_t steps_done = 0;  // grows by one a FinishStepCuda
  uint32_t failed = 0;      // a wait timed out: what was computed since is wrong
  uint32_t padding[9] = {};
  StepTimes times;      // of the last step that is done
  uint32_t answer = 0;  // the last ticket that was answered; the CPU writes it, after `sums`
};

// Tickets, misses of this layer, heartbeats, steps done, and whether a wait timed out: later ones
// end at once until the last is zeroed.
inline constexpr int kExchangeCounters = 5;
inline constexpr int kTimedOutCounter = 4;

// On the device, zero at first: of the step that runs.
struct StepClock {
  uint64_t asked = 0;   // nanoseconds; 0: not to be timed
  uint32_t missed = 0;  // different experts of the layer
  uint32_t padding = 0;
  StepTimes times;
};
inline constexpr uint64_t kAwaitNanoseconds = 20'000'000'000;

struct Exchange {
  MissRequest* request = nullptr;  // pinned
  MissedPlace* misses = nullptr;   // pinned [max_rows * top_k], in any order
  float* h = nullptr;              // pinned [max_rows, width]
  float* sums = nullptr;           // pinned [max_rows, width]: weighted sums over a row's misses
  uint32_t* counters = nullptr;    // device [kExchangeCounters], zero at first
  StepClock* clock = nullptr;      // device
  uint64_t await_nanoseconds = kAwaitNanoseconds;
};

struct DispatchShape {
  int layer = 0;
  int n_rows = 0;
  int top_k = 0;
  int width = 0;
  bool has_rows =
      false;  // exchange.h holds the rows already: a copy of many is faster than a block
};

//   ids, weights [n_rows * top_k]  the router's, device
//   positions [n_rows]             device; negative: an idle row, without places
//   slots [E]                      device: of this layer's experts; null: not in VRAM
//   h [n_rows, width]              device, 16-byte aligned; width % 4 == 0
//   places [n_rows * top_k]        device, written
//   is_here [E]                    device, written: 1 where slots has one; may be null
//   choices [n_rows * top_k]       pinned, written: the ids, with kReadInPlace if so; -1 in idle
//                                  rows; may be null
// One block; bytes over PCIe: 4 a place, and with misses 4 width a row.
struct DispatchInputs {
  const int32_t* ids = nullptr;
  const float* weights = nullptr;
  const int64_t* positions = nullptr;
  const uint8_t* const* slots = nullptr;
  int n_experts = 0;
  const float* h = nullptr;
};
cudaError_t DispatchExpertsCuda(const DispatchShape& shape, const DispatchInputs& in,
                                const Exchange& exchange, ExpertPlace* places, uint8_t* is_here,
                                int32_t* choices, cudaStream_t stream);

// The router's choice (router_cuda.h) and the dispatch of a decode step, in one launch.
//
//   host_slots [E]        device: where each expert of the layer lies in host memory that the GPU
//                         can read; null: it can't; may be null for all
//   in_place [n_rows * top_k + 1]      device: of so many different missed experts, how many the
//                         GPU reads in place: those that come last. Not read without host_slots
//   logits [n_rows, E]    device
//   imposed [n_rows * top_k]  device: ids instead of the chosen ones; may be null
//   shared_slot, shared_gate [n_rows]  the expert that every row has, packed as a slot, and the
//                         logits of its weight, device; a null slot: none. It becomes one more
//                         place.
//   ids, weights [n_rows * top_k]      device, written
//   places [n_rows * (top_k + 1)]      device, written; [n_rows * top_k] without shared_slot
// Requires n_rows <= 8, E <= 1024, top_k <= 32. One block.
inline constexpr int32_t kReadInPlace = 1 << 30;
struct DecodeRouting {
  const uint8_t* const* host_slots = nullptr;
  const uint16_t* in_place = nullptr;
  const float* logits = nullptr;
  bool normalise = true;
  const int32_t* imposed = nullptr;
  const uint8_t* shared_slot = nullptr;
  const float* shared_gate = nullptr;
  int32_t* ids = nullptr;
  float* weights = nullptr;
};
cudaError_t RouteAndDispatchCuda(const DispatchShape& shape, const DecodeRouting& routing,
                                 const DispatchInputs& in, const Exchange& exchange,
                                 ExpertPlace* places, int32_t* choices, cudaStream_t stream);

// out [n_rows, width] += sums, where this layer had misses.
cudaError_t AwaitExpertsCuda(const DispatchShape& shape, const Exchange& exchange, float* out,
                             cudaStream_t stream);

// heartbeat += 1: a layer that dispatches nothing has been reached.
cudaError_t BeatCuda(const Exchange& exchange, cudaStream_t stream);

// steps_done += 1, after everything before it in the stream.
cudaError_t FinishStepCuda(const Exchange& exchange, cudaStream_t stream);

// table[index] = slot, for each update; `updates` pinned.
struct SlotUpdate {
  const uint8_t* slot = nullptr;
  int64_t index = 0;
};
cudaError_t UpdateSlotsCuda(const SlotUpdate* updates, int n, const uint8_t** table,
                            cudaStream_t stream);

}  // namespace hearth::worker
