#include "services/gpu-worker/ops/cuda/launch.cuh"
#include "services/gpu-worker/ops/cuda/top_logits_cuda.h"
#include "services/gpu-worker/ops/cuda/warp.cuh"

namespace hearth::worker {
namespace {

constexpr int kThreads = 512;
constexpr int kBlocks = 64;     // a row
constexpr int kBins = 1 << 13;  // by sign, exponent and four bits of the mantissa
constexpr int kBinsAThread = kBins / kThreads;
constexpr int kMostSorted = 4096;
static_assert(kTopLogits <= kThreads && kMostSorted % kThreads == 0);

// What a block adds to the row's sum of weights: that of its own logits, relative to its largest.
struct Weights {
  float largest;
  float sum;
};

struct RowScratch {
  unsigned counts[kBins];
  Weights weights[kBlocks];
  unsigned long long sorted[kMostSorted];  // keys of candidates, in no order
  unsigned n_candidates;
  unsigned n_done;  // blocks of the second kernel that have added theirs
  unsigned is_broken;
  unsigned unused;
};
static_assert(sizeof(RowScratch) % 16 == 0);

struct Args {
  int vocabulary;
  const float* logits;
  const float* temperatures;
  RowScratch* scratch;
  TopLogitsRow* rows;
};

// Unsigned numbers in the order of the floats; -0 is 0, so that they tie.
__device__ unsigned KeyOf(float value) {
  const unsigned bits = __float_as_uint(value + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ int BinOf(unsigned key) { return static_cast<int>(key >> 19); }

__device__ float InverseOf(float temperature) { return temperature == 0 ? 1.f : 1 / temperature; }

__device__ float MaxOfBlock(float value, float* shared) {
  value = WarpMax(value);
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
  __syncthreads();  // every warp's is there
  float largest = shared[0];
  for (int w = 1; w < kThreads / kWarp; ++w) largest = fmaxf(largest, shared[w]);
  return largest;
}

// One block owns every kBlocks-th stretch of kThreads logits of a row (blockIdx.y): counts them and
// weighs them.
__global__ void __launch_bounds__(kThreads) CountKernel(Args args) {
  __shared__ unsigned counts[kBins];
  __shared__ float shared[kThreads / kWarp], sums[kThreads / kWarp];
  for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kThreads) counts[i] = 0;
  JoinChain();
  __syncthreads();  // the counts are zero
  RowScratch& scratch = args.scratch[blockIdx.y];
  const float* const logits = args.logits + int64_t{blockIdx.y} * args.vocabulary;
  const int begin = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);

  // Count.
  float largest = -INFINITY;
  bool is_broken = false;
  for (int i = begin; i < args.vocabulary; i += kBlocks * kThreads) {
    const float logit = logits[i];
    is_broken |= !(logit < INFINITY);  // also true for NaN
    largest = fmaxf(largest, logit);
    atomicAdd(&counts[BinOf(KeyOf(logit))], 1u);
  }
  if (is_broken) atomicOr(&scratch.is_broken, 1u);
  largest = MaxOfBlock(largest, shared);
  for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kThreads) {
    if (counts[i] != 0) atomicAdd(&scratch.counts[i], counts[i]);
  }

  // Weigh. A block without a finite logit has nothing that weighs.
  const float inverse = InverseOf(args.temperatures[blockIdx.y]);
  float sum = 0;
  for (int i = begin; i < args.vocabulary && largest > -INFINITY; i += kBlocks * kThreads) {
    sum += expf((logits[i] - largest) * inverse);
  }
  sum = BlockSum(sum, sums);
  if (threadIdx.x == 0) scratch.weights[blockIdx.x] = {largest, sum};
}

// The lowest bin whose logits and those above are at least kTopLogits; 0 if all are fewer. The
// block together; thread t owns the t-th highest kBinsAThread bins.
__device__ int ThresholdOf(const RowScratch& scratch, unsigned* before) {
  __shared__ int threshold;
  const int highest = kBins - 1 - static_cast<int>(threadIdx.x) * kBinsAThread;
  unsigned mine = 0;
  for (int i = 0; i < kBinsAThread; ++i) mine += scratch.counts[highest - i];
  // How many lie in bins above this thread's.
  unsigned upto = mine;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const unsigned other = __shfl_up_sync(kAllLanes, upto, offset);
    if (lane >= offset) upto += other;
  }
  if (lane == kWarp - 1) before[threadIdx.x / kWarp] = upto;
  if (threadIdx.x == 0) threshold = 0;
  __syncthreads();  // every warp's total is there
  for (int w = 0; w < static_cast<int>(threadIdx.x) / kWarp; ++w) upto += before[w];
  if (upto >= kTopLogits && upto - mine < kTopLogits) {  // in one thread, if any
    unsigned above = upto - mine;
    int bin = highest;
    while (above + scratch.counts[bin] < kTopLogits) above += scratch.counts[bin--];
    threshold = bin;
  }
  __syncthreads();  // the threshold is there
  return threshold;
}

// The row's weights from its blocks': each lane of a warp owns two of them.
__device__ Weights AllWeights(const Weights* blocks, float inverse) {
  static_assert(kBlocks == 2 * kWarp);
  const auto lane = threadIdx.x % kWarp;
  const Weights mine[] = {blocks[lane], blocks[lane + kWarp]};
  const float largest = WarpMax(fmaxf(mine[0].largest, mine[1].largest));
  float sum = 0;
  for (const Weights& one : mine) {
    if (one.largest > -INFINITY) sum += expf((one.largest - largest) * inverse) * one.sum;
  }
  return {largest, WarpSum(sum)};
}

