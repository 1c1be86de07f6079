#include "services/gpu-worker/ops/cuda/attention_cuda.h"
#include "services/gpu-worker/ops/cuda/kv_pages.cuh"
#include "services/gpu-worker/ops/cuda/launch.cuh"
#include "services/gpu-worker/ops/cuda/warp.cuh"

namespace hearth::worker {
namespace {

constexpr int kQueries = 8;    // that one block takes of a key/value head's; idle places cost time
constexpr int kPositions = 4;  // that a warp takes at a time: 4 x 8 scores, one a lane
constexpr int kWarps = 4;
static_assert(kQueries * kPositions == kWarp);
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

// Adds 4 positions from `first` on, those below `end`. `shared` [40] is this warp's.
template <typename T, int kDims>
__device__ void AddPositions(const AttentionArgs& args, int64_t sequence, int kv_head,
                             int64_t first, int64_t end, const float (&q)[kQueries][kDims],
                             float* shared, Sums<kDims>& sums) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const T* const keys = static_cast<const T*>(args.kv.keys) + lane * kDims;
  const T* const values = static_cast<const T*>(args.kv.values) + lane * kDims;

  // Load: all 8 vectors are on their way before the first is used.
  KvVector<T, kDims> k[kPositions], v[kPositions];
#pragma unroll
  for (int p = 0; p < kPositions; ++p) {
    const int64_t position = min(first + p, end - 1);  // beyond the end: loaded, but weighs nothing
    const int64_t at = KvOffset(args.kv, args.shape, sequence, position, kv_head);
    k[p].Load(keys + at);
    v[p].Load(values + at);
  }

  // Scores: lane p * 8 + j gets that of position p and query j.
  float products[kWarp];
#pragma unroll
  for (int p = 0; p < kPositions; ++p) {
#pragma unroll
    for (int j = 0; j < kQueries; ++j) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kDims; ++i) sum += q[j][i] * k[p][i];
      products[p * kQueries + j] = sum;
    }
  }
  float score = TransposedSum(products);
  if (first + lane / kQueries >= end) score = -INFINITY;

  // Weights, by the running maximum. Position `first` exists, so that the maximum is finite.
  float largest = fmaxf(sums.largest, score);
  largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, kQueries));
  largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2 * kQueries));
  const float shrink = expf(sums.largest - largest);  // 0 at first
  const float weight = expf(score - largest);
  const bool has_grown = __any_sync(kAllLanes, largest > sums.largest);
  sums.total = sums.total * shrink + weight;
  sums.largest = largest;
  __syncwarp();  // the last call's weights have been read
  shared[lane] = weight;
  if (lane < kQueries) shared[kWarp + lane] = shrink;
  __syncwarp();  // every lane's weight is there

  // Values.
  if (has_grown) {
#pragma unroll
    for (int j = 0; j < kQueries; ++j) {
#pragma unroll
      for (int i = 0; i < kDims; ++i) sums.acc[j][i] *= shared[kWarp + j];
    }
  }
