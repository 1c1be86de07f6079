#include "services/gpu-worker/ops/cuda/attention_cuda.h"
#include "services/gpu-worker/ops/cuda/kv_ring.cuh"
#include "services/gpu-worker/ops/cuda/launch.cuh"
#include "services/gpu-worker/ops/cuda/round_vector.cuh"
#include "services/gpu-worker/ops/cuda/warp.cuh"

namespace hearth::worker {
namespace {

constexpr int kWarps = 4;
static_assert(kFirstStretch % (kWarps * kPositions) == 0);

struct AttentionArgs {
  AttentionShape shape;
  SequenceRows rows;
  const int64_t* positions;
  const float* q;
  const float* query_gate;
  DeviceKv kv;
  int max_parts;
  float* sums;    // [rows, max_parts, H, d], not divided
  float* totals;  // [rows, max_parts, H, 2]: largest score, sum of exponentials
  float* out;
  RoundedRows rounded;
};

// Adds up 32 values over the warp: lane i gets the sum of values[i]. 31 shuffles instead of 160.
// Each step halves the values that a lane still adds up, and hands the others to its partner.
template <int kHalf = kWarp / 2>
__device__ float TransposedSum(float (&values)[kWarp]) {
  const bool is_upper = (threadIdx.x & kHalf) != 0;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const float give = is_upper ? values[i] : values[i + kHalf];
    const float keep = is_upper ? values[i + kHalf] : values[i];
    values[i] = keep + __shfl_xor_sync(kAllLanes, give, kHalf);
  }
  if constexpr (kHalf > 1) return TransposedSum<kHalf / 2>(values);
  return values[0];
}

// What a warp has summed of 8 queries. Dimensions kDims * lane .. + kDims - 1 of every query are
// this lane's; `largest` is query lane % 8's, `total` this lane's part of its sum.
template <int kDims>
struct Sums {
  float acc[kQueries][kDims] = {};
  float largest = -INFINITY;
  float total = 0;
};

// Adds the 4 positions of a stage, those below `n` of them. `shared` [40] is this warp's.
template <typename T, int kDims>
__device__ void AddPositions(const uint8_t* stage, int n, const float (&q)[kQueries][kDims],
                             float* shared, Sums<kDims>& sums) {
  using Ring = KvRing<T, kDims>;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const uint8_t* const mine = stage + lane * kDims * static_cast<int>(sizeof(T));
  const auto* const scales = reinterpret_cast<const float*>(stage + 2 * kPositions * Ring::kRow);

  // Scores: lane p * 8 + j gets that of position p and query j.
  float products[kWarp];
#pragma unroll
  for (int p = 0; p < kPositions; ++p) {
    KvVector<T, kDims> raw;
    raw.Load(mine + p * Ring::kRow);
    float k[kDims];
    raw.ToFloats(k);
#pragma unroll
    for (int j = 0; j < kQueries; ++j) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kDims; ++i) sum += q[j][i] * k[i];
      products[p * kQueries + j] = sum;
    }
  }
  float score = TransposedSum(products);
  if constexpr (sizeof(T) == 1) score *= scales[lane / kQueries];
  if (lane / kQueries >= n) score = -INFINITY;

  // Weights, by the running maximum. The first position exists, so that the maximum is finite.
  float largest = fmaxf(sums.largest, score);
  largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, kQueries));
  largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2 * kQueries));
  const float shrink = expf(sums.largest - largest);  // 0 at first
  const float weight = expf(score - largest);
  const bool has_grown = __any_sync(kAllLanes, largest > sums.largest);
  sums.total = sums.total * shrink + weight;
  sums.largest = largest;
  __syncwarp();  // the last call's weights have been read
  shared[lane] = sizeof(T) == 1 ? weight * scales[kPositions + lane / kQueries] : weight;
  if (lane < kQueries) shared[kWarp + lane] = shrink;
  __syncwarp();  // every lane's weight is there

  // Values.
  const auto eight = [&](int first, float(&to)[kQueries]) {
    const float4 low = *reinterpret_cast<const float4*>(shared + first);
    const float4 high = *reinterpret_cast<const float4*>(shared + first + 4);
    to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
    to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
  };
  float by[kQueries];
  if (has_grown) {
    eight(kWarp, by);
#pragma unroll
    for (int j = 0; j < kQueries; ++j) {
#pragma unroll
      for (int i = 0; i < kDims; ++i) sums.acc[j][i] *= by[j];
    }
  }
#pragma unroll
  for (int p = 0; p < kPositions; ++p) {
    KvVector<T, kDims> raw;
    raw.Load(mine + (kPositions + p) * Ring::kRow);
    float v[kDims];
    raw.ToFloats(v);
    eight(p * kQueries, by);
#pragma unroll
    for (int j = 0; j < kQueries; ++j) {
#pragma unroll
      for (int i = 0; i < kDims; ++i) sums.acc[j][i] += by[j] * v[i];
    }
  }
}