// All of the row's answer but its logits, and the scratch's counters for the next call.
__device__ void WriteHead(const Args& args, int n_candidates, const Weights& weights,
                          RowScratch* scratch, TopLogitsRow& row) {
  const float temperature = args.temperatures[blockIdx.y];
  const bool is_broken = scratch->is_broken != 0 || !(weights.largest > -INFINITY);
  row.flags = is_broken                    ? TopLogitsRow::kBroken
              : n_candidates > kMostSorted ? TopLogitsRow::kCrowded
                                           : TopLogitsRow::kFine;
  row.n = min(kTopLogits, args.vocabulary);
  row.temperature = temperature == 0 ? 1.f : temperature;
  row.weight_sum = weights.sum;
  scratch->n_candidates = 0, scratch->n_done = 0, scratch->is_broken = 0;
}

// The row's answer from its candidates, and the scratch as the next call needs it. One block.
__device__ void Finish(const Args& args, RowScratch& scratch, unsigned long long* keys) {
  __shared__ TopLogitsRow row;
  constexpr int kWords = sizeof(row) / sizeof(unsigned);
  auto* const words = reinterpret_cast<unsigned*>(&row);
  for (int i = static_cast<int>(threadIdx.x); i < kWords; i += kThreads) words[i] = 0;
  const float* const logits = args.logits + int64_t{blockIdx.y} * args.vocabulary;
  const int n = static_cast<int>(min(__ldcg(&scratch.n_candidates), unsigned{kMostSorted} + 1));
  const int n_sorted = min(n, kMostSorted);
  for (int i = static_cast<int>(threadIdx.x); i < n_sorted; i += kThreads) {
    keys[i] = __ldcg(&scratch.sorted[i]);
  }
  __syncthreads();  // all keys are there, and the row is zero

  // A candidate's place is the number of those before it: keys differ.
  for (int i = static_cast<int>(threadIdx.x); i < n_sorted && n <= kMostSorted; i += kThreads) {
    const unsigned long long key = keys[i];
    int rank = 0;
    for (int j = 0; j < n_sorted; ++j) rank += keys[j] > key ? 1 : 0;
    if (rank >= kTopLogits) continue;
    const auto id = static_cast<int32_t>(~static_cast<unsigned>(key));
    row.ids[rank] = id;
    row.logits[rank] = logits[id];
  }
  if (threadIdx.x < kWarp) {
    const Weights weights = AllWeights(scratch.weights, InverseOf(args.temperatures[blockIdx.y]));
    if (threadIdx.x == 0) WriteHead(args, n, weights, &scratch, row);
  }
  __syncthreads();  // all of the answer is there
  // It leaves in whole lines: to the host's memory, perhaps.
  auto* const to = reinterpret_cast<unsigned*>(&args.rows[blockIdx.y]);
  for (int i = static_cast<int>(threadIdx.x); i < kWords; i += kThreads) to[i] = words[i];
  __threadfence_system();  // before a later kernel tells the host
  for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kThreads) scratch.counts[i] = 0;
}

// Blocks as before: each adds its candidates, the last sorts them.
__global__ void __launch_bounds__(kThreads) SortKernel(Args args) {
  __shared__ unsigned long long keys[kMostSorted];
  __shared__ unsigned before[kThreads / kWarp];
  __shared__ bool is_last;
  JoinChain();
  RowScratch& scratch = args.scratch[blockIdx.y];
  const float* const logits = args.logits + int64_t{blockIdx.y} * args.vocabulary;
  const auto threshold = static_cast<unsigned>(ThresholdOf(scratch, before)) << 19;
  for (int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x); i < args.vocabulary;
       i += kBlocks * kThreads) {
    const unsigned key = KeyOf(logits[i]);
    if (key < threshold) continue;
    const unsigned at = atomicAdd(&scratch.n_candidates, 1u);
    if (at < kMostSorted) {
      scratch.sorted[at] = static_cast<unsigned long long>(key) << 32 | ~static_cast<unsigned>(i);
    }
  }
  __threadfence();  // this thread's candidates before the count of blocks
  __syncthreads();  // all of the block's
  if (threadIdx.x == 0) is_last = atomicAdd(&scratch.n_done, 1u) == kBlocks - 1;
  __syncthreads();  // the answer is there
  if (!is_last) return;
  __threadfence();  // the others' candidates after it
  Finish(args, scratch, keys);
}

}  // namespace

int64_t TopLogitsScratchBytes(int n_rows) {
  return n_rows * static_cast<int64_t>(sizeof(RowScratch));
}

cudaError_t TopLogitsCuda(int n_rows, int vocabulary, const float* logits,
                          const float* temperatures, void* scratch, TopLogitsRow* rows,
                          cudaStream_t stream) {
  if (n_rows < 0 || n_rows > 65535 || vocabulary < 1 || vocabulary > 1 << 24) {
    return cudaErrorInvalidValue;
  }
  if (n_rows == 0) return cudaSuccess;
  const Args args = {vocabulary, logits, temperatures, static_cast<RowScratch*>(scratch), rows};
  const LaunchShape shape = {
      .grid = dim3(kBlocks, static_cast<unsigned>(n_rows)), .threads = kThreads, .stream = stream};
  const cudaError_t error = Launch(CountKernel, shape, args);
  if (error != cudaSuccess) return error;
  return Launch(SortKernel, shape, args);
}

}  // namespace hearth::worker
