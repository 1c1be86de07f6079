#include "services/gpu-worker/ops/cuda/exchange.h"
#include "services/gpu-worker/ops/cuda/host_flags.cuh"
#include "services/gpu-worker/ops/cuda/launch.cuh"
#include "services/gpu-worker/ops/cuda/router.cuh"

namespace hearth::worker {
namespace {

constexpr int kThreads = 256;
constexpr int kFewRows = 8;  // whose blocks may all look for an answer
enum Counter { kTicket, kMisses, kHeartbeat, kStepsDone, kTimedOut };
static_assert(kTimedOut == kTimedOutCounter && kTimedOut + 1 == kExchangeCounters);

// Adds what the layer took since `asked`. One thread.
__device__ void AddTime(StepClock* clock, uint64_t now) {
  if (clock->asked == 0) return;
  const double x = clock->missed, y = 1e-9 * static_cast<double>(now - clock->asked);
  LineSums& sums = clock->times.layers;
  sums.n += 1;
  sums.x += x;
  sums.xx += x * x;
  sums.y += y;
  sums.xy += x * y;
  clock->asked = 0;
}

// Sends the rows and a ticket where there were misses: the block together, after a barrier.
__device__ void Ask(const DispatchShape& shape, const Exchange& exchange, const float* h,
                    int n_misses) {
  const int thread = static_cast<int>(threadIdx.x);
  if (n_misses > 0 && !shape.has_rows) {
    const int n = shape.n_rows * shape.width / 4;
    for (int i = thread; i < n; i += kThreads) {
      reinterpret_cast<float4*>(exchange.h)[i] = reinterpret_cast<const float4*>(h)[i];
    }
  }
  if (n_misses > 0) {
    __threadfence_system();
    __syncthreads();
  }
  if (thread != 0) return;
  exchange.counters[kMisses] = static_cast<uint32_t>(n_misses);
  exchange.request->heartbeat = ++exchange.counters[kHeartbeat];
  if (n_misses == 0) return;
  const uint32_t ticket = ++exchange.counters[kTicket];
  exchange.request->layer = shape.layer;
  exchange.request->n_rows = shape.n_rows;
  exchange.request->n_misses = n_misses;
  StoreRelease(&exchange.request->ticket, ticket);
}

__global__ void __launch_bounds__(kThreads)
    DispatchKernel(DispatchShape shape, DispatchInputs in, Exchange exchange, ExpertPlace* places,
                   uint8_t* is_here, int32_t* choices) {
  __shared__ int n_misses;
  const int thread = static_cast<int>(threadIdx.x);
  JoinChain();
  if (thread == 0) n_misses = 0;
  __syncthreads();
  for (int p = thread; p < shape.n_rows * shape.top_k; p += kThreads) {
    const bool is_idle = in.positions[p / shape.top_k] < 0;
    const int32_t expert = in.ids[p];
    const float weight = in.weights[p];
    const uint8_t* const slot = is_idle ? nullptr : in.slots[expert];
    places[p] = {slot, weight};
    if (choices != nullptr) choices[p] = is_idle ? -1 : expert;
    if (is_idle || slot != nullptr) continue;
    exchange.misses[atomicAdd(&n_misses, 1)] = {p, expert, weight};
  }
  if (is_here != nullptr) {
    for (int e = thread; e < in.n_experts; e += kThreads) is_here[e] = in.slots[e] != nullptr;
  }
  __syncthreads();
  Ask(shape, exchange, in.h, n_misses);
  if (thread == 0) exchange.clock->asked = 0;
}

// A decode step's places that are not in VRAM, and who computes them. The block together.
struct Misses {
  static constexpr int kMaxPlaces = kThreads;
  int32_t expert[kMaxPlaces];  // -1: not missed
  float weight[kMaxPlaces];
  uint8_t is_first[kMaxPlaces];  // of the places with its expert
  int n_asked;                   // of the CPU

