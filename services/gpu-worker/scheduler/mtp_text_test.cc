// Text with and without multi-token prediction, by both CPU backends.
#include <gtest/gtest.h>

#include "services/gpu-worker/ops/kernels.h"
#include "services/gpu-worker/scheduler/mtp_text_testing.h"

namespace hearth::worker {
namespace {

class MtpText : public ::testing::TestWithParam<bool> {};

TEST_P(MtpText, IsTheSameWithAndWithoutGuesses) {
  if (!GetParam() && FindKernels("") == nullptr) GTEST_SKIP() << "no fast backend on this CPU";
  MtpTexts({.n_threads = 2, .exact = GetParam(), .kv_tokens = 2048})
      .ExpectTheSameWithAndWithoutGuesses();
}

INSTANTIATE_TEST_SUITE_P(ExactAndFast, MtpText, ::testing::Values(true, false));

}  // namespace
}  // namespace hearth::worker
