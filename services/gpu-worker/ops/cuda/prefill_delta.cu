#include "services/gpu-worker/ops/cuda/delta_norm.cuh"
#include "services/gpu-worker/ops/cuda/prefill_delta.cuh"
#include "services/gpu-worker/ops/cuda/prefill_delta.h"

namespace hearth::worker {
namespace {

constexpr int kSegment = 512;  // rows that the scratch holds
constexpr int kNormWarps = 8;

// One warp a head of a row, in place.
__global__ void __launch_bounds__(kNormWarps* kWarp)
    NormKernel(const __grid_constant__ DeltaShape shape, const __grid_constant__ GatedNorm norm,
               int64_t n_heads, float* const* state, float* out) {
  const int64_t number = int64_t{blockIdx.x} * kNormWarps + threadIdx.x / kWarp;
  if (number >= n_heads || *state == nullptr) return;
  const int dv = shape.value_dim, head = static_cast<int>(number % shape.value_heads);
  const int64_t row = number / shape.value_heads;
  float* const at = out + number * dv;
  NormHead(shape, norm, head, row, LoadHead(at, dv), LoadZ(shape, norm.qkvz, head, row),
           LoadHead(norm.norm, dv), at);
}

int64_t ChunksOf(int n_rows) {
  return ((n_rows < kSegment ? n_rows : kSegment) + kChunk - 1) / kChunk;
}

// The parts of scratch in order of their fields.
DeltaScratch Divide(const DeltaShape& shape, int64_t n_chunks, void* memory) {
  const int64_t heads = n_chunks * shape.value_heads, key_heads = n_chunks * shape.key_heads;
  DeltaScratch scratch{};
  scratch.solved_v = static_cast<float*>(memory);
  scratch.factors = scratch.solved_v + heads * kChunk * shape.value_dim;
  scratch.solved_k = reinterpret_cast<__half*>(scratch.factors + heads * 2 * kChunk);
  scratch.products = scratch.solved_k + heads * kKeyImage;
  scratch.keys = scratch.products + heads * kSquareImage;
  scratch.queries = scratch.keys + key_heads * kKeyImage;
  return scratch;
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
    const DeltaChunks args{shape,
                           n,
                           {in.mixed + int64_t{first} * shape.channels(),
                            in.decay + int64_t{first} * shape.value_heads,
                            in.beta + int64_t{first} * shape.value_heads},
                           state,
                           Divide(shape, ChunksOf(n), scratch),
                           out + first * values};
    error = LaunchDeltaChunks(args, stream);
    if (error != cudaSuccess) return error;
    error = LaunchDeltaScan(args, shared_bytes, stream);
    if (error != cudaSuccess) return error;
  }
  const int64_t n_heads = int64_t{n_rows} * shape.value_heads;
  NormKernel<<<static_cast<unsigned>((n_heads + kNormWarps - 1) / kNormWarps), kNormWarps * kWarp,
               0, stream>>>(shape, {qkvz, norm, eps}, n_heads, state, out);
  return cudaGetLastError();
}

}  // namespace hearth::worker
