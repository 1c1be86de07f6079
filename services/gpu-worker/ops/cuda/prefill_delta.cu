#include <cuda_fp16.h>

#include "services/gpu-worker/ops/cuda/delta_norm.cuh"
#include "services/gpu-worker/ops/cuda/prefill_delta.h"
#include "services/gpu-worker/ops/cuda/tensor_core.cuh"
#include "services/gpu-worker/ops/cuda/warp.cuh"

namespace hearth::worker {
namespace {

constexpr int kChunk = 64;  // rows
constexpr int kKeys = 128;  // dk, filled up with zeros
constexpr int kMaxDim = 128;
constexpr int kSegment = 512;  // rows that the scratch holds

// f16 matrices as ldmatrix reads them: [64, kKeys] and [64, 64], rows' pieces of 16 bytes swapped
// by the row. They lie in scratch as they lie in shared memory.
constexpr int kKeyImage = kChunk * kKeys, kSquareImage = kChunk * kChunk;  // values
template <int kColumns>
__device__ inline int ImagePlace(int row, int column) {
  return row * kColumns + ((column / 8) ^ (row & 7)) * 8 + column % 8;
}
template <int kColumns>
__device__ inline uint32_t PieceAddress(uint32_t image, int row, int piece) {
  return image + static_cast<uint32_t>(row * kColumns * 2 + ((piece ^ (row & 7)) << 4));
}

struct Scratch {
  float* solved_v;   // [chunks, Hv, 64, dv]
  float* factors;    // [chunks, Hv, 2, 64]: exp(G_i) and exp(G_63 - G_i)
  __half* solved_k;  // [chunks, Hv] images of -(1 + A)^-1 beta exp(G) K
  __half* products;  // [chunks, Hv] square images of P
  __half* keys;      // [chunks, Hk] images
  __half* queries;   // [chunks, Hk] images
};

struct ChunkArgs {
  DeltaShape shape;
  int n_rows;  // of the segment
  DeltaInputs in;
  float* const* state;
  Scratch scratch;
  float* out;
};

__device__ inline uint32_t Pack(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

constexpr int kChunkThreads = 256;
constexpr int kPitch = kChunk + 4;  // of A's rows, in floats
constexpr int kChunkShared = 2 * kKeyImage * 2 + kChunk * (kPitch + kMaxDim) * 4;

// 8 values of a row of q or k, as f16.
__device__ inline uint4 LoadPiece(const float* row, int piece, int dk, bool is_there) {
  if (!is_there || piece * 8 >= dk) return make_uint4(0, 0, 0, 0);
  const float4 a = *reinterpret_cast<const float4*>(row + piece * 8);
  const float4 b = *reinterpret_cast<const float4*>(row + piece * 8 + 4);
  return make_uint4(Pack(a.x, a.y), Pack(a.z, a.w), Pack(b.x, b.y), Pack(b.z, b.w));
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
__device__ void SumDecays(const ChunkArgs& args, int64_t first_row, int n_rows, int head,
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
      *reinterpret_cast<uint32_t*>(products + ImagePlace<kChunk>(row, column)) = Pack(p[0], p[1]);
    }
  }
}

// One block owns one chunk (blockIdx.x) of one value head (y). In the end the first half of its
// threads have a column of V each, the others one of K.
__global__ void __launch_bounds__(kChunkThreads, 2)
    ChunkKernel(const __grid_constant__ ChunkArgs args) {
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

constexpr int kScanWarps = 4, kScanThreads = kScanWarps * kWarp;
constexpr int kScanColumns = kScanWarps * 16;  // of a head's values, a block
constexpr int kKeyImageBytes = kKeyImage * 2, kSquareImageBytes = kSquareImage * 2;
constexpr int kSolvedPitch = kScanColumns + 4;  // of V's solutions, in floats
constexpr int kSolvedBytes = kChunk * kSolvedPitch * 4, kFactorBytes = 2 * kChunk * 4;
// A stage: images of K's solutions, q and k, P, factors, the block's columns of V's solutions.
constexpr int kProductsAt = 3 * kKeyImageBytes, kFactorsAt = kProductsAt + kSquareImageBytes,
              kSolvedAt = kFactorsAt + kFactorBytes, kScanStage = kSolvedAt + kSolvedBytes;

// Copies bytes (a multiple of 16) by the whole block.
__device__ inline void CopyPieces(uint32_t to, const void* from, int bytes) {
  for (int i = static_cast<int>(threadIdx.x) * 16; i < bytes; i += kScanThreads * 16) {
    CopyAsync16(to + static_cast<uint32_t>(i), static_cast<const uint8_t*>(from) + i, true);
  }
}

__device__ inline void LoadChunk(const ChunkArgs& args, int chunk, int head, int first_column,
                                 uint32_t stage) {
  const int share = args.shape.value_heads / args.shape.key_heads, dv = args.shape.value_dim;
  const int64_t of_head = int64_t{chunk} * args.shape.value_heads + head;
  const int64_t of_key_head = int64_t{chunk} * args.shape.key_heads + head / share;
  const Scratch& scratch = args.scratch;
  CopyPieces(stage, scratch.solved_k + of_head * kKeyImage, kKeyImageBytes);
  CopyPieces(stage + kKeyImageBytes, scratch.queries + of_key_head * kKeyImage, kKeyImageBytes);
  CopyPieces(stage + 2 * kKeyImageBytes, scratch.keys + of_key_head * kKeyImage, kKeyImageBytes);
  CopyPieces(stage + kProductsAt, scratch.products + of_head * kSquareImage, kSquareImageBytes);
  CopyPieces(stage + kFactorsAt, scratch.factors + of_head * 2 * kChunk, kFactorBytes);
  const float* const solved = scratch.solved_v + of_head * kChunk * dv + first_column;
  for (int i = static_cast<int>(threadIdx.x); i < kChunk * kScanColumns / 4; i += kScanThreads) {
    const int row = i / (kScanColumns / 4), column = i % (kScanColumns / 4) * 4;
    const bool is_there = first_column + column < dv;
    CopyAsync16(stage + static_cast<uint32_t>(kSolvedAt + (row * kSolvedPitch + column) * 4),
                is_there ? solved + row * dv + column : nullptr, is_there);
  }
  CommitCopies();
}

// A's side of a product, of two neighbouring tiles of sums.
__device__ inline void PackTiles(const float (&first)[4], const float (&second)[4],
                                 uint32_t (&a)[4]) {
  a[0] = Pack(first[0], first[1]);
  a[1] = Pack(first[2], first[3]);
  a[2] = Pack(second[0], second[1]);
  a[3] = Pack(second[2], second[3]);
}

// sums [16, 64] += S^T [16, kKeys] image^T.
__device__ inline void MultiplyState(const uint32_t (&state)[kKeys / 16][4], uint32_t image,
                                     int lane, float (&sums)[kChunk / 8][4]) {
#pragma unroll
  for (int step = 0; step < kKeys / 16; ++step) {
#pragma unroll
    for (int i = 0; i < kChunk / 16; ++i) {
      uint32_t b[4];
      LoadMatrices(b, PieceAddress<kKeys>(image, i * 16 + lane / 16 * 8 + lane % 8,
                                          2 * step + lane / 8 % 2));
      MultiplyHalf(sums[2 * i], state[step], b[0], b[1]);
      MultiplyHalf(sums[2 * i + 1], state[step], b[2], b[3]);
    }
  }
}

// One block owns 64 columns (blockIdx.y) of one head (x), a warp 16 of them: S^T is the sums of its
// products, rows are S's columns. All matrices of a chunk are shared by the block's warps.
template <int kBuffers>
__global__ void __launch_bounds__(kScanThreads) ScanKernel(const __grid_constant__ ChunkArgs args) {
  static_assert(kBuffers == 1 || kBuffers == 2);
  extern __shared__ uint4 shared[];
  float* const states = *args.state;
  if (states == nullptr) return;
  const DeltaShape& shape = args.shape;
  const int dk = shape.key_dim, dv = shape.value_dim;
  const int head = static_cast<int>(blockIdx.x), lane = static_cast<int>(threadIdx.x) % kWarp;
  const int t = lane % 4, g = lane / 4;
  const int block_column = static_cast<int>(blockIdx.y) * kScanColumns;
  const int my_column = static_cast<int>(threadIdx.x) / kWarp * 16 + g;  // of the block's
  const bool is_mine = block_column + my_column < dv;
  const int n_chunks = (args.n_rows + kChunk - 1) / kChunk;
  const uint32_t stages = SharedAddress(shared);
  float* const home = states + int64_t{head} * dk * dv + block_column + my_column;

  // Read S.
  float s[kKeys / 8][4];
#pragma unroll
  for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int key = j * 8 + 2 * t + c % 2;
      s[j][c] = is_mine && key < dk ? home[int64_t{key} * dv + c / 2 * 8] : 0.f;
    }
  }