  // Of the n different missed experts the last in_place[n], in the order of their first places, are
  // read in place; returns n. Barriers must be before and after.
  __device__ int Divide(const DecodeRouting& routing, const Exchange& exchange, int n_places,
                        int top_k, int a_row, ExpertPlace* places, int32_t* choices) {
    const int p = static_cast<int>(threadIdx.x);
    const int32_t mine = p < n_places ? expert[p] : -1;
    int first = p;
#pragma unroll 8
    for (int q = 0; q < n_places; ++q) {
      if (q < p && expert[q] == mine) first = min(first, q);
    }
    const bool leads = mine >= 0 && first == p;
    is_first[p] = leads ? 1 : 0;
    const int n = __syncthreads_count(leads ? 1 : 0);
    const int n_in_place = routing.host_slots == nullptr || n == 0 ? 0 : routing.in_place[n];
    if (mine >= 0) {
      int rank = 0;
#pragma unroll 8
      for (int q = 0; q < n_places; ++q) rank += q < first ? is_first[q] : 0;
      const uint8_t* const slot = rank >= n - n_in_place ? routing.host_slots[mine] : nullptr;
      if (slot != nullptr) {
        places[p / top_k * a_row + p % top_k].slot = slot;
        if (choices != nullptr) choices[p] = mine | kReadInPlace;
      } else {
        exchange.misses[atomicAdd(&n_asked, 1)] = {p, mine, weight[p]};
      }
    }
    return n;
  }
};

// One block; a warp a row.
template <int kPerLane>
__global__ void __launch_bounds__(kThreads)
    RouteAndDispatchKernel(DispatchShape shape, DecodeRouting routing, DispatchInputs in,
                           Exchange exchange, ExpertPlace* places, int32_t* choices) {
  __shared__ Misses misses;
  JoinChain();
  if (threadIdx.x == 0) misses.n_asked = 0;
  const int row = static_cast<int>(threadIdx.x) / kWarp, k = static_cast<int>(threadIdx.x) % kWarp;
  const int a_row = shape.top_k + (routing.shared_slot != nullptr ? 1 : 0);
  if (row < shape.n_rows) {
    const RouterShape router{shape.n_rows, in.n_experts, shape.top_k};
    const RoutedPlace chosen =
        RouteRow<kPerLane>(router, routing.normalise, routing.logits + row * in.n_experts, k);
    const bool is_idle = in.positions[row] < 0;
    if (k < shape.top_k) {
      const int p = row * shape.top_k + k;
      const int32_t expert = routing.imposed != nullptr ? routing.imposed[p] : chosen.id;
      const uint8_t* const slot = is_idle ? nullptr : in.slots[expert];
      routing.ids[p] = expert;
      routing.weights[p] = chosen.weight;
      places[row * a_row + k] = {slot, chosen.weight};
      if (choices != nullptr) choices[p] = is_idle ? -1 : expert;
      misses.expert[p] = is_idle || slot != nullptr ? -1 : expert;
      misses.weight[p] = chosen.weight;
    } else if (k == shape.top_k && routing.shared_slot != nullptr) {
      places[row * a_row + k] = {is_idle ? nullptr : routing.shared_slot,
                                 1 / (1 + expf(-routing.shared_gate[row]))};
    }
  }
  __syncthreads();
  const int n_missed = misses.Divide(routing, exchange, shape.n_rows * shape.top_k, shape.top_k,
                                     a_row, places, choices);
  __syncthreads();
  Ask(shape, exchange, in.h, misses.n_asked);
  if (threadIdx.x == 0) {
    exchange.clock->missed = static_cast<uint32_t>(n_missed);
    exchange.clock->asked = Nanoseconds();
  }
}

// Returns whether there was something to wait for. One thread; fewer that look are better.
__device__ bool WaitForAnswer(const Exchange& exchange) {
  if (exchange.counters[kMisses] == 0) return false;
  const uint32_t ticket = exchange.counters[kTicket];
  const uint64_t start = Nanoseconds();
  while (LoadAcquire(&exchange.request->answer) != ticket) {
    if (Nanoseconds() - start < exchange.await_nanoseconds &&
        __ldcv(&exchange.counters[kTimedOut]) == 0) {
      continue;
    }
    exchange.counters[kTimedOut] = 1;
    exchange.request->failed = 1;
    break;
  }
  return true;
}

__global__ void WaitKernel(Exchange exchange) {
  JoinChain();
  WaitForAnswer(exchange);
}

// One block a row.
__global__ void __launch_bounds__(kThreads)
    AwaitKernel(DispatchShape shape, Exchange exchange, float* out) {
  JoinChain();
  const bool keeps_time = blockIdx.x == 0 && threadIdx.x == 0;
  if (exchange.counters[kMisses] == 0) {  // of the whole grid
    if (keeps_time) AddTime(exchange.clock, Nanoseconds());
    return;
  }
  if (threadIdx.x == 0) {
    const uint64_t start = Nanoseconds();
    WaitForAnswer(exchange);
    if (keeps_time) {
      const uint64_t now = Nanoseconds();
      exchange.clock->times.awaited += 1e-9 * static_cast<double>(now - start);
      AddTime(exchange.clock, now);
    }
  }
  __syncthreads();
  const int n = shape.width / 4;
  const auto* sums = reinterpret_cast<const float4*>(exchange.sums) + int64_t{blockIdx.x} * n;
  auto* to = reinterpret_cast<float4*>(out) + int64_t{blockIdx.x} * n;
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) {
    const float4 sum = __ldcv(sums + i);
    float4 v = to[i];
    v.x += sum.x, v.y += sum.y, v.z += sum.z, v.w += sum.w;
    to[i] = v;
  }
}

__global__ void BeatKernel(Exchange exchange) {
  JoinChain();
  exchange.request->heartbeat = ++exchange.counters[kHeartbeat];
}

__global__ void FinishKernel(Exchange exchange) {
  JoinChain();
  exchange.request->times = exchange.clock->times;
  exchange.clock->times = {};
  __threadfence_system();
  StoreRelease(&exchange.request->steps_done, ++exchange.counters[kStepsDone]);
}

__global__ void UpdateKernel(const SlotUpdate* updates, int n, const uint8_t** table) {
  JoinChain();
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) table[updates[i].index] = updates[i].slot;
}

}  // namespace

