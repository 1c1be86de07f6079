#include "services/gpu-worker/rpc/task_queue.h"

#include <gtest/gtest.h>

#include <atomic>
#include <latch>

namespace hearth::worker {
namespace {

TEST(TaskQueue, RefusesBeyondItsLimitAndRunsWhatItAccepted) {
  std::latch started(1), go(1);
  std::atomic<int> n_run{0};
  {
    TaskQueue queue(1, 2);
    ASSERT_TRUE(queue.TryAdd([&] {
      started.count_down();
      go.wait();
      ++n_run;
    }));
    started.wait();
    EXPECT_TRUE(queue.TryAdd([&] { ++n_run; }));
    EXPECT_TRUE(queue.TryAdd([&] { ++n_run; }));
    EXPECT_FALSE(queue.TryAdd([&] { n_run += 100; }));
    go.count_down();
  }
  EXPECT_EQ(n_run, 3);
}

}  // namespace
}  // namespace hearth::worker