  LoadChunk(args, 0, head, block_column, stages);
  for (int chunk = 0; chunk < n_chunks; ++chunk) {
    WaitForCopies<0>();
    __syncthreads();  // the chunk's matrices are there, and the other stage has been read
    const int stage_at = chunk % kBuffers * kScanStage;
    if (kBuffers == 2 && chunk + 1 < n_chunks) {
      LoadChunk(args, chunk + 1, head, block_column,
                stages + static_cast<uint32_t>(kScanStage - stage_at));
    }
    const uint32_t stage = stages + static_cast<uint32_t>(stage_at);
    const uint8_t* const bytes = reinterpret_cast<const uint8_t*>(shared) + stage_at;
    const auto* factors = reinterpret_cast<const float*>(bytes + kFactorsAt) + 2 * t;
    const auto* solved = reinterpret_cast<const float*>(bytes + kSolvedAt) + my_column;

    // U^T begins as V's solution.
    float u[kChunk / 8][4];
#pragma unroll
    for (int j = 0; j < kChunk / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        u[j][c] = solved[(j * 8 + 2 * t + c % 2) * kSolvedPitch + c / 2 * 8];
      }
    }

    // U and what of O comes from S.
    uint32_t state[kKeys / 16][4];
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      PackTiles(s[2 * step], s[2 * step + 1], state[step]);
    }
    float o[kChunk / 8][4] = {};
    MultiplyState(state, stage, lane, u);
    MultiplyState(state, stage + kKeyImageBytes, lane, o);
#pragma unroll
    for (int j = 0; j < kChunk / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) o[j][c] *= factors[j * 8 + c % 2];
    }

    // What of O comes from the chunk itself.
