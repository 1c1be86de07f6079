#include "services/gpu-worker/ops/cuda/attend_stretch.cuh"
#include "services/gpu-worker/ops/cuda/attention_cuda.h"
#include "services/gpu-worker/ops/cuda/kv_ring.cuh"
#include "services/gpu-worker/ops/cuda/launch.cuh"
#include "services/gpu-worker/ops/cuda/rotary_head.cuh"
#include "services/gpu-worker/ops/cuda/round_vector.cuh"
#include "services/gpu-worker/ops/cuda/warp.cuh"

namespace hearth::worker {
namespace {

// One block owns one stretch of positions (blockIdx.x) of one row (z) for 8 queries of a key/value
// head (y); warp w takes positions 4 w .. 4 w + 3 of every 16. Blocks beyond the row's last stretch
// leave at once.
template <typename T, int kDims, bool kMakes>
__global__ void __launch_bounds__(kAttentionWarps* kWarp)
    AttendStretchKernel(const __grid_constant__ AttentionArgs args) {
  static_assert(kDims == 1 || kDims == 2 || kDims == 4 || kDims == 8);
  constexpr int kHead = kDims * kWarp;
  using Ring = KvRing<T, kDims>;
  extern __shared__ __align__(16) uint8_t shared[];  // the rings, then all warps' sums
  __shared__ __align__(16) float weights[kAttentionWarps][kWarp + kQueries];
  __shared__ float largest[kAttentionWarps][kQueries], total[kAttentionWarps][kQueries];
  __shared__ __align__(16) float queries[kMakes ? kQueries : 1][kMakes ? kHead : 1];
  __shared__ float key[kMakes ? kHead : 1];

  const int64_t row = blockIdx.z;
  const int64_t n_seen = __ldcg(args.positions + row) + 1;  // 0 or less of an idle row
  const int64_t stretch = StretchOf(n_seen), begin = int64_t{blockIdx.x} * stretch;
  const int64_t end = min(begin + stretch, n_seen);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int share = args.shape.n_heads / args.shape.n_kv_heads;
  const int groups = (share + kQueries - 1) / kQueries;
  const int kv_head = static_cast<int>(blockIdx.y) / groups;
  const int first_query = static_cast<int>(blockIdx.y) % groups * kQueries;
  const int n_queries = min(kQueries, share - first_query);
  const int64_t first_head = row * args.shape.n_heads + kv_head * share + first_query;

  // This warp's first positions are under way while its queries come, with the scale in them. Those
  // before the step's rows were there long ago; the kernel in front writes the others.
  constexpr int kStep = kAttentionWarps * kPositions;
  const int64_t sequence = row / args.rows.n_rows;
  Ring ring(args.kv, args.shape.n_kv_heads, sequence, kv_head, end, shared + warp * Ring::kBytes);
  int64_t first = begin + warp * kPositions;
  const auto ask = [&] {
    for (int s = 0; s < Ring::kStages; ++s) ring.Ask(first + s * kStep);
  };
  const bool is_old = sizeof(T) > 1 &&  // their scales come through the L1
                      begin < n_seen && end <= __ldcg(args.positions + sequence * args.rows.n_rows);
  if (is_old) ask();
  JoinChain();
  if (begin >= n_seen) return;
  if constexpr (kMakes) {
    MakeRow<T>(args, row, kv_head, n_queries, end == n_seen, queries, key);
    __syncthreads();  // orders queries and the newest position before their readers
  }
  if (!is_old) ask();
  float q[kQueries][kDims];
  const float scale = 1 / sqrtf(static_cast<float>(kHead));
#pragma unroll
  for (int j = 0; j < kQueries; ++j) {
#pragma unroll
    for (int i = 0; i < kDims; ++i) {
      const int dim = lane * kDims + i;
      if constexpr (kMakes) {
        q[j][i] = j < n_queries ? queries[j][dim] * scale : 0.f;
      } else {
        q[j][i] = j < n_queries ? args.q[(first_head + j) * kHead + dim] * scale : 0.f;
      }
    }
  }

  // This warp's positions.
  Sums<kDims> sums;
  for (; first < end; first += kStep) {
    const int n = static_cast<int>(min(end - first, int64_t{kPositions}));
    AddPositions<T, kDims>(ring.Take(), n, q, weights[warp], sums);
    ring.Release();
    ring.Ask(first + Ring::kStages * kStep);
  }

  // Merge the warps. Warp 0 has seen a position; another may have seen none: it weighs exp(-inf).
  sums.total += __shfl_xor_sync(kAllLanes, sums.total, kQueries);
  sums.total += __shfl_xor_sync(kAllLanes, sums.total, 2 * kQueries);
  if (lane < kQueries) {
    largest[warp][lane] = sums.largest;
    total[warp][lane] = sums.total;
  }
  __syncthreads();  // every warp has done with its ring
  auto& acc = *reinterpret_cast<float(*)[kAttentionWarps][kQueries][kHead]>(shared);
#pragma unroll
  for (int j = 0; j < kQueries; ++j) {
#pragma unroll
    for (int i = 0; i < kDims; ++i) acc[warp][j][lane * kDims + i] = sums.acc[j][i];
  }
  __syncthreads();  // every warp's sums are written
  const int64_t part = row * args.max_parts + blockIdx.x;
  const int64_t to_head = part * args.shape.n_heads + kv_head * share + first_query;
  for (int j = 0; j < n_queries; ++j) {
    float top = largest[0][j];
#pragma unroll
    for (int w = 1; w < kAttentionWarps; ++w) top = fmaxf(top, largest[w][j]);
    float by[kAttentionWarps], all = 0;
#pragma unroll
    for (int w = 0; w < kAttentionWarps; ++w) {
      by[w] = expf(largest[w][j] - top);
      all += total[w][j] * by[w];
    }
    for (int i = static_cast<int>(threadIdx.x); i < kHead; i += kAttentionWarps * kWarp) {
      float sum = 0;
#pragma unroll
      for (int w = 0; w < kAttentionWarps; ++w) sum += acc[w][j][i] * by[w];
      args.sums[(to_head + j) * kHead + i] = sum;
    }
    if (threadIdx.x == 0) {
      args.totals[(to_head + j) * 2] = top;
      args.totals[(to_head + j) * 2 + 1] = all;
    }
  }
}

constexpr int kMergeThreads = 512;
constexpr int kSlice = 64;  // dimensions that a block of the merge owns

// One block owns a slice of one head (blockIdx.x) of one row (y): groups of kLanes threads take the
// stretches in turn, four dimensions a thread, and their sums are added in order.
template <int kLanes>
__global__ void __launch_bounds__(kMergeThreads) MergeKernel(AttentionArgs args) {
  static_assert(kLanes == 8 || kLanes == 16);
  constexpr int kGroups = kMergeThreads / kLanes;
  __shared__ float weights[kMaxStretches];
  __shared__ float4 partial[kGroups][kLanes];
  const int64_t row = blockIdx.y;
  const int64_t n_seen = __ldcg(args.positions + row) + 1;
  const int64_t stretch = StretchOf(n_seen);
  const int n_parts = static_cast<int>((n_seen + stretch - 1) / stretch);
  const int d = args.shape.head_dim, n_heads = args.shape.n_heads;
  const int slices = d / (4 * kLanes);
  const int head = static_cast<int>(blockIdx.x) / slices;
  const int thread = static_cast<int>(threadIdx.x), group = thread / kLanes;
  const int column = static_cast<int>(blockIdx.x) % slices * 4 * kLanes + thread % kLanes * 4;
  const int64_t first = row * args.max_parts * n_heads + head;
  const int64_t out_head = row * n_heads + head;
  // The gate was there before the kernel in front had begun.
  const float4 gate =
      __ldcg(reinterpret_cast<const float4*>(args.query_gate + (out_head * 2 + 1) * d + column));
  JoinChain();
  if (n_seen <= 0) return;

  // Weights of the stretches: every warp finds the largest score and the sum.
  float top = -INFINITY;
  for (int p = thread % kWarp; p < n_parts; p += kWarp) {
    top = fmaxf(top, args.totals[(first + int64_t{p} * n_heads) * 2]);
  }
  top = WarpMax(top);
  float total = 0;
  for (int p = thread % kWarp; p < n_parts; p += kWarp) {
    const float* const totals = args.totals + (first + int64_t{p} * n_heads) * 2;
    const float weight = expf(totals[0] - top);
    total += weight * totals[1];
    if (thread < kWarp) weights[p] = weight;
  }
  total = WarpSum(total);
  __syncthreads();  // every weight is there

  float4 sum = {0, 0, 0, 0};
#pragma unroll 4
  for (int p = group; p < n_parts; p += kGroups) {
    const float4 part =
        *reinterpret_cast<const float4*>(args.sums + (first + int64_t{p} * n_heads) * d + column);
    const float by = weights[p];
    sum.x += by * part.x, sum.y += by * part.y, sum.z += by * part.z, sum.w += by * part.w;
  }
  partial[group][thread % kLanes] = sum;
  __syncthreads();  // every group's sum is there
  if (thread >= kWarp) return;
  const bool has_any = thread < kLanes;
  sum = {0, 0, 0, 0};
  if (has_any) {
    const int n_groups = min(kGroups, n_parts);
#pragma unroll 8
    for (int g = 0; g < n_groups; ++g) {
      const float4 part = partial[g][thread];
      sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
    }
    sum = {sum.x / total * SigmoidOf(gate.x), sum.y / total * SigmoidOf(gate.y),
           sum.z / total * SigmoidOf(gate.z), sum.w / total * SigmoidOf(gate.w)};
    *reinterpret_cast<float4*>(args.out + out_head * d + column) = sum;
  }
  if (args.rounded.words != nullptr) {
    StoreRounded(sum, has_any, args.rounded, row, n_heads * d, head * d + (has_any ? column : 0));
  }
}

int64_t PartsFor(int64_t max_positions) {
  const int64_t parts = (max_positions + kFirstStretch - 1) / kFirstStretch;
  return parts < kMaxStretches ? parts : kMaxStretches;
}

template <typename T, int kDims>
cudaError_t LaunchStretches(const AttentionArgs& args, dim3 grid, cudaStream_t stream) {
  constexpr size_t kRings = size_t{kAttentionWarps} * KvRing<T, kDims>::kBytes;
  constexpr size_t kSums = size_t{kAttentionWarps} * kQueries * kDims * kWarp * 4;
  return Launch(args.made.k != nullptr ? AttendStretchKernel<T, kDims, true>
                                       : AttendStretchKernel<T, kDims, false>,
                {.grid = grid,
                 .threads = kAttentionWarps * kWarp,
                 .shared_bytes = kRings > kSums ? kRings : kSums,
                 .stream = stream},
                args);
}

template <typename T>
cudaError_t LaunchStretches(const AttentionArgs& args, dim3 grid, cudaStream_t stream) {
  switch (args.shape.head_dim) {
    case 32:
      return LaunchStretches<T, 1>(args, grid, stream);
    case 64:
      return LaunchStretches<T, 2>(args, grid, stream);
    case 128:
      return LaunchStretches<T, 4>(args, grid, stream);
    default:
      return LaunchStretches<T, 8>(args, grid, stream);
  }
}

}  // namespace

int64_t AttentionScratchFloats(const AttentionShape& shape, int n_rows, int64_t max_positions) {
  return n_rows * PartsFor(max_positions) * shape.n_heads * (shape.head_dim + 2);
}

namespace {

// `q` is null where `made` says how to make it.
cudaError_t Attend(const AttentionShape& shape, const SequenceRows& rows, const int64_t* positions,
                   int64_t max_positions, const float* q, const NewPosition& made,
                   const float* query_gate, const DeviceKv& kv, float* scratch, float* out,
                   const RoundedRows& rounded, cudaStream_t stream) {
  const int d = shape.head_dim;
  if (rows.n_sequences < 0 || rows.n_rows < 0 || rows.total() > 65535 || shape.n_kv_heads < 1 ||
      shape.n_heads % shape.n_kv_heads != 0 || (d != 32 && d != 64 && d != 128 && d != 256) ||
      max_positions < 1 || max_positions > int64_t{1} << 31 || kv.page_tokens < 1 ||
      (rounded.words != nullptr && d % 64 != 0)) {
    return cudaErrorInvalidValue;
  }
  if (rows.total() == 0) return cudaSuccess;
  const auto parts = static_cast<int>(PartsFor(max_positions));
  const int64_t n_sums = int64_t{rows.total()} * parts * shape.n_heads * d;
  const AttentionArgs args{shape, rows,    positions,        q,   query_gate, kv,
                           parts, scratch, scratch + n_sums, out, rounded,    made};
  const int share = shape.n_heads / shape.n_kv_heads;
  const int groups = (share + kQueries - 1) / kQueries;
  const dim3 grid(static_cast<unsigned>(parts), static_cast<unsigned>(shape.n_kv_heads * groups),
                  static_cast<unsigned>(rows.total()));
  const cudaError_t error = kv.type == KvType::kF32 ? LaunchStretches<float>(args, grid, stream)
                            : kv.type == KvType::kBf16
                                ? LaunchStretches<__nv_bfloat16>(args, grid, stream)
                                : LaunchStretches<int8_t>(args, grid, stream);
  if (error != cudaSuccess) return error;
  const int slices = d < kSlice ? 1 : d / kSlice;
  return Launch(d < kSlice ? MergeKernel<8> : MergeKernel<16>,
                {.grid = dim3(static_cast<unsigned>(shape.n_heads * slices),
                              static_cast<unsigned>(rows.total())),
                 .threads = kMergeThreads,
                 .stream = stream},
                args);
}

}  // namespace

cudaError_t AttentionCuda(const AttentionShape& shape, const SequenceRows& rows,
                          const int64_t* positions, int64_t max_positions, const float* q,
                          const float* query_gate, const DeviceKv& kv, float* scratch, float* out,
                          const RoundedRows& rounded, cudaStream_t stream) {
  return Attend(shape, rows, positions, max_positions, q, {}, query_gate, kv, scratch, out, rounded,
                stream);
}

cudaError_t RotateAndAttendCuda(const AttentionShape& shape, int n_sequences,
                                const NewPosition& made, const int64_t* positions,
                                int64_t max_positions, const float* query_gate, const DeviceKv& kv,
                                float* scratch, float* out, const RoundedRows& rounded,
                                cudaStream_t stream) {
  if (!CanRotateAndAttend(shape) || made.rotary.half < 0 || 2 * made.rotary.half > shape.head_dim) {
    return cudaErrorInvalidValue;
  }
  return Attend(shape, {n_sequences, 1}, positions, max_positions, nullptr, made, query_gate, kv,
                scratch, out, rounded, stream);
}

bool CanRotateAndAttend(const AttentionShape& shape) {
  return shape.n_kv_heads >= 1 && shape.n_heads % shape.n_kv_heads == 0 &&
         shape.n_heads / shape.n_kv_heads <= kQueries;
}

}  // namespace hearth::worker
