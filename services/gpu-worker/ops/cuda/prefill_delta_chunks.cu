#include "services/gpu-worker/ops/cuda/prefill_delta.cuh"
#include "services/gpu-worker/ops/cuda/tensor_core.cuh"
#include "services/gpu-worker/ops/cuda/warp.cuh"

namespace hearth::worker {
namespace {

constexpr int kChunkThreads = 256;
constexpr int kPitch = kChunk + 4;  // of A's rows, in floats
constexpr int kChunkShared = 2 * kKeyImage * 2 + kChunk * (kPitch + kMaxDim) * 4;

// 8 values of a row of q or k, as f16.
__device__ inline uint4 LoadPiece(const float* row, int piece, int dk, bool is_there) {
  if (!is_there || piece * 8 >= dk) return make_uint4(0, 0, 0, 0);
  const float4 a = *reinterpret_cast<const float4*>(row + piece * 8);
  const float4 b = *reinterpret_cast<const float4*>(row + piece * 8 + 4);
  return make_uint4(PackFloats(a.x, a.y), PackFloats(a.z, a.w), PackFloats(b.x, b.y),
                    PackFloats(b.z, b.w));
}

// (1 + A) x = x in place, A [64, kPitch] strictly lower: a thread has a column of x.
__device__ inline void SolveColumn(const float* a, float (&x)[kChunk]) {
#pragma unroll
  for (int i = 1; i < kChunk; ++i) {
    float sums[4] = {};
#pragma unroll
    for (int m = 0; m < i; m += 4) {
      const float4 four = *reinterpret_cast<const float4*>(a + i * kPitch + m);
      sums[0] = fmaf(four.x, x[m], sums[0]);
      if (m + 1 < i) sums[1] = fmaf(four.y, x[m + 1], sums[1]);
      if (m + 2 < i) sums[2] = fmaf(four.z, x[m + 2], sums[2]);
      if (m + 3 < i) sums[3] = fmaf(four.w, x[m + 3], sums[3]);
    }
    x[i] -= (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
}

// Of a chunk's rows: G, exp(G) and beta. One warp.
struct Gates {
  float log_decays[kChunk], factors[kChunk], betas[kChunk];
};
__device__ void SumDecays(const DeltaChunks& args, int64_t first_row, int n_rows, int head,
                          Gates& gates) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float decays[kChunk / kWarp], betas[kChunk / kWarp], before = 0;
#pragma unroll
  for (int half = 0; half < kChunk / kWarp; ++half) {
    const int row = half * kWarp + lane;
    const int64_t at = (first_row + row) * args.shape.value_heads + head;
    decays[half] = row < n_rows ? args.in.decay[at] : 1.f;
    betas[half] = row < n_rows ? args.in.beta[at] : 0.f;
  }
#pragma unroll
  for (int half = 0; half < kChunk / kWarp; ++half) {
    float sum = logf(fmaxf(decays[half], 1e-37f));
#pragma unroll
    for (int d = 1; d < kWarp; d *= 2) {
      const float below = __shfl_up_sync(kAllLanes, sum, d);
      if (lane >= d) sum += below;
    }
    sum += before;
    before = __shfl_sync(kAllLanes, sum, kWarp - 1);
    gates.log_decays[half * kWarp + lane] = sum;
    gates.factors[half * kWarp + lane] = expf(sum);
    gates.betas[half * kWarp + lane] = betas[half];
  }
}

// A, and P to `products`: a warp has 16 rows and half of the columns.
__device__ void MakeSquares(const __half* queries, const __half* keys, const Gates& gates, float* a,
                            __half* products) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int row_block = warp / 2 * 16, column_block = warp % 2 * 32;
  float kk[4][4] = {}, qk[4][4] = {};
  const uint32_t keys_at = SharedAddress(keys), queries_at = SharedAddress(queries);
#pragma unroll
  for (int step = 0; step < kKeys / 16; ++step) {
    uint32_t from_k[4], from_q[4];
    LoadMatrices(from_k, PieceAddress<kKeys>(keys_at, row_block + lane % 16, 2 * step + lane / 16));
    LoadMatrices(from_q,
                 PieceAddress<kKeys>(queries_at, row_block + lane % 16, 2 * step + lane / 16));
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      uint32_t b[4];
      LoadMatrices(b, PieceAddress<kKeys>(keys_at, column_block + j * 16 + lane / 16 * 8 + lane % 8,
                                          2 * step + lane / 8 % 2));
      MultiplyHalf(kk[2 * j], from_k, b[0], b[1]);
      MultiplyHalf(kk[2 * j + 1], from_k, b[2], b[3]);
      MultiplyHalf(qk[2 * j], from_q, b[0], b[1]);
      MultiplyHalf(qk[2 * j + 1], from_q, b[2], b[3]);
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = row_block + lane / 4 + 8 * half, column = column_block + j * 8 + lane % 4 * 2;
      float p[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int above = row - column - c;
        const float ratio =
            above >= 0 ? expf(gates.log_decays[row] - gates.log_decays[column + c]) : 0.f;
        p[c] = ratio * qk[j][2 * half + c];
        a[row * kPitch + column + c] =
            above > 0 ? gates.betas[row] * ratio * kk[j][2 * half + c] : 0.f;
      }
      *reinterpret_cast<uint32_t*>(products + ImagePlace<kChunk>(row, column)) =
          PackFloats(p[0], p[1]);
    }
  }
}

// One block owns one chunk (blockIdx.x) of one value head (y). In the end the first half of its
// threads have a column of V each, the others one of K.
__global__ void __launch_bounds__(kChunkThreads, 2)
    ChunkKernel(const __grid_constant__ DeltaChunks args) {
  extern __shared__ uint4 shared[];
  __shared__ Gates gates;
  auto* keys = reinterpret_cast<__half*>(shared);
  __half* queries = keys + kKeyImage;
  auto* a = reinterpret_cast<float*>(queries + kKeyImage);
  float* values = a + kChunk * kPitch;
  if (*args.state == nullptr) return;
  const DeltaShape& shape = args.shape;
  const int dk = shape.key_dim, dv = shape.value_dim, share = shape.value_heads / shape.key_heads;
  const int chunk = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t first_row = int64_t{chunk} * kChunk;
  const int n_rows = min(kChunk, args.n_rows - chunk * kChunk);
  const int64_t n_keys = int64_t{shape.key_heads} * dk;
  const int64_t channels = 2 * n_keys + int64_t{shape.value_heads} * dv;
  const float* const mixed = args.in.mixed + first_row * channels;
  const int64_t of_head = int64_t{chunk} * shape.value_heads + head;
  const int64_t of_key_head = int64_t{chunk} * shape.key_heads + head / share;

  // Values, on their way until they are needed. Rows beyond the last change nothing: zeros, with
  // decay 1 and beta 0.
  const float* const from_values = mixed + 2 * n_keys + int64_t{head} * dv;
#pragma unroll
  for (int i = thread; i < kChunk * kMaxDim / 4; i += kChunkThreads) {
    const int row = i / (kMaxDim / 4), column = i % (kMaxDim / 4) * 4;
    const bool is_there = row < n_rows && column < dv;
    CopyAsync16(SharedAddress(values + i * 4),
                is_there ? from_values + row * channels + column : nullptr, is_there);
  }
  CommitCopies();

  // Rows of q and k, as f16, and the gates.
#pragma unroll
  for (int i = thread; i < kChunk * kKeys / 8; i += kChunkThreads) {
    const int row = i / (kKeys / 8), piece = i % (kKeys / 8);
    const float* const from = mixed + row * channels + int64_t{head / share} * dk;
    const uint4 q = LoadPiece(from, piece, dk, row < n_rows);
    const uint4 k = LoadPiece(from + n_keys, piece, dk, row < n_rows);
    const int at = ImagePlace<kKeys>(row, piece * 8);
    *reinterpret_cast<uint4*>(queries + at) = q;
    *reinterpret_cast<uint4*>(keys + at) = k;
    if (head % share != 0) continue;
    *reinterpret_cast<uint4*>(args.scratch.queries + of_key_head * kKeyImage + at) = q;
    *reinterpret_cast<uint4*>(args.scratch.keys + of_key_head * kKeyImage + at) = k;
  }
  if (thread < kWarp) SumDecays(args, first_row, n_rows, head, gates);
  __syncthreads();  // q, k and gates are there

  MakeSquares(queries, keys, gates, a, args.scratch.products + of_head * kSquareImage);
  if (thread < kChunk) {
    float* const to = args.scratch.factors + of_head * 2 * kChunk + thread;
    to[0] = gates.factors[thread];
    to[kChunk] = expf(gates.log_decays[kChunk - 1] - gates.log_decays[thread]);
  }
  WaitForCopies<0>();
  __syncthreads();  // A and V are there

  // Solutions.
  float x[kChunk];
  const bool is_value = thread < kMaxDim;
  const int column = thread % kMaxDim;
#pragma unroll
  for (int i = 0; i < kChunk; ++i) {
    x[i] = is_value ? values[i * kMaxDim + column]
                    : -gates.factors[i] * __half2float(keys[ImagePlace<kKeys>(i, column)]);
    x[i] *= gates.betas[i];
  }
  SolveColumn(a, x);
  if (is_value) {
    if (column >= dv) return;
    float* const to = args.scratch.solved_v + of_head * kChunk * dv + column;
#pragma unroll
    for (int i = 0; i < kChunk; ++i) to[i * dv] = x[i];
  } else {
    __half* const to = args.scratch.solved_k + of_head * kKeyImage;
#pragma unroll
    for (int i = 0; i < kChunk; ++i) to[ImagePlace<kKeys>(i, column)] = __float2half_rn(x[i]);
  }
}

}  // namespace

cudaError_t LaunchDeltaChunks(const DeltaChunks& args, cudaStream_t stream) {
  const cudaError_t error =
      cudaFuncSetAttribute(reinterpret_cast<const void*>(ChunkKernel),
                           cudaFuncAttributeMaxDynamicSharedMemorySize, kChunkShared);
  if (error != cudaSuccess) return error;
  const dim3 grid(static_cast<unsigned>((args.n_rows + kChunk - 1) / kChunk),
                  static_cast<unsigned>(args.shape.value_heads));
  ChunkKernel<<<grid, kChunkThreads, kChunkShared, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace hearth::worker
