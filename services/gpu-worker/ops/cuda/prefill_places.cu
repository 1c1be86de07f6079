#include <cuda_fp16.h>

#include "services/gpu-worker/ops/cuda/prefill_experts.h"
#include "services/gpu-worker/ops/cuda/warp.cuh"

namespace hearth::worker {
namespace {

constexpr int kGroupThreads = 1024;
constexpr int kMaxGroupBytes = 64 << 10;  // of counts: 32 warps' for 512 experts

struct GroupArgs {
  int n_places;
  int n_experts;
  const int32_t* ids;
  PlaceGroups groups;
};

// Calls visit(id, place, peers, is_first) for each of the warp's places; `peers` are the lanes with
// the same id.
template <typename Visit>
__device__ void ForPlaces(const GroupArgs& args, int warp, int n_warps, Visit visit) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int per_warp = (args.n_places + n_warps * kWarp - 1) / (n_warps * kWarp) * kWarp;
  const int end = min((warp + 1) * per_warp, args.n_places);
  for (int first = warp * per_warp; first < end; first += kWarp) {
    const int place = first + lane;
    const int id = place < end ? args.ids[place] : -1;
    const unsigned peers = __match_any_sync(kAllLanes, id);
    if (id >= 0) visit(id, place, peers, lane);
    __syncwarp();  // this step's counts are there
  }
}

// One block. A warp owns a stretch of places and counts of its own, so that no order is left to
// chance: count, sum over warps and experts, place.
__global__ void __launch_bounds__(kGroupThreads)
    GroupKernel(const __grid_constant__ GroupArgs args) {
  extern __shared__ int counts[];  // [warps][E]
  __shared__ int sums[kWarp];
  const int n_threads = static_cast<int>(blockDim.x), n_warps = n_threads / kWarp;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const int n_experts = args.n_experts;
  for (int i = thread; i < n_warps * n_experts; i += n_threads) counts[i] = 0;
  __syncthreads();  // zeros are there

  // Count.
  int* const mine = counts + warp * n_experts;
  ForPlaces(args, warp, n_warps, [&](int id, int, unsigned peers, int at) {
    if (at == __ffs(static_cast<int>(peers)) - 1) mine[id] += __popc(peers);
  });
  __syncthreads();  // every warp's counts are there

  // Sum: a thread has a stretch of experts.
  const int share = (n_experts + n_threads - 1) / n_threads;
  const int begin = thread * share, end = min(begin + share, n_experts);
  int total = 0;
  for (int e = begin; e < end; ++e) {
    for (int w = 0; w < n_warps; ++w) total += counts[w * n_experts + e];
  }
  int sum = total;
#pragma unroll
  for (int d = 1; d < kWarp; d *= 2) {
    const int below = __shfl_up_sync(kAllLanes, sum, d);
    if (lane >= d) sum += below;
  }
  if (lane == kWarp - 1) sums[warp] = sum;
  __syncthreads();  // every warp's sum is there
  int before = sum - total;
  for (int w = 0; w < warp; ++w) before += sums[w];
  for (int e = begin; e < end; ++e) {
    args.groups.offsets[e] = before;
    for (int w = 0; w < n_warps; ++w) {
      const int count = counts[w * n_experts + e];
      counts[w * n_experts + e] = before;
      before += count;
    }
  }
  if (thread == 0) args.groups.offsets[n_experts] = args.n_places;
  __syncthreads();  // every first place is there

  // Place.
  ForPlaces(args, warp, n_warps, [&](int id, int place, unsigned peers, int at) {
    const int first = mine[id];
    args.groups.order[first + __popc(peers & ((1u << at) - 1))] = place;
    __syncwarp(peers);  // the peers have read `first`
    if (at == __ffs(static_cast<int>(peers)) - 1) mine[id] = first + __popc(peers);
  });
}

constexpr int kCombineThreads = 256;

struct CombineArgs {
  int64_t n_pieces;
  int top_k;
  int pieces_a_row;
  const int32_t* ids;
  const uint8_t* is_here;
  const uint16_t* products;
  float* out;
};

// A thread has 8 neighbours of a row.
__global__ void __launch_bounds__(kCombineThreads)
    CombineKernel(const __grid_constant__ CombineArgs args) {
  const int64_t piece = int64_t{blockIdx.x} * kCombineThreads + threadIdx.x;
  if (piece >= args.n_pieces) return;
  const int64_t first_place = piece / args.pieces_a_row * args.top_k;
  const int64_t column = piece % args.pieces_a_row;
  float sums[8] = {};
#pragma unroll 5
  for (int k = 0; k < args.top_k; ++k) {
    const int64_t place = first_place + k;
    if (args.is_here != nullptr && args.is_here[args.ids[place]] == 0) continue;
    const uint4 eight =
        reinterpret_cast<const uint4*>(args.products)[place * args.pieces_a_row + column];
    const uint32_t words[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&words[i]));
      sums[2 * i] += pair.x;
      sums[2 * i + 1] += pair.y;
    }
  }
  auto* to = reinterpret_cast<float4*>(args.out) + piece * 2;
  to[0] = make_float4(sums[0], sums[1], sums[2], sums[3]);
  to[1] = make_float4(sums[4], sums[5], sums[6], sums[7]);
}

}  // namespace

cudaError_t GroupPlacesCuda(int n_places, int n_experts, const int32_t* ids,
                            const PlaceGroups& groups, cudaStream_t stream) {
  if (n_places < 0 || n_experts < 1 || n_experts * 4 > kMaxGroupBytes) {
    return cudaErrorInvalidValue;
  }
  int n_warps = kGroupThreads / kWarp;
  while (n_warps * n_experts * 4 > kMaxGroupBytes) n_warps /= 2;
  const int bytes = n_warps * n_experts * 4;
  const cudaError_t error =
      cudaFuncSetAttribute(reinterpret_cast<const void*>(GroupKernel),
                           cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  GroupKernel<<<1, static_cast<unsigned>(n_warps * kWarp), static_cast<size_t>(bytes), stream>>>(
      {n_places, n_experts, ids, groups});
  return cudaGetLastError();
}

cudaError_t CombinePlacesCuda(int n_rows, int top_k, int width, const int32_t* ids,
                              const uint8_t* is_here, const uint16_t* products, float* out,
                              cudaStream_t stream) {
  if (n_rows < 0 || top_k < 1 || width < 1 || width % 8 != 0) return cudaErrorInvalidValue;
  if (n_rows == 0) return cudaSuccess;
  const int64_t n_pieces = int64_t{n_rows} * width / 8;
  const auto n_blocks = static_cast<unsigned>((n_pieces + kCombineThreads - 1) / kCombineThreads);
  CombineKernel<<<n_blocks, kCombineThreads, 0, stream>>>(
      {n_pieces, top_k, width / 8, ids, is_here, products, out});
  return cudaGetLastError();
}

}  // namespace hearth::worker