#pragma unroll
    for (int step = 0; step < kChunk / 16; ++step) {
      uint32_t a[4];
      PackTiles(u[2 * step], u[2 * step + 1], a);
#pragma unroll
      for (int i = step; i < kChunk / 16; ++i) {
        uint32_t b[4];
        LoadMatrices(b, PieceAddress<kChunk>(stage + kProductsAt, i * 16 + lane / 16 * 8 + lane % 8,
                                             2 * step + lane / 8 % 2));
        MultiplyHalf(o[2 * i], a, b[0], b[1]);
        MultiplyHalf(o[2 * i + 1], a, b[2], b[3]);
      }
    }
    if (is_mine) {
#pragma unroll
      for (int j = 0; j < kChunk / 8; ++j) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int row = chunk * kChunk + j * 8 + 2 * t + c % 2;
          if (row >= args.n_rows) continue;
          args.out[(int64_t{row} * shape.value_heads + head) * dv + block_column + my_column +
                   c / 2 * 8] = o[j][c];
        }
      }
    }

    // S.
    const float keep = reinterpret_cast<const float*>(bytes + kFactorsAt)[kChunk - 1];
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) s[j][c] *= keep;
    }
#pragma unroll
    for (int step = 0; step < kChunk / 16; ++step) {
      uint32_t a[4];
#pragma unroll
      for (int j = 2 * step; j < 2 * step + 2; ++j) {
#pragma unroll
        for (int c = 0; c < 4; ++c) u[j][c] *= factors[kChunk + j * 8 + c % 2];
      }
      PackTiles(u[2 * step], u[2 * step + 1], a);
#pragma unroll
      for (int j = 0; j < kKeys / 16; ++j) {
        uint32_t b[4];
        LoadMatricesTransposed(b, PieceAddress<kKeys>(stage + 2 * kKeyImageBytes,
                                                      step * 16 + lane % 16, 2 * j + lane / 16));
        MultiplyHalf(s[2 * j], a, b[0], b[1]);
        MultiplyHalf(s[2 * j + 1], a, b[2], b[3]);
      }
    }
    if (kBuffers == 1 && chunk + 1 < n_chunks) {
      __syncthreads();  // the stage has been read
      LoadChunk(args, chunk + 1, head, block_column, stages);
    }
  }

  // Write S.
  if (!is_mine) return;
#pragma unroll
  for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int key = j * 8 + 2 * t + c % 2;
      if (key < dk) home[int64_t{key} * dv + c / 2 * 8] = s[j][c];
    }
  }
}

constexpr int kNormWarps = 8;

// One warp a head of a row, in place.
__global__ void __launch_bounds__(kNormWarps* kWarp)
    NormKernel(const __grid_constant__ DeltaShape shape, const __grid_constant__ GatedNorm norm,
               int64_t n_heads, float* const* state, float* out) {
  const int64_t number = int64_t{blockIdx.x} * kNormWarps + threadIdx.x / kWarp;
  if (number >= n_heads || *state == nullptr) return;
  float* const at = out + number * shape.value_dim;
  NormHead(shape, norm, static_cast<int>(number % shape.value_heads), number / shape.value_heads,
           at, at);
}

