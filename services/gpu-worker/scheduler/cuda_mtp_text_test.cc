// Text with and without multi-token prediction, on a GPU: with all experts in its memory and in
// steps that its decode kernels compute, where every row is rounded alike in any batch. (Otherwise
// it is not, whether tokens are guessed or not: an expert's products are rounded otherwise by the
// CPU, and which are its changes in time; and a prompt's rows in large pieces, whose sizes depend
// on who else is there.)
#include "services/gpu-worker/ops/cuda/cuda_testing.h"
#include "services/gpu-worker/scheduler/mtp_text_testing.h"

namespace hearth::worker {
namespace {

constexpr int kDecodeRows = 8;

using CudaMtpText = CudaTest;

TEST_F(CudaMtpText, IsTheSameWithAndWithoutGuesses) {
  MtpTexts({.backend = BackendKind::kCuda,
            .n_threads = 4,
            .exact = false,
            .kv_tokens = 4096,
            .vram_bytes = uint64_t{4} << 30},
           kDecodeRows)
      .ExpectTheSameWithAndWithoutGuesses();
}

TEST_F(CudaMtpText, IsTheSameInFloat32) {
  MtpTexts({.backend = BackendKind::kCuda,
            .n_threads = 4,
            .exact = true,
            .kv_tokens = 4096,
            .vram_bytes = uint64_t{4} << 30})
      .ExpectTheSameWithAndWithoutGuesses();
}

}  // namespace
}  // namespace hearth::worker
