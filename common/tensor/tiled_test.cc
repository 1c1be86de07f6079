// Tiling must keep every weight: exactly but for the scales' rounding, and within half a step for 8
// bits.
#include "common/tensor/tiled.h"

#include <cmath>
#include <cstddef>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace hearth {
namespace {

struct Plain {
  Plain(int64_t out, int64_t in, int block_size, uint32_t seed, float size = 1) {
    std::mt19937 random(seed);
    ref = {.kind = WeightKind::kBlock4, .out = out, .in = in, .block_size = block_size};
    ref.levels = kNf4Levels;
    codes.resize(static_cast<size_t>(out * in / 2));
    for (auto& code : codes) code = static_cast<uint8_t>(random());
    absmax.resize(static_cast<size_t>(out * in / block_size));
    for (auto& value : absmax) value = size * static_cast<float>(random() % 1000 + 1) / 1000;
    ref.data = codes.data();
    ref.absmax = absmax.data();
  }
  Plain(const Plain&) = delete;
  LinearRef ref;
  std::vector<uint8_t> codes;
  std::vector<float> absmax;
};

struct Tiled {
  template <typename Fill>
  Tiled(LinearRef form, const LinearRef& plain, Fill fill)
      : ref(form), data(BytesOf(form).data), scales(BytesOf(form).absmax / 2) {
    ref.factor = fill(plain, data.data(), scales.data());
    ref.data = data.data();
    ref.scales = scales.data();
  }
  LinearRef ref;
  std::vector<uint8_t> data;
  std::vector<uint16_t> scales;
};

std::vector<float> Row(const LinearRef& ref, int64_t row) {
  std::vector<float> values(static_cast<size_t>(ref.in));
  DequantizeRow(ref, row, values);
  return values;
}

TEST(Tiled, FourBitWeightsComeBackButForTheRoundingOfTheirScales) {
  for (const float size : {1e-6f, 1.f, 1e5f}) {
    for (const int64_t out : {1, 15, 16, 17, 40}) {
      for (const int block_size : {64, 128}) {
        const Plain plain(out, 256, block_size, 3, size);
        ASSERT_TRUE(CanTile4(plain.ref));
        const Tiled tiled(Tiled4Form(plain.ref), plain.ref, Tile4);
        for (int64_t r = 0; r < out; ++r) {
          const auto want = Row(plain.ref, r), got = Row(tiled.ref, r);
          for (size_t i = 0; i < want.size(); ++i) {
            ASSERT_NEAR(got[i], want[i], std::abs(want[i]) * 0x1p-11 + size * 1e-9)
                << r << " " << i;
          }
        }
      }
    }
  }
}

TEST(Tiled, EightBitWeightsAreWithinHalfAStep) {
  const Plain plain(21, 128, 64, 5);
  const Tiled tiled(Tiled8Form(plain.ref), plain.ref, Tile8);
  for (int64_t r = 0; r < plain.ref.out; ++r) {
    const auto want = Row(plain.ref, r), got = Row(tiled.ref, r);
    for (size_t first = 0; first < want.size(); first += 64) {
      float largest = 0;
      for (size_t i = first; i < first + 64; ++i) largest = std::max(largest, std::abs(want[i]));
      for (size_t i = first; i < first + 64; ++i) {
        ASSERT_NEAR(got[i], want[i], largest / 127 * 0.57) << r << " " << i;
      }
    }
  }
}

TEST(Tiled, BlocksThatDoNotFillTilesAreLeftAlone) {
  EXPECT_FALSE(CanTile4(Plain(4, 96, 64, 1).ref));
  EXPECT_FALSE(CanTile4(Plain(4, 64, 32, 1).ref));
  EXPECT_FALSE(CanTile8(Plain(4, 96, 64, 1).ref));
  LinearRef bf16{.kind = WeightKind::kBF16, .out = 4, .in = 64};
  EXPECT_FALSE(CanTile4(bf16));
  EXPECT_TRUE(CanTile8(bf16));
}

TEST(Tiled, ZeroMatricesStayZero) {
  Plain plain(3, 64, 64, 1);
  std::fill(plain.absmax.begin(), plain.absmax.end(), 0.f);
  const Tiled four(Tiled4Form(plain.ref), plain.ref, Tile4);
  const Tiled eight(Tiled8Form(plain.ref), plain.ref, Tile8);
  EXPECT_EQ(Row(four.ref, 2), std::vector<float>(64, 0.f));
  EXPECT_EQ(Row(eight.ref, 2), std::vector<float>(64, 0.f));
}

TEST(RoundLevels, Nf4LosesATwentiethOfItsOwnError) {
  const IntegerLevels levels = RoundLevels(kNf4Levels);
  EXPECT_NEAR(levels.scale, 112.03, 0.2);
  const std::array<int8_t, 16> want = {-112, -78, -59, -44, -32, -21, -10, 0,
                                       9,    18,  28,  38,  49,  63,  81,  112};
  EXPECT_EQ(levels.integers, want);
}

TEST(RoundLevels, OtherLevelsAreScaledByTheirLargest) {
  const IntegerLevels fp4 = RoundLevels(kFp4Levels);
  for (size_t i = 0; i < 16; ++i) {
    EXPECT_NEAR(fp4.integers[i] / fp4.scale, kFp4Levels[i], 0.6 / 64) << i;
  }
  std::array<float, 16> tiny = kNf4Levels;
  for (float& level : tiny) level *= 1e-3f;
  EXPECT_EQ(RoundLevels(tiny).integers, RoundLevels(kNf4Levels).integers);
  EXPECT_EQ(RoundLevels({}).integers, (std::array<int8_t, 16>{}));
}

}  // namespace
}  // namespace hearth
