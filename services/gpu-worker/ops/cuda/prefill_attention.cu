#include <cuda_bf16.h>

#include "services/gpu-worker/ops/cuda/kv_pages.cuh"
#include "services/gpu-worker/ops/cuda/prefill_attention.h"
#include "services/gpu-worker/ops/cuda/tensor_core.cuh"
#include "services/gpu-worker/ops/cuda/warp.cuh"

namespace hearth::worker {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;
constexpr int kQueries = kWarps * 16;  // a block
// Positions at a time: as many as leave the widest heads their sums in registers.
template <int kHead>
constexpr int kPositionsOf = kHead == 256 ? 32 : 64;
constexpr float kLog2E = 1.4426950408889634f;

struct PrefillArgs {
  AttentionShape shape;
  int n_rows;
  const int64_t* positions;
  const float* q;
  const float* query_gate;
  DeviceKv kv;
  float* out;
};

// Rows of kHead bf16 values in shared memory: rows' pieces of 16 bytes swapped by the row, so that
// eight rows' same piece lies in all banks.
template <int kHead>
struct Image {
  static_assert(kHead == 32 || kHead == 64 || kHead == 128 || kHead == 256);
  static constexpr int kPieces = kHead / 8;
  static constexpr int kQueryBytes = kQueries * kHead * 2, kBytes = kPositionsOf<kHead> * kHead * 2;
  static constexpr uint32_t kSixteenRows = 16 * kHead * 2;
  // Piece p + 2 i of a row (p < 2) lies at Piece(row, p) ^ 32 i, and that of the row 16 further on
  // kSixteenRows further.
  static __device__ uint32_t Piece(int row, int piece) {
    const int swap = kPieces < 8 ? row / 2 % 4 : row % 8;
    return static_cast<uint32_t>(row * kHead * 2 + ((piece ^ swap) << 4));
  }
};

__device__ inline uint32_t PackBf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Which query a block's number `m` is: row and head.
struct Queries {
  int64_t first;  // of the block: row * share + head within the group
  int64_t end;    // n_rows * share
  int share;
  int kv_head;

