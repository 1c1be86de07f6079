#include "services/gpu-worker/ops/cuda/prefill_delta.cuh"
#include "services/gpu-worker/ops/cuda/tensor_core.cuh"
#include "services/gpu-worker/ops/cuda/warp.cuh"

namespace hearth::worker {
namespace {

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

__device__ inline void LoadChunk(const DeltaChunks& args, int chunk, int head, int first_column,
                                 uint32_t stage) {
  const int share = args.shape.value_heads / args.shape.key_heads, dv = args.shape.value_dim;
  const int64_t of_head = int64_t{chunk} * args.shape.value_heads + head;
  const int64_t of_key_head = int64_t{chunk} * args.shape.key_heads + head / share;
  const DeltaScratch& scratch = args.scratch;
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
  a[0] = PackFloats(first[0], first[1]);
  a[1] = PackFloats(first[2], first[3]);
  a[2] = PackFloats(second[0], second[1]);
  a[3] = PackFloats(second[2], second[3]);
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
__global__ void __launch_bounds__(kScanThreads)
    ScanKernel(const __grid_constant__ DeltaChunks args) {
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

}  // namespace

cudaError_t LaunchDeltaScan(const DeltaChunks& args, int shared_bytes, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(args.shape.value_heads),
                  static_cast<unsigned>((args.shape.value_dim + kScanColumns - 1) / kScanColumns));
  const bool is_double = shared_bytes >= 2 * kScanStage;
  const auto kernel = is_double ? ScanKernel<2> : ScanKernel<1>;
  const int bytes = is_double ? 2 * kScanStage : kScanStage;
  const cudaError_t error = cudaFuncSetAttribute(
      reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  kernel<<<grid, kScanThreads, static_cast<size_t>(bytes), stream>>>(args);
  return cudaGetLastError();
}

}  // namespace hearth::worker