int64_t ChunksOf(int n_rows) {
  return ((n_rows < kSegment ? n_rows : kSegment) + kChunk - 1) / kChunk;
}

// The parts of scratch in order of their fields.
Scratch Divide(const DeltaShape& shape, int64_t n_chunks, void* memory) {
  const int64_t heads = n_chunks * shape.value_heads, key_heads = n_chunks * shape.key_heads;
  Scratch scratch{};
  scratch.solved_v = static_cast<float*>(memory);
  scratch.factors = scratch.solved_v + heads * kChunk * shape.value_dim;
  scratch.solved_k = reinterpret_cast<__half*>(scratch.factors + heads * 2 * kChunk);
  scratch.products = scratch.solved_k + heads * kKeyImage;
  scratch.keys = scratch.products + heads * kSquareImage;
  scratch.queries = scratch.keys + key_heads * kKeyImage;
  return scratch;
}

cudaError_t LaunchSegment(const ChunkArgs& args, int shared_bytes, cudaStream_t stream) {
  cudaError_t error =
      cudaFuncSetAttribute(reinterpret_cast<const void*>(ChunkKernel),
                           cudaFuncAttributeMaxDynamicSharedMemorySize, kChunkShared);
  if (error != cudaSuccess) return error;
  const auto n_heads = static_cast<unsigned>(args.shape.value_heads);
  const dim3 chunks(static_cast<unsigned>(ChunksOf(args.n_rows)), n_heads);
  ChunkKernel<<<chunks, kChunkThreads, kChunkShared, stream>>>(args);
  error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  const dim3 parts(n_heads,
                   static_cast<unsigned>((args.shape.value_dim + kScanColumns - 1) / kScanColumns));
  const bool is_double = shared_bytes >= 2 * kScanStage;
  const auto kernel = is_double ? ScanKernel<2> : ScanKernel<1>;
  const int bytes = is_double ? 2 * kScanStage : kScanStage;
  error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  kernel<<<parts, kScanThreads, static_cast<size_t>(bytes), stream>>>(args);
  return cudaGetLastError();
}

}  // namespace

int64_t PrefillDeltaScratchBytes(const DeltaShape& shape, int n_rows) {
  const int64_t a_head =
      kChunk * (int64_t{shape.value_dim} * 4 + 8) + (kKeyImage + kSquareImage) * 2;
  return ChunksOf(n_rows) * (shape.value_heads * a_head + shape.key_heads * 2 * kKeyImage * 2);
}

cudaError_t PrefillDeltaRuleCuda(const DeltaShape& shape, int n_rows, const DeltaInputs& in,
                                 const float* qkvz, const float* norm, float eps,
                                 float* const* state, void* scratch, float* out,
                                 cudaStream_t stream) {
  if (n_rows < 0 || shape.key_heads < 1 || shape.value_heads % shape.key_heads != 0 ||
      shape.key_dim < 16 || shape.key_dim % 16 != 0 || shape.key_dim > kKeys ||
      shape.value_dim < 16 || shape.value_dim % 16 != 0 || shape.value_dim > kMaxDim) {
    return cudaErrorInvalidValue;
  }
  if (n_rows == 0) return cudaSuccess;
  int device = 0, shared_bytes = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  const int64_t values = int64_t{shape.value_heads} * shape.value_dim;
  for (int first = 0; first < n_rows; first += kSegment) {
    const int n = n_rows - first < kSegment ? n_rows - first : kSegment;
    const ChunkArgs args{shape,
                         n,
                         {in.mixed + int64_t{first} * shape.channels(),
                          in.decay + int64_t{first} * shape.value_heads,
                          in.beta + int64_t{first} * shape.value_heads},
                         state,
                         Divide(shape, ChunksOf(n), scratch),
                         out + first * values};
    error = LaunchSegment(args, shared_bytes, stream);
    if (error != cudaSuccess) return error;
  }
  const int64_t n_heads = int64_t{n_rows} * shape.value_heads;
  NormKernel<<<static_cast<unsigned>((n_heads + kNormWarps - 1) / kNormWarps), kNormWarps * kWarp,
               0, stream>>>(shape, {qkvz, norm, eps}, n_heads, state, out);
  return cudaGetLastError();
}

}  // namespace hearth::worker