  __device__ bool IsThere(int m) const { return first + m < end; }
  __device__ int64_t Row(int m) const { return (first + m) / share; }
  // Of [rows, H].
  __device__ int64_t Head(int m, const AttentionShape& shape) const {
    return Row(m) * shape.n_heads + int64_t{kv_head} * share + (first + m) % share;
  }
};

template <int kHead>
__device__ void StageQueries(const PrefillArgs& args, const Queries& queries, uint8_t* image) {
  constexpr int kPieces = Image<kHead>::kPieces;
  const float scale = kLog2E / sqrtf(static_cast<float>(kHead));
  for (int i = static_cast<int>(threadIdx.x); i < kQueries * kPieces; i += kThreads) {
    const int m = i / kPieces, piece = i % kPieces;
    float4 a = {}, b = {};
    if (queries.IsThere(m)) {
      const float* from = args.q + queries.Head(m, args.shape) * kHead + piece * 8;
      a = *reinterpret_cast<const float4*>(from);
      b = *reinterpret_cast<const float4*>(from + 4);
    }
    *reinterpret_cast<uint4*>(image + Image<kHead>::Piece(m, piece)) =
        make_uint4(PackBf16(a.x * scale, a.y * scale), PackBf16(a.z * scale, a.w * scale),
                   PackBf16(b.x * scale, b.y * scale), PackBf16(b.z * scale, b.w * scale));
  }
}

// The positions from `first` on of `pool`; zeros from `end` on.
template <int kHead>
__device__ void CopyPositions(const PrefillArgs& args, const void* pool, int kv_head, int64_t first,
                              int64_t end, uint32_t image) {
  constexpr int kPieces = Image<kHead>::kPieces;
  constexpr int kRowsAWarp = kPositionsOf<kHead> / kWarps;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int first_row = static_cast<int>(threadIdx.x) / kWarp * kRowsAWarp;
  const int64_t mine = first + first_row + lane % kRowsAWarp;
  const int64_t offset = mine < end ? KvOffset(args.kv, args.shape, 0, mine, kv_head) : -1;
  const auto* values = static_cast<const uint16_t*>(pool);
#pragma unroll
  for (int i = 0; i < kRowsAWarp * kPieces / kWarp; ++i) {
    const int row = (i * kWarp + lane) / kPieces, piece = (i * kWarp + lane) % kPieces;
    const int64_t at = __shfl_sync(kAllLanes, offset, row);
    CopyAsync16(image + Image<kHead>::Piece(first_row + row, piece),
                at < 0 ? nullptr : values + at + piece * 8, at >= 0);
  }
  CommitCopies();
}

// One block owns 64 queries of a key/value head (blockIdx.y), a warp 16 of them. Blocks of later
// rows, which see more, come first.
template <int kHead>
__global__ void __launch_bounds__(kThreads, 2)
    PrefillAttentionKernel(const __grid_constant__ PrefillArgs args) {
  using Rows = Image<kHead>;
  constexpr int kPositions = kPositionsOf<kHead>;
  extern __shared__ __align__(1024) uint4 shared[];
  auto* query_image = reinterpret_cast<uint8_t*>(shared);
  const uint32_t q_at = SharedAddress(query_image), k_at = q_at + Rows::kQueryBytes,
                 v_at = k_at + Rows::kBytes;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int first_m = static_cast<int>(threadIdx.x) / kWarp * 16;
  const int share = args.shape.n_heads / args.shape.n_kv_heads;
  const Queries queries{.first = int64_t{gridDim.x - 1 - blockIdx.x} * kQueries,
                        .end = int64_t{args.n_rows} * share,
                        .share = share,
                        .kv_head = static_cast<int>(blockIdx.y)};
  const int64_t begin = args.positions[0];
  if (begin < 0) return;
  const int64_t last_query = min(queries.first + kQueries, queries.end) - 1;
  const int64_t end = begin + last_query / share + 1;  // of the positions that the block needs
  // Of this lane's two queries: the last position that they see, from the first of the loop's.
  int sees[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    sees[half] = static_cast<int>(begin + queries.Row(first_m + lane / 4 + 8 * half));
  }
  uint32_t q_row = q_at + Rows::Piece(first_m + lane % 16, lane / 16);
  uint32_t k_row = k_at + Rows::Piece(lane / 16 * 8 + lane % 8, lane / 8 % 2);
  uint32_t v_row = v_at + Rows::Piece(lane % 16, lane / 16);

  CopyPositions<kHead>(args, args.kv.keys, queries.kv_head, 0, end, k_at);
  CopyPositions<kHead>(args, args.kv.values, queries.kv_head, 0, end, v_at);
  StageQueries<kHead>(args, queries, query_image);

  float out[kHead / 8][4] = {};
  float largest[2] = {-INFINITY, -INFINITY}, total[2] = {};
  for (int64_t first = 0; first < end; first += kPositions) {
    // Each turn makes its addresses anew: 48 of them kept from turn to turn would fill the
    // registers.
    asm volatile("" : "+r"(q_row), "+r"(k_row), "+r"(v_row));
    // Scores, in units of log 2.
    WaitForCopies<1>();
    __syncthreads();  // keys and queries are there
    float scores[kPositions / 8][4] = {};
#pragma unroll
    for (int step = 0; step < kHead / 16; ++step) {
      uint32_t a[4];
      LoadMatrices(a, q_row ^ static_cast<uint32_t>(32 * step));
#pragma unroll
      for (int j = 0; j < kPositions / 16; ++j) {
        uint32_t b[4];
        LoadMatrices(
            b, k_at + Rows::Piece(j * 16 + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
        MultiplyBf16(scores[2 * j], a, b[0], b[1]);
        MultiplyBf16(scores[2 * j + 1], a, b[2], b[3]);
      }
    }
    __syncthreads();  // keys have been read
    CopyPositions<kHead>(args, args.kv.keys, queries.kv_head, first + kPositions, end, k_at);

    // Weights, by the running maximum. Position 0 is seen by all: the first maximum is finite.
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = largest[half];
#pragma unroll
      for (int j = 0; j < kPositions / 8; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& score = scores[j][2 * half + c];
          if (j * 8 + lane % 4 * 2 + c > sees[half]) score = -INFINITY;
          most = fmaxf(most, score);
        }
      }
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 1));
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 2));
      const float shrink = exp2f(largest[half] - most);  // 0 at first
      largest[half] = most;
      float sum = 0;
