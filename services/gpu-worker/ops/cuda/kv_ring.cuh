// The way of keys and values from their pages to the decode kernel of attention. Only for .cu
// files.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "services/gpu-worker/ops/cuda/kv_pages.cuh"
#include "services/gpu-worker/ops/cuda/warp.cuh"

namespace hearth::worker {

inline constexpr int kQueries =
    8;  // that one block takes of a key/value head's; idle places cost time
inline constexpr int kPositions = 4;  // that a warp takes at a time: 4 x 8 scores, one a lane
static_assert(kQueries * kPositions == kWarp);

// A warp's next positions on their way: a ring of stages in shared memory, each the keys and values
// (and scales) of kPositions positions of one head. All lanes call its functions together.
template <typename T, int kDims>
class KvRing {
 public:
  static constexpr int kRow = kDims * kWarp * static_cast<int>(sizeof(T)), kChunks = kRow / 16;
  static constexpr int kStages = sizeof(T) == 4 ? 2 : sizeof(T) == 2 ? 3 : 4;
  static constexpr int kStage = 2 * kPositions * kRow + 2 * kPositions * 4;
  static constexpr int kBytes = kStages * kStage;
  static_assert(kStage % 16 == 0);

  __device__ KvRing(const DeviceKv& kv, int n_heads, int64_t sequence, int kv_head, int64_t end,
                    uint8_t* shared)
      : kv_(kv),
        table_(kv.table + sequence * kv.max_pages),
        n_heads_(n_heads),
        head_(kv_head),
        end_(static_cast<unsigned>(end)),
        ring_(shared) {}

  // Asks for 4 positions from `first` on; of those from the end on, for the last one before it.
  __device__ void Ask(int64_t first) {
    if (first < end_) {
      const auto position = min(static_cast<unsigned>(first) + lane_ / kQueries, end_ - 1);
      const auto page_tokens = static_cast<unsigned>(kv_.page_tokens);
      const unsigned page = position / page_tokens;
      const int64_t token = int64_t{__ldcg(table_ + page)} * page_tokens + position % page_tokens;
      const int64_t row = token * n_heads_ + head_;  // of lane / 8's position
#pragma unroll
      for (int i = 0; i < kPositions * kChunks; i += kWarp) {
        const int chunk = i + static_cast<int>(lane_), p = min(chunk / kChunks, kPositions - 1);
        const int64_t at = __shfl_sync(kAllLanes, row, p * kQueries) * kRow + chunk % kChunks * 16;
        if (chunk >= kPositions * kChunks) continue;
        uint8_t* const to = ring_ + asked_ + chunk * 16;
        CopyAsync<16>(to, static_cast<const uint8_t*>(kv_.keys) + at);
        CopyAsync<16>(to + kPositions * kRow, static_cast<const uint8_t*>(kv_.values) + at);
      }
      if constexpr (sizeof(T) == 1) {
        auto* const scales = reinterpret_cast<float*>(ring_ + asked_ + 2 * kPositions * kRow);
        const unsigned p = lane_ / kQueries;
        if (lane_ % kQueries == 0) CopyAsync<4>(scales + p, kv_.key_scales + row);
        if (lane_ % kQueries == 1) CopyAsync<4>(scales + kPositions + p, kv_.value_scales + row);
      }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
    asked_ = asked_ + kStage == kBytes ? 0 : asked_ + kStage;
  }

  // The stage asked for kStages calls ago; free again after Release().
  __device__ const uint8_t* Take() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 1) : "memory");
    __syncwarp();  // the other lanes' parts have come too
    return ring_ + taken_;
  }
  __device__ void Release() {
    __syncwarp();  // every lane has read its part
    taken_ = taken_ + kStage == kBytes ? 0 : taken_ + kStage;
  }

 private:
  template <int kSize>
  __device__ static void CopyAsync(void* to, const void* from) {
    const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    if constexpr (kSize == 16) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
    } else {
      asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(at), "l"(from) : "memory");
    }
  }

  const DeviceKv& kv_;
  const int32_t* table_;
  int n_heads_, head_;
  unsigned end_;
  uint8_t* ring_;
  const unsigned lane_ = threadIdx.x % kWarp;
  int asked_ = 0, taken_ = 0;  // bytes from the ring's first
};

}  // namespace hearth::worker
