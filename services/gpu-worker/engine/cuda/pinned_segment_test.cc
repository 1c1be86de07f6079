#include "services/gpu-worker/engine/cuda/pinned_segment.h"

#include <utility>
#include <vector>

#include "common/base/page_buffer.h"
#include "common/testing/status_matchers.h"
#include "services/gpu-worker/ops/cuda/cuda_testing.h"

namespace hearth::worker {
namespace {

constexpr size_t kPiece = 64 << 10;

std::vector<size_t> SizesOf(std::span<const std::byte> memory) {
  std::vector<size_t> sizes;
  const std::byte* end = memory.data();
  for (const auto piece : PiecesOf(memory, kPiece)) {
    EXPECT_EQ(piece.data(), end) << "pieces follow each other";
    end += piece.size();
    sizes.push_back(piece.size());
  }
  EXPECT_EQ(end, memory.data() + memory.size());
  return sizes;
}

TEST(PiecesOf, AreCutAtMultiplesOfTheirSizeWhereverTheMemoryBegins) {
  ASSERT_OK_AND_ASSIGN(const PageBuffer buffer, PageBuffer::Reserve(1 << 20));
  const std::span<const std::byte> memory(buffer.data(), buffer.bytes());
  using Sizes = std::vector<size_t>;
  EXPECT_EQ(SizesOf({}), Sizes{});
  EXPECT_EQ(SizesOf(memory.first(kPiece)), Sizes{kPiece});
  EXPECT_EQ(SizesOf(memory.first(2 * kPiece + 5)), (Sizes{kPiece, kPiece, 5}));
  EXPECT_EQ(SizesOf(memory.subspan(4096, kPiece)), (Sizes{kPiece - 4096, 4096}));
  EXPECT_EQ(SizesOf(memory.subspan(kPiece - 1, 2)), (Sizes{1, 1}));
}

class PinnedSegmentTest : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    auto buffer = PageBuffer::Allocate(1 << 20);
    ASSERT_OK(buffer);
    buffer_ = *std::move(buffer);
    for (size_t i = 0; i < buffer_.bytes(); ++i) {
      buffer_.data()[i] = static_cast<std::byte>(i * i / 7);
    }
    memory_ = std::span<const std::byte>(buffer_.data(), buffer_.bytes()).subspan(4096);
    HEARTH_EXPECT_CUDA(stream_.Create());
  }
  static bool IsRegistered(const std::byte* at) {
    cudaPointerAttributes attributes = {};
    HEARTH_EXPECT_CUDA(cudaPointerGetAttributes(&attributes, at));
    return attributes.type == cudaMemoryTypeHost;
  }
  // How many pages of the memory are registered.
  int RegisteredPages() const {
    int n = 0;
    for (size_t at = 0; at < memory_.size(); at += 4096) n += IsRegistered(memory_.data() + at);
    return n;
  }

  PageBuffer buffer_;
  std::span<const std::byte> memory_;
  Stream stream_;
};

TEST_F(PinnedSegmentTest, IsRegisteredPieceByPieceAndGivenBack) {
  PinnedSegment segment(kPiece);
  int n_heard = 0, n_pages = -1;
  for (int again = 0; again < 2; ++again) {
    segment.Register(memory_, [&] { ++n_heard; });
    EXPECT_TRUE(segment.is_registered());
    EXPECT_EQ(RegisteredPages(), 255);
    EXPECT_EQ(std::exchange(n_heard, 0), 16);
    segment.Release([&] { ++n_heard, n_pages = RegisteredPages(); });
    EXPECT_EQ(std::exchange(n_heard, 0), 16);
    EXPECT_EQ(n_pages, 0);
    EXPECT_FALSE(segment.is_registered());
  }
}

TEST_F(PinnedSegmentTest, CopiesAcrossPiecesArriveWhole) {
  PinnedSegment segment(kPiece);
  for (const bool is_registered : {false, true}) {
    if (is_registered) segment.Register(memory_, [] {});
    for (const auto& [from, bytes] : {std::pair<size_t, size_t>{0, 1},
                                      {3, kPiece},
                                      {kPiece - 4096 - 1, 2},
                                      {100, 3 * kPiece},
                                      {0, memory_.size()}}) {
      SCOPED_TRACE(::testing::Message() << bytes << " from " << from);
      auto to = Poisoned<std::byte>(static_cast<int64_t>(bytes));
      HEARTH_EXPECT_CUDA(cudaDeviceSynchronize());
      HEARTH_EXPECT_CUDA(segment.Copy(to.data(), memory_.data() + from, bytes, stream_.get()));
      HEARTH_EXPECT_CUDA(cudaStreamSynchronize(stream_.get()));
      const auto part = memory_.subspan(from, bytes);
      EXPECT_EQ(ToHost(to), std::vector(part.begin(), part.end()));
    }
  }
}

TEST_F(PinnedSegmentTest, WhatCannotBeRegisteredIsSaidAndCopiesWorkAllTheSame) {
  PinnedSegment first(kPiece), second(kPiece);
  first.Register(memory_.first(kPiece - 4096), [] {});
  EXPECT_TRUE(first.is_registered());
  second.Register(memory_, [] {});  // whose first piece is another's
  EXPECT_FALSE(second.is_registered());
  auto to = Poisoned<std::byte>(static_cast<int64_t>(memory_.size()));
  HEARTH_EXPECT_CUDA(cudaDeviceSynchronize());
  HEARTH_EXPECT_CUDA(second.Copy(to.data(), memory_.data(), memory_.size(), stream_.get()));
  HEARTH_EXPECT_CUDA(cudaStreamSynchronize(stream_.get()));
  EXPECT_EQ(ToHost(to), std::vector(memory_.begin(), memory_.end()));
  HEARTH_EXPECT_CUDA(cudaGetLastError());
}

}  // namespace
}  // namespace hearth::worker
