#include "services/gpu-worker/ops/cuda/link_probe.h"

#include <atomic>
#include <chrono>
#include <vector>

#include "services/gpu-worker/ops/cuda/exchange_testing.h"

namespace hearth::worker {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint32_t kQuestions = 100;

class LinkProbe : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    HEARTH_EXPECT_CUDA(stream_.Create());
  }
  uint32_t Sum(const void* memory, int64_t bytes) {
    auto sum = ToDevice(std::vector<uint32_t>{0});
    HEARTH_EXPECT_CUDA(ReadMemoryCuda(memory, bytes, sum.data(), stream_.get()));
    HEARTH_EXPECT_CUDA(cudaStreamSynchronize(stream_.get()));
    return ToHost(sum).front();
  }
  Stream stream_;
};

// Sizes around a tile of a block, of the grid, and above.
TEST_F(LinkProbe, EveryWordIsReadOnceWhereverItLies) {
  const int64_t most = 40 << 20;
  Pinned<uint32_t> pinned(most / 4);
  uint32_t word = 1;
  for (int64_t i = 0; i < most / 4; ++i) pinned.data()[i] = word = word * 1664525 + 1013904223;
  const auto device = ToDevice(pinned.Values(most / 4));
  for (const int64_t bytes : {int64_t{0}, int64_t{16}, int64_t{4096}, int64_t{65536 - 16},
                              int64_t{65536 + 16}, int64_t{17} << 20, most}) {
    SCOPED_TRACE(bytes);
    uint32_t want = 0;
    for (int64_t i = 0; i < bytes / 4; ++i) want ^= pinned.data()[i];
    EXPECT_EQ(Sum(pinned.data(), bytes), want);
    EXPECT_EQ(Sum(device.data(), bytes), want);
  }
  EXPECT_EQ(ReadMemoryCuda(device.data(), 8, nullptr, stream_.get()), cudaErrorInvalidValue);
  EXPECT_EQ(ReadMemoryCuda(device.data(), -16, nullptr, stream_.get()), cudaErrorInvalidValue);
}

TEST_F(LinkProbe, EachQuestionWaitsForItsAnswer) {
  Pinned<PingFlags> flags(1);
  std::atomic_ref asked(flags.data()->asked), answered(flags.data()->answered);
  const auto deadline = Clock::now() + std::chrono::seconds(10);
  HEARTH_EXPECT_CUDA(PingCuda(flags.data(), kQuestions, kAwaitNanoseconds, stream_.get()));
  for (uint32_t question = 1; question <= kQuestions; ++question) {
    while (asked.load(std::memory_order_acquire) < question && Clock::now() < deadline) {
    }
    ASSERT_EQ(asked.load(std::memory_order_acquire), question);
    answered.store(question, std::memory_order_release);
  }
  HEARTH_EXPECT_CUDA(cudaStreamSynchronize(stream_.get()));
  EXPECT_EQ(flags.data()->gave_up, 0u);
}

TEST_F(LinkProbe, AQuestionThatNobodyAnswersIsGivenUp) {
  Pinned<PingFlags> flags(1);
  HEARTH_EXPECT_CUDA(PingCuda(flags.data(), 5, 50'000'000, stream_.get()));
  HEARTH_EXPECT_CUDA(cudaStreamSynchronize(stream_.get()));
  EXPECT_EQ(flags.data()->gave_up, 1u);
  EXPECT_EQ(flags.data()->asked, 1u);
}

}  // namespace
}  // namespace hearth::worker