cudaError_t DispatchExpertsCuda(const DispatchShape& shape, const DispatchInputs& in,
                                const Exchange& exchange, ExpertPlace* places, uint8_t* is_here,
                                int32_t* choices, cudaStream_t stream) {
  if (shape.n_rows < 0 || shape.top_k < 1 || shape.width % 4 != 0) return cudaErrorInvalidValue;
  if (shape.n_rows == 0) return cudaSuccess;
  return Launch(DispatchKernel, {.grid = dim3(1), .threads = kThreads, .stream = stream}, shape, in,
                exchange, places, is_here, choices);
}

cudaError_t RouteAndDispatchCuda(const DispatchShape& shape, const DecodeRouting& routing,
                                 const DispatchInputs& in, const Exchange& exchange,
                                 ExpertPlace* places, int32_t* choices, cudaStream_t stream) {
  const int places_a_row = shape.top_k + (routing.shared_slot != nullptr ? 1 : 0);
  if (shape.n_rows < 0 || shape.n_rows > kThreads / kWarp || shape.width % 4 != 0 ||
      in.n_experts < 1 || in.n_experts > 32 * kWarp || shape.top_k < 1 || places_a_row > kWarp ||
      shape.top_k > in.n_experts) {
    return cudaErrorInvalidValue;
  }
  if (shape.n_rows == 0) return cudaSuccess;
  auto* const kernel = in.n_experts <= 4 * kWarp    ? RouteAndDispatchKernel<4>
                       : in.n_experts <= 16 * kWarp ? RouteAndDispatchKernel<16>
                                                    : RouteAndDispatchKernel<32>;
  return Launch(kernel, {.grid = dim3(1), .threads = kThreads, .stream = stream}, shape, routing,
                in, exchange, places, choices);
}

cudaError_t AwaitExpertsCuda(const DispatchShape& shape, const Exchange& exchange, float* out,
                             cudaStream_t stream) {
  if (shape.n_rows < 0 || shape.width % 4 != 0) return cudaErrorInvalidValue;
  if (shape.n_rows == 0) return cudaSuccess;
  if (shape.n_rows > kFewRows) {
    const cudaError_t error =
        Launch(WaitKernel, {.grid = dim3(1), .threads = 1, .stream = stream}, exchange);
    if (error != cudaSuccess) return error;
  }
  return Launch(
      AwaitKernel,
      {.grid = dim3(static_cast<unsigned>(shape.n_rows)), .threads = kThreads, .stream = stream},
      shape, exchange, out);
}

cudaError_t BeatCuda(const Exchange& exchange, cudaStream_t stream) {
  return Launch(BeatKernel, {.grid = dim3(1), .threads = 1, .stream = stream}, exchange);
}

cudaError_t FinishStepCuda(const Exchange& exchange, cudaStream_t stream) {
  return Launch(FinishKernel, {.grid = dim3(1), .threads = 1, .stream = stream}, exchange);
}

cudaError_t UpdateSlotsCuda(const SlotUpdate* updates, int n, const uint8_t** table,
                            cudaStream_t stream) {
  if (n < 0) return cudaErrorInvalidValue;
  if (n == 0) return cudaSuccess;
  return Launch(
      UpdateKernel,
      {.grid = dim3(static_cast<unsigned>((n + 63) / 64)), .threads = 64, .stream = stream},
      updates, n, table);
}

}  // namespace hearth::worker
