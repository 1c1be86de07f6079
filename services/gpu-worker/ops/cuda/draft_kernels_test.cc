#include "services/gpu-worker/ops/cuda/draft_kernels.h"

#include <vector>

#include "services/gpu-worker/ops/cuda/cuda_testing.h"

namespace hearth::worker {
namespace {

using DraftKernelsTest = CudaTest;
using Floats = std::vector<float>;

struct Case {
  int n_sequences, n_rows, width, n_kept;
};

// What ShiftHidden must give: `hidden` [S, kMost, width] moves on, `from` says which row is read.
Floats Shift(const Case& c, const std::vector<int64_t>& positions, const Floats& h,
             const std::vector<int>& from, int most, Floats* hidden) {
  Floats before(h.size());
  const Floats old = *hidden;
  const auto at = [&](int row, int column) {
    return static_cast<size_t>(row) * static_cast<size_t>(c.width) + static_cast<size_t>(column);
  };
  for (int s = 0; s < c.n_sequences; ++s) {
    const int first = s * c.n_rows;
    for (int column = 0; column < c.width; ++column) {
      const bool is_new = positions[static_cast<size_t>(first)] == 0;
      const int kept_row = s * most + from[static_cast<size_t>(s)];
      before[at(first, column)] = is_new ? 0 : old[at(kept_row, column)];
      for (int t = 1; t < c.n_rows; ++t) {
        before[at(first + t, column)] = h[at(first + t - 1, column)];
      }
      for (int k = 0; k < c.n_kept; ++k) {
        (*hidden)[at(s * most + k, column)] = h[at(first + c.n_rows - c.n_kept + k, column)];
      }
    }
  }
  return before;
}

TEST_F(DraftKernelsTest, HiddenStatesMoveToTheNextRowAndTheLastAreKept) {
  constexpr int kMost = 4;
  uint32_t seed = 1;
  for (const Case& c : {Case{1, 1, 64, 1}, Case{8, 1, 2048, 1}, Case{4, 2, 1028, 2},
                        Case{2, 4, 512, 4}, Case{2, 3, 4, 2}, Case{1, 300, 260, 1}}) {
    SCOPED_TRACE(c.n_rows);
    const int total = c.n_sequences * c.n_rows;
    std::vector<int64_t> positions(static_cast<size_t>(total), 7);
    positions[0] = c.n_sequences > 1 ? 0 : 1;
    std::vector<int> from;
    for (int s = 0; s < c.n_sequences; ++s) from.push_back((s + 1) % kMost);
    const Floats h = RandomFloats(int64_t{total} * c.width, ++seed);
    Floats hidden = RandomFloats(int64_t{c.n_sequences} * kMost * c.width, ++seed);
    auto d_hidden = ToDevice(hidden);
    std::vector<const float*> read;
    std::vector<float*> written;
    for (int s = 0; s < c.n_sequences; ++s) {
      written.push_back(d_hidden.data() + int64_t{s} * kMost * c.width);
      read.push_back(written.back() + int64_t{from[static_cast<size_t>(s)]} * c.width);
    }
    const auto d_read = ToDevice(read);
    const auto d_written = ToDevice(written);
    const auto d_positions = ToDevice(positions);
    const auto d_h = ToDevice(h);
    auto before = Poisoned<float>(int64_t{total} * c.width + 1);
    HEARTH_EXPECT_CUDA(ShiftHiddenCuda({c.n_sequences, c.n_rows}, c.width, d_positions.data(),
                                       d_h.data(), {d_read.data(), d_written.data()}, c.n_kept,
                                       before.data(), nullptr));
    Floats got = ToHost(before);
    EXPECT_TRUE(IsPoison(got.back()));
    got.pop_back();
    EXPECT_EQ(got, Shift(c, positions, h, from, kMost, &hidden));
    EXPECT_EQ(ToHost(d_hidden), hidden);
  }
  EXPECT_EQ(ShiftHiddenCuda({1, 2}, 4, nullptr, nullptr, {}, 3, nullptr, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(ShiftHiddenCuda({1, 2}, 6, nullptr, nullptr, {}, 1, nullptr, nullptr),
            cudaErrorInvalidValue);
}

TEST_F(DraftKernelsTest, RowsAreGatheredScatteredAndJoined) {
  for (const int width : {4, 1020, 2048}) {
    constexpr int kRows = 5;
    const Floats a = RandomFloats(kRows * width, 1), b = RandomFloats(kRows * width, 2);
    const auto d_a = ToDevice(a), d_b = ToDevice(b);
    auto far = Poisoned<float>(int64_t{kRows} * 2 * width), near = Poisoned<float>(kRows * width);
    std::vector<float*> places;  // every other row of `far`, backwards
    for (int row = 0; row < kRows; ++row) {
      places.push_back(far.data() + int64_t{kRows - 1 - row} * 2 * width);
    }
    const auto to = ToDevice(places);
    const auto from = ToDevice(std::vector<const float*>(places.begin(), places.end()));
    HEARTH_EXPECT_CUDA(ScatterRowsCuda(kRows, width, d_a.data(), to.data(), nullptr));
    HEARTH_EXPECT_CUDA(GatherRowsCuda(kRows, width, from.data(), near.data(), nullptr));
    EXPECT_EQ(ToHost(near), a);
    const Floats scattered = ToHost(far);
    for (size_t i = 0; i < scattered.size(); ++i) {
      const size_t row = i / static_cast<size_t>(width);
      EXPECT_EQ(IsPoison(scattered[i]), row % 2 == 1) << i;
    }
    HEARTH_EXPECT_CUDA(JoinRowsCuda(kRows, width, d_a.data(), d_b.data(), far.data(), nullptr));
    const Floats joined = ToHost(far);
    for (size_t i = 0; i < joined.size(); ++i) {
      const auto w = static_cast<size_t>(width);
      const size_t row = i / (2 * w), column = i % (2 * w);
      ASSERT_EQ(joined[i], column < w ? a[row * w + column] : b[row * w + column - w]) << i;
    }
  }
}

}  // namespace
}  // namespace hearth::worker