// One block owns one stretch of positions (blockIdx.x) of one row (z) for 8 queries of a key/value
// head (y); warp w takes positions 4 w .. 4 w + 3 of every 16. Blocks beyond the row's last stretch
// leave at once.
template <typename T, int kDims>
__global__ void __launch_bounds__(kWarps* kWarp) AttendStretchKernel(AttentionArgs args) {
  static_assert(kDims == 1 || kDims == 2 || kDims == 4 || kDims == 8);
  constexpr int kHead = kDims * kWarp;
  using Ring = KvRing<T, kDims>;
  extern __shared__ __align__(16) uint8_t shared[];  // the rings, then all warps' sums
  __shared__ __align__(16) float weights[kWarps][kWarp + kQueries];
  __shared__ float largest[kWarps][kQueries], total[kWarps][kQueries];

  JoinChain();
  const int64_t row = blockIdx.z;
  const int64_t n_seen = args.positions[row] + 1;  // 0 or less of an idle row
  const int64_t stretch = StretchOf(n_seen), begin = int64_t{blockIdx.x} * stretch;
  if (begin >= n_seen) return;
  const int64_t end = min(begin + stretch, n_seen);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int share = args.shape.n_heads / args.shape.n_kv_heads;
  const int groups = (share + kQueries - 1) / kQueries;
  const int kv_head = static_cast<int>(blockIdx.y) / groups;
  const int first_query = static_cast<int>(blockIdx.y) % groups * kQueries;
  const int n_queries = min(kQueries, share - first_query);
  const int64_t first_head = row * args.shape.n_heads + kv_head * share + first_query;

  // This warp's first positions are under way while its queries come, with the scale in them.
  constexpr int kStep = kWarps * kPositions;
  Ring ring(args.kv, args.shape.n_kv_heads, row / args.rows.n_rows, kv_head, end,
            shared + warp * Ring::kBytes);
  int64_t first = begin + warp * kPositions;
  for (int s = 0; s < Ring::kStages; ++s) ring.Ask(first + s * kStep);
  float q[kQueries][kDims];
  const float scale = 1 / sqrtf(static_cast<float>(kHead));
#pragma unroll
  for (int j = 0; j < kQueries; ++j) {
#pragma unroll
    for (int i = 0; i < kDims; ++i) {
      q[j][i] = j < n_queries ? args.q[(first_head + j) * kHead + lane * kDims + i] * scale : 0.f;
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
  auto& acc = *reinterpret_cast<float(*)[kWarps][kQueries][kHead]>(shared);
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
    for (int w = 1; w < kWarps; ++w) top = fmaxf(top, largest[w][j]);
    float by[kWarps], all = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      by[w] = expf(largest[w][j] - top);
      all += total[w][j] * by[w];
    }
    for (int i = static_cast<int>(threadIdx.x); i < kHead; i += kWarps * kWarp) {
      float sum = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += acc[w][j][i] * by[w];
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
  JoinChain();
  const int64_t row = blockIdx.y;
  const int64_t n_seen = args.positions[row] + 1;
  if (n_seen <= 0) return;
  const int64_t stretch = StretchOf(n_seen);
  const int n_parts = static_cast<int>((n_seen + stretch - 1) / stretch);
  const int d = args.shape.head_dim, n_heads = args.shape.n_heads;
  const int slices = d / (4 * kLanes);
  const int head = static_cast<int>(blockIdx.x) / slices;
  const int thread = static_cast<int>(threadIdx.x), group = thread / kLanes;
  const int column = static_cast<int>(blockIdx.x) % slices * 4 * kLanes + thread % kLanes * 4;
  const int64_t first = row * args.max_parts * n_heads + head;

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
    const int64_t at = row * n_heads + head;
    const float4 gate =
        *reinterpret_cast<const float4*>(args.query_gate + (at * 2 + 1) * d + column);
    sum = {sum.x / total * SigmoidOf(gate.x), sum.y / total * SigmoidOf(gate.y),
           sum.z / total * SigmoidOf(gate.z), sum.w / total * SigmoidOf(gate.w)};
    *reinterpret_cast<float4*>(args.out + at * d + column) = sum;
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
  constexpr size_t kRings = size_t{kWarps} * KvRing<T, kDims>::kBytes;
  constexpr size_t kSums = size_t{kWarps} * kQueries * kDims * kWarp * 4;
  return Launch(AttendStretchKernel<T, kDims>,
                {.grid = grid,
                 .threads = kWarps * kWarp,
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

cudaError_t AttentionCuda(const AttentionShape& shape, const SequenceRows& rows,
                          const int64_t* positions, int64_t max_positions, const float* q,
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
                           parts, scratch, scratch + n_sums, out, rounded};
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

}  // namespace hearth::worker