#pragma unroll
      for (int j = 0; j < kPositions / 8; ++j) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& score = scores[j][2 * half + c];
          score = exp2f(score - most);
          sum += score;
        }
      }
      total[half] = total[half] * shrink + sum;
      sees[half] -= kPositions;
#pragma unroll
      for (int j = 0; j < kHead / 8; ++j) {
        out[j][2 * half] *= shrink;
        out[j][2 * half + 1] *= shrink;
      }
    }

    // Values.
    WaitForCopies<1>();
    __syncthreads();  // values are there
#pragma unroll
    for (int step = 0; step < kPositions / 16; ++step) {
      const uint32_t a[4] = {PackBf16(scores[2 * step][0], scores[2 * step][1]),
                             PackBf16(scores[2 * step][2], scores[2 * step][3]),
                             PackBf16(scores[2 * step + 1][0], scores[2 * step + 1][1]),
                             PackBf16(scores[2 * step + 1][2], scores[2 * step + 1][3])};
#pragma unroll
      for (int j = 0; j < kHead / 16; ++j) {
        uint32_t b[4];
        LoadMatricesTransposed(b,
                               (v_row ^ static_cast<uint32_t>(32 * j)) + step * Rows::kSixteenRows);
        MultiplyBf16(out[2 * j], a, b[0], b[1]);
        MultiplyBf16(out[2 * j + 1], a, b[2], b[3]);
      }
    }
    __syncthreads();  // values have been read
    CopyPositions<kHead>(args, args.kv.values, queries.kv_head, first + kPositions, end, v_at);
  }

  // Divide, gate, write.
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    total[half] += __shfl_xor_sync(kAllLanes, total[half], 1);
    total[half] += __shfl_xor_sync(kAllLanes, total[half], 2);
    const int m = first_m + lane / 4 + 8 * half;
    if (!queries.IsThere(m)) continue;
    const int64_t head = queries.Head(m, args.shape);
    const float* gates = args.query_gate + (head * 2 + 1) * kHead + lane % 4 * 2;
    float* to = args.out + head * kHead + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < kHead / 8; ++j) {
      const float2 gate = *reinterpret_cast<const float2*>(gates + j * 8);
      *reinterpret_cast<float2*>(to + j * 8) =
          make_float2(out[j][2 * half] / total[half] * SigmoidOf(gate.x),
                      out[j][2 * half + 1] / total[half] * SigmoidOf(gate.y));
    }
  }
}

template <int kHead>
cudaError_t Launch(const PrefillArgs& args, cudaStream_t stream) {
  constexpr int kBytes = Image<kHead>::kQueryBytes + 2 * Image<kHead>::kBytes;
  const auto* kernel = reinterpret_cast<const void*>(PrefillAttentionKernel<kHead>);
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  const int64_t n_queries = int64_t{args.n_rows} * (args.shape.n_heads / args.shape.n_kv_heads);
  const dim3 grid(static_cast<unsigned>((n_queries + kQueries - 1) / kQueries),
                  static_cast<unsigned>(args.shape.n_kv_heads));
  PrefillAttentionKernel<kHead><<<grid, kThreads, kBytes, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace

cudaError_t PrefillAttentionCuda(const AttentionShape& shape, int n_rows, const int64_t* positions,
                                 const float* q, const float* query_gate, const DeviceKv& kv,
                                 float* out, cudaStream_t stream) {
  if (n_rows < 0 || shape.n_kv_heads < 1 || shape.n_kv_heads > 65535 || shape.n_heads < 1 ||
      shape.n_heads % shape.n_kv_heads != 0 || kv.type != KvType::kBf16 || kv.page_tokens < 1) {
    return cudaErrorInvalidValue;
  }
  const PrefillArgs args{shape, n_rows, positions, q, query_gate, kv, out};
  switch (shape.head_dim) {
    case 32:
      return n_rows == 0 ? cudaSuccess : Launch<32>(args, stream);
    case 64:
      return n_rows == 0 ? cudaSuccess : Launch<64>(args, stream);
    case 128:
      return n_rows == 0 ? cudaSuccess : Launch<128>(args, stream);
    case 256:
      return n_rows == 0 ? cudaSuccess : Launch<256>(args, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace hearth::worker
