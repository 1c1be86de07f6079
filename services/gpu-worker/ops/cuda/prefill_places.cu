#include <cuda_fp16.h>

#include "services/gpu-worker/ops/cuda/prefill_experts.h"
#include "services/gpu-worker/ops/cuda/warp.cuh"

namespace hearth::worker {
namespace {

constexpr int kGroupThreads = 256, kGroupWarps = kGroupThreads / kWarp;
constexpr int kExpertsABlock = kGroupWarps;  // the warps sum up one each

struct GroupArgs {
  int n_places;
  int n_experts;
  const int32_t* ids;
  PlaceGroups groups;
};

// Of one value a thread of the block: each becomes the sum of those before it; returns the sum of
// all. One warp.
__device__ int ScanCounts(int* counts) {
  constexpr int kEach = kGroupThreads / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int* const mine = counts + lane * kEach;
  int total = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) total += mine[i];
  int sum = total;
#pragma unroll
  for (int d = 1; d < kWarp; d *= 2) {
    const int below = __shfl_up_sync(kAllLanes, sum, d);
    if (lane >= d) sum += below;
  }
  int before = sum - total;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int count = mine[i];
    mine[i] = before;
    before += count;
  }
  return __shfl_sync(kAllLanes, sum, kWarp - 1);
}

// One block owns 8 experts and reads all ids, a thread a stretch of them: it counts those of each
// expert and those of all experts below, then puts its places behind those of the threads before.
__global__ void __launch_bounds__(kGroupThreads)
    GroupKernel(const __grid_constant__ GroupArgs args) {
  __shared__ int counts[kExpertsABlock + 1][kGroupThreads];  // the last: experts below
  __shared__ int totals[kExpertsABlock + 1];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp;
  const int first_expert = static_cast<int>(blockIdx.x) * kExpertsABlock;
  const int share = (args.n_places + kGroupThreads - 1) / kGroupThreads;
  const int begin = min(thread * share, args.n_places), end = min(begin + share, args.n_places);

  // Count.
#pragma unroll
  for (int e = 0; e < kExpertsABlock; ++e) counts[e][thread] = 0;
  int n_below = 0;
#pragma unroll 4
  for (int p = begin; p < end; ++p) {
    const int e = args.ids[p] - first_expert;
    if (e < 0) ++n_below;
    if (e >= 0 && e < kExpertsABlock) ++counts[e][thread];
  }
  counts[kExpertsABlock][thread] = n_below;
  __syncthreads();  // every thread's counts are there

  // Sum.
  totals[warp] = ScanCounts(counts[warp]);
  if (warp == 0) totals[kExpertsABlock] = ScanCounts(counts[kExpertsABlock]);
  __syncthreads();  // every sum is there

  // Place. Sums before the block's experts turn into first places.
  int first[kExpertsABlock + 1];
  first[0] = totals[kExpertsABlock];
#pragma unroll
  for (int e = 0; e < kExpertsABlock; ++e) first[e + 1] = first[e] + totals[e];
#pragma unroll
  for (int e = 0; e < kExpertsABlock; ++e) {
    counts[e][thread] += first[e];
    if (thread == e && first_expert + e < args.n_experts) {
      args.groups.offsets[first_expert + e] = first[e];
    }
  }
  if (blockIdx.x == 0 && thread == 0) args.groups.offsets[args.n_experts] = args.n_places;
#pragma unroll 4
  for (int p = begin; p < end; ++p) {
    const int e = args.ids[p] - first_expert;
    if (e >= 0 && e < kExpertsABlock) args.groups.order[counts[e][thread]++] = p;
  }
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
  if (n_places < 0 || n_experts < 1) return cudaErrorInvalidValue;
  const auto n_blocks = static_cast<unsigned>((n_experts + kExpertsABlock - 1) / kExpertsABlock);
  GroupKernel<<<n_blocks, kGroupThreads, 0, stream>>>({n_places, n_experts, ids, groups});
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
