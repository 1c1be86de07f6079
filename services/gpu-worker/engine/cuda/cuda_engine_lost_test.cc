// What the CUDA engine does when the device fails for good. Each test runs in a process of its own
// (gtest's death tests, re-executed), since no call of CUDA succeeds there any more.
#include <chrono>
#include <cstdlib>
#include <iostream>

#include "services/gpu-worker/engine/cuda/cuda_engine_testing.h"
#include "tests/gpu_fault/gpu_fault.h"

namespace hearth::worker {
namespace {

using ::hearth::testing::BreakGpu;
using ::hearth::testing::GpuFault;
using ::hearth::testing::IsStatus;
using ::hearth::testing::PrepareGpuFault;
using ::testing::HasSubstr;
using Clock = std::chrono::steady_clock;

class CudaEngineLost : public CudaEngineTest {
 protected:
  void SetUp() override {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    CudaEngineTest::SetUp();
  }
  // The child's end: what it expected in vain goes to the parent.
  [[noreturn]] static void End() {
    const auto& result = *::testing::UnitTest::GetInstance()->current_test_info()->result();
    for (int i = 0; i < result.total_part_count(); ++i) {
      const auto& part = result.GetTestPartResult(i);
      std::cerr << "line " << part.line_number() << ": " << part.message() << std::endl;
    }
    std::_Exit(HasFailure() ? 1 : 0);
  }

  // An engine of which `slots` experts are in VRAM, and two sequences that have read something.
  void Begin(int64_t slots) {
    ASSERT_NO_FATAL_FAILURE(Open("tests/golden/tiny-a"));
    engine_ = Make({.expert_slots = slots, .divide_misses = false});  // the CPU is asked for all
    ASSERT_NE(engine_, nullptr);
    for (auto* sequence : {&first_, &second_}) {
      *sequence = engine_->NewSequence();
      ASSERT_OK(Feed(*engine_, **sequence, Ids(5, 1)));
      ASSERT_OK(Feed(*engine_, **sequence, Ids(1, 2)));
    }
    EXPECT_OK(engine_->device_error());
    EXPECT_EQ(PrepareGpuFault(), cudaSuccess);
  }
  absl::Status StepBoth() {
    const auto ids = Ids(1, 3);
    const StepItem items[] = {{.state = first_.get(), .tokens = ids},
                              {.state = second_.get(), .tokens = ids}};
    StepLogits logits;
    return engine_->Step(items, &logits);
  }
  // Steps fail soon after the device did, and from then on; everything can still be given back.
  void ExpectLost(Clock::time_point since) {
    absl::Status failed;
    while (failed.ok() && Clock::now() - since < std::chrono::seconds(10)) failed = StepBoth();
    EXPECT_LT(Clock::now() - since, std::chrono::seconds(5));
    EXPECT_THAT(failed, IsStatus(absl::StatusCode::kInternal, HasSubstr("cudaError")));
    EXPECT_THAT(engine_->device_error(),
                IsStatus(absl::StatusCode::kInternal, HasSubstr("cudaError")));
    std::cout << engine_->device_error() << std::endl;
    EXPECT_FALSE(StepBoth().ok());
    EXPECT_FALSE(Feed(*engine_, *first_, Ids(300, 1)).ok());
    EXPECT_FALSE(Feed(*engine_, *engine_->NewSequence(), Ids(1, 1)).ok());
    first_.reset();
    second_.reset();
    EXPECT_EQ(engine_->pages_free(), engine_->pages_total());
  }

  std::unique_ptr<Engine> engine_;
  std::unique_ptr<SequenceState> first_, second_;
};

TEST_F(CudaEngineLost, AKernelThatTrapsBetweenStepsFailsTheNextOnes) {
  const auto body = [this] {
    Begin(-1);
    EXPECT_EQ(BreakGpu(GpuFault::kTrap), cudaSuccess);
    ExpectLost(Clock::now());
    engine_.reset();
    End();
  };
  EXPECT_EXIT(body(), ::testing::ExitedWithCode(0), "");
}

// While the GPU waits for experts that the CPU computes: the wait's own limit is 20 s.
TEST_F(CudaEngineLost, AnIllegalAddressDuringAStepEndsItAtOnce) {
  const auto body = [this] {
    Begin(0);
    bool is_broken = false;
    experts_->on_get = [&] {
      if (!std::exchange(is_broken, true)) {
        EXPECT_EQ(BreakGpu(GpuFault::kIllegalAddress), cudaSuccess);
      }
    };
    const auto begin = Clock::now();
    EXPECT_FALSE(StepBoth().ok());
    EXPECT_TRUE(is_broken);
    ExpectLost(begin);
    engine_.reset();
    End();
  };
  EXPECT_EXIT(body(), ::testing::ExitedWithCode(0), "");
}

TEST_F(CudaEngineLost, NoOtherEngineStartsInTheSameProcess) {
  const auto body = [this] {
    Begin(0);
    EXPECT_EQ(BreakGpu(GpuFault::kTrap), cudaSuccess);
    ExpectLost(Clock::now());
    engine_.reset();
    const auto again =
        Engine::Create(*checkpoint_, experts_.get(), {.backend = BackendKind::kCuda});
    EXPECT_FALSE(again.ok());
    std::cout << again.status() << std::endl;
    End();
  };
  EXPECT_EXIT(body(), ::testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace hearth::worker
