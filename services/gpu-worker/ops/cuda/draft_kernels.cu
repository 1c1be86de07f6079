#include "services/gpu-worker/ops/cuda/draft_kernels.h"
#include "services/gpu-worker/ops/cuda/launch.cuh"

namespace hearth::worker {
namespace {

constexpr int kThreads = 256;

struct ShiftArgs {
  int n_rows;     // of a sequence
  int n_vectors;  // of a row
  const int64_t* positions;
  const float4* h;
  HiddenTables hidden;
  int n_kept;
  float4* before;
};

// One block a row; the block of a sequence's first row keeps its last ones. A thread owns columns:
// it has read the old hidden state there before it writes the new one.
__global__ void __launch_bounds__(kThreads) ShiftHiddenKernel(ShiftArgs args) {
  JoinChain();
  const int64_t row = blockIdx.x, n = args.n_vectors;
  const int sequence = static_cast<int>(blockIdx.x) / args.n_rows;
  const bool is_first = static_cast<int>(blockIdx.x) % args.n_rows == 0;
  const int64_t end = (int64_t{sequence} + 1) * args.n_rows;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) {
    if (!is_first) {
      args.before[row * n + i] = args.h[(row - 1) * n + i];
      continue;
    }
    const auto* const from = reinterpret_cast<const float4*>(args.hidden.from[sequence]);
    args.before[row * n + i] = args.positions[row] == 0 ? float4{0, 0, 0, 0} : from[i];
    auto* const to = reinterpret_cast<float4*>(args.hidden.to[sequence]);
    for (int64_t kept = 0; kept < args.n_kept; ++kept) {
      to[kept * n + i] = args.h[(end - args.n_kept + kept) * n + i];
    }
  }
}

// One block a row, of all three.
__global__ void __launch_bounds__(kThreads)
    GatherRowsKernel(int n_vectors, const float* const* from, float4* out) {
  JoinChain();
  const auto* const row = reinterpret_cast<const float4*>(from[blockIdx.x]);
  for (int i = static_cast<int>(threadIdx.x); i < n_vectors; i += kThreads) {
    out[int64_t{blockIdx.x} * n_vectors + i] = row[i];
  }
}

__global__ void __launch_bounds__(kThreads)
    ScatterRowsKernel(int n_vectors, const float4* rows, float* const* to) {
  JoinChain();
  auto* const row = reinterpret_cast<float4*>(to[blockIdx.x]);
  for (int i = static_cast<int>(threadIdx.x); i < n_vectors; i += kThreads) {
    row[i] = rows[int64_t{blockIdx.x} * n_vectors + i];
  }
}

__global__ void __launch_bounds__(kThreads)
    JoinRowsKernel(int n_vectors, const float4* a, const float4* b, float4* out) {
  JoinChain();
  const int64_t from = int64_t{blockIdx.x} * n_vectors;
  for (int i = static_cast<int>(threadIdx.x); i < n_vectors; i += kThreads) {
    out[2 * from + i] = a[from + i];
    out[2 * from + n_vectors + i] = b[from + i];
  }
}

template <typename Kernel, typename... Params>
cudaError_t LaunchRows(Kernel kernel, int n_rows, int width, cudaStream_t stream,
                       const Params&... params) {
  if (n_rows < 0 || width < 4 || width % 4 != 0) return cudaErrorInvalidValue;
  if (n_rows == 0) return cudaSuccess;
  return Launch(
      kernel, {.grid = dim3(static_cast<unsigned>(n_rows)), .threads = kThreads, .stream = stream},
      params...);
}

const float4* Vectors(const float* values) { return reinterpret_cast<const float4*>(values); }
float4* Vectors(float* values) { return reinterpret_cast<float4*>(values); }

}  // namespace

cudaError_t ShiftHiddenCuda(const SequenceRows& rows, int width, const int64_t* positions,
                            const float* h, const HiddenTables& hidden, int n_kept, float* before,
                            cudaStream_t stream) {
  if (rows.n_sequences < 0 || rows.n_rows < 0) return cudaErrorInvalidValue;
  if (rows.total() > 0 && (n_kept < 1 || n_kept > rows.n_rows)) return cudaErrorInvalidValue;
  const ShiftArgs args{rows.n_rows, width / 4, positions,      Vectors(h),
                       hidden,      n_kept,    Vectors(before)};
  return LaunchRows(ShiftHiddenKernel, rows.total(), width, stream, args);
}

cudaError_t GatherRowsCuda(int n_rows, int width, const float* const* from, float* out,
                           cudaStream_t stream) {
  return LaunchRows(GatherRowsKernel, n_rows, width, stream, width / 4, from, Vectors(out));
}

cudaError_t ScatterRowsCuda(int n_rows, int width, const float* rows, float* const* to,
                            cudaStream_t stream) {
  return LaunchRows(ScatterRowsKernel, n_rows, width, stream, width / 4, Vectors(rows), to);
}

cudaError_t JoinRowsCuda(int n_rows, int width, const float* a, const float* b, float* out,
                         cudaStream_t stream) {
  return LaunchRows(JoinRowsKernel, n_rows, width, stream, width / 4, Vectors(a), Vectors(b),
                    Vectors(out));
}

}  // namespace hearth::worker