#pragma unroll
  for (int p = 0; p < kPositions; ++p) {
#pragma unroll
    for (int j = 0; j < kQueries; ++j) {
      const float by = shared[p * kQueries + j];
#pragma unroll
      for (int i = 0; i < kDims; ++i) sums.acc[j][i] += by * v[p][i];
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
  __shared__ float weights[kWarps][kWarp + kQueries];
  __shared__ float largest[kWarps][kQueries], total[kWarps][kQueries];
  __shared__ float acc[kWarps][kQueries][kHead];

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

  // Queries, with the scale in them.
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
  for (int64_t first = begin + warp * kPositions; first < end; first += kWarps * kPositions) {
    AddPositions<T, kDims>(args, row / args.rows.n_rows, kv_head, first, end, q, weights[warp],
                           sums);
  }

  // Merge the warps. Warp 0 has seen a position; another may have seen none: it weighs exp(-inf).
  sums.total += __shfl_xor_sync(kAllLanes, sums.total, kQueries);
  sums.total += __shfl_xor_sync(kAllLanes, sums.total, 2 * kQueries);
  if (lane < kQueries) {
    largest[warp][lane] = sums.largest;
    total[warp][lane] = sums.total;
  }
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

// One block owns one head (blockIdx.x) of one row (y), one thread a dimension. Stretches are added
// in order.
__global__ void MergeKernel(AttentionArgs args) {
  __shared__ float weights[kMaxStretches];
  JoinChain();
  const int64_t row = blockIdx.y;
  const int64_t n_seen = args.positions[row] + 1;
  if (n_seen <= 0) return;
  const int64_t stretch = StretchOf(n_seen);
  const int n_parts = static_cast<int>((n_seen + stretch - 1) / stretch);
  const int d = args.shape.head_dim, n_heads = args.shape.n_heads;
  const int head = static_cast<int>(blockIdx.x), i = static_cast<int>(threadIdx.x);
  const int64_t first = row * args.max_parts * n_heads + head;

  // Weights of the stretches: every warp finds the largest score.
  float top = -INFINITY;
  for (int p = i % kWarp; p < n_parts; p += kWarp) {
    top = fmaxf(top, args.totals[(first + int64_t{p} * n_heads) * 2]);
  }
  top = WarpMax(top);
  for (int p = i; p < n_parts; p += static_cast<int>(blockDim.x)) {
    weights[p] = expf(args.totals[(first + int64_t{p} * n_heads) * 2] - top);
  }
  __syncthreads();  // every weight is there

  float sum = 0, total = 0;
#pragma unroll 8
  for (int p = 0; p < n_parts; ++p) {
    const int64_t at = first + int64_t{p} * n_heads;
    sum += weights[p] * args.sums[at * d + i];
    total += weights[p] * args.totals[at * 2 + 1];
  }
  const int64_t at = row * n_heads + head;
  args.out[at * d + i] = sum / total * SigmoidOf(args.query_gate[(at * 2 + 1) * d + i]);
}

int64_t PartsFor(int64_t max_positions) {
  const int64_t parts = (max_positions + kFirstStretch - 1) / kFirstStretch;
  return parts < kMaxStretches ? parts : kMaxStretches;
}

template <typename T>
cudaError_t LaunchStretches(const AttentionArgs& args, dim3 grid, cudaStream_t stream) {
  const int d = args.shape.head_dim;
  auto* const kernel = d == 32    ? AttendStretchKernel<T, 1>
                       : d == 64  ? AttendStretchKernel<T, 2>
                       : d == 128 ? AttendStretchKernel<T, 4>
                                  : AttendStretchKernel<T, 8>;
  return Launch(kernel, {.grid = grid, .threads = kWarps * kWarp, .stream = stream}, args);
}

}  // namespace

int64_t AttentionScratchFloats(const AttentionShape& shape, int n_rows, int64_t max_positions) {
  return n_rows * PartsFor(max_positions) * shape.n_heads * (shape.head_dim + 2);
}

cudaError_t AttentionCuda(const AttentionShape& shape, const SequenceRows& rows,
                          const int64_t* positions, int64_t max_positions, const float* q,
                          const float* query_gate, const DeviceKv& kv, float* scratch, float* out,
                          cudaStream_t stream) {
  const int d = shape.head_dim;
  if (rows.n_sequences < 0 || rows.n_rows < 0 || rows.total() > 65535 || shape.n_kv_heads < 1 ||
      shape.n_heads % shape.n_kv_heads != 0 || (d != 32 && d != 64 && d != 128 && d != 256) ||
      max_positions < 1 || kv.page_tokens < 1) {
    return cudaErrorInvalidValue;
  }
  if (rows.total() == 0) return cudaSuccess;
  const auto parts = static_cast<int>(PartsFor(max_positions));
  const int64_t n_sums = int64_t{rows.total()} * parts * shape.n_heads * d;
  const AttentionArgs args{shape, rows,    positions,        q,  query_gate, kv,
                           parts, scratch, scratch + n_sums, out};
  const int share = shape.n_heads / shape.n_kv_heads;
  const int groups = (share + kQueries - 1) / kQueries;
  const dim3 grid(static_cast<unsigned>(parts), static_cast<unsigned>(shape.n_kv_heads * groups),
                  static_cast<unsigned>(rows.total()));
  const cudaError_t error = kv.type == KvType::kF32
                                ? LaunchStretches<float>(args, grid, stream)
                                : LaunchStretches<__nv_bfloat16>(args, grid, stream);
  if (error != cudaSuccess) return error;
  const dim3 heads(static_cast<unsigned>(shape.n_heads), static_cast<unsigned>(rows.total()));
  return Launch(MergeKernel, {.grid = heads, .threads = static_cast<unsigned>(d), .stream = stream},
                args);
}

}  // namespace hearth::worker
