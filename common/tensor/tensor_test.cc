#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "common/tensor/linear.h"
#include "common/testing/compare.h"
#include "gtest/gtest.h"

namespace hearth {
namespace {

TEST(Float16, EveryValueThatIsNotNanSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const float value = F16ToF32(half);
    if ((bits & 0x7c00) == 0x7c00 && (bits & 0x3ff) != 0) {
      EXPECT_TRUE(std::isnan(value)) << bits;
      EXPECT_TRUE(std::isnan(F16ToF32(F32ToF16(value)))) << bits;
    } else {
      EXPECT_EQ(F32ToF16(value), half) << value;
    }
  }
}

TEST(Float16, KnownValuesAndEdgesAreRoundedToNearestEven) {
  EXPECT_EQ(F16ToF32(0x3c00), 1.0f);
  EXPECT_EQ(F16ToF32(0xc000), -2.0f);
  EXPECT_EQ(F16ToF32(0x7bff), 65504.0f);
  EXPECT_EQ(F16ToF32(0x0001), 0x1p-24f);
  EXPECT_EQ(F16ToF32(0x0400), 0x1p-14f);
  EXPECT_TRUE(std::signbit(F16ToF32(0x8000)));
  EXPECT_EQ(F32ToF16(65519.996f), 0x7bff);
  EXPECT_EQ(F32ToF16(65520.0f), 0x7c00);  // halfway to 65536: even is infinity
  EXPECT_EQ(F32ToF16(1e30f), 0x7c00);
  EXPECT_EQ(F32ToF16(-std::numeric_limits<float>::infinity()), 0xfc00);
  EXPECT_EQ(F32ToF16(0x1p-25f), 0x0000);  // halfway to the smallest: even is zero
  EXPECT_EQ(F32ToF16(0x1.000002p-25f), 0x0001);
  EXPECT_EQ(F32ToF16(0x1.8p-24f), 0x0002);
  EXPECT_EQ(F32ToF16(0x1.ff8p-15f), 0x03ff);  // largest subnormal
  EXPECT_EQ(F32ToF16(0x1.fffp-15f), 0x0400);  // rounds up into the normals
  EXPECT_EQ(F32ToF16(1.0f + 0x1p-11f), 0x3c00);
  EXPECT_EQ(F32ToF16(1.0f + 0x1.8p-10f), 0x3c02);
}

TEST(Float16, RoundingPicksTheNearerNeighbour) {
  std::mt19937 random(7);
  for (int i = 0; i < 100000; ++i) {
    const float value = std::ldexp(std::uniform_real_distribution<float>(-1, 1)(random),
                                   static_cast<int>(random() % 42) - 26);
    const uint16_t half = F32ToF16(value);
    const double error = std::abs(static_cast<double>(F16ToF32(half)) - value);
    for (const int step : {-1, 1}) {
      const uint16_t other = static_cast<uint16_t>(half + step);
      if (((other ^ half) & 0x8000) != 0 || (other & 0x7c00) == 0x7c00) continue;
      EXPECT_LE(error, std::abs(static_cast<double>(F16ToF32(other)) - value)) << value;
    }
  }
}

TEST(BFloat16, RoundsToNearestEvenAndKeepsNan) {
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const float value = BF16ToF32(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(BF16ToF32(F32ToBF16(value))));
    } else {
      EXPECT_EQ(F32ToBF16(value), bits);
    }
  }
  EXPECT_EQ(F32ToBF16(std::bit_cast<float>(0x3f808000u)), 0x3f80);  // tie: even below
  EXPECT_EQ(F32ToBF16(std::bit_cast<float>(0x3f818000u)), 0x3f82);  // tie: even above
  EXPECT_EQ(F32ToBF16(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_EQ(F32ToBF16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_TRUE(std::isnan(BF16ToF32(F32ToBF16(std::bit_cast<float>(0x7f800001u)))));
}

// 3 rows of 33: rows start at odd elements, and blocks of 32 straddle them.
TEST(DequantizeRow, BlocksAndBytesMayStraddleRows) {
  constexpr int64_t kOut = 3, kIn = 33, kN = kOut * kIn;
  std::vector<uint8_t> codes((kN + 1) / 2, 0);
  std::vector<float> want(kN);
  const std::vector<float> absmax = {0.5f, 2.0f, 3.0f, 10.0f};
  for (int64_t i = 0; i < kN; ++i) {
    const int code = static_cast<int>((i * 7 + i / 5) % 16);
    codes[i / 2] = static_cast<uint8_t>(codes[i / 2] | (i % 2 == 0 ? code << 4 : code));
    want[i] = kNf4Levels[code] * absmax[i / 32];
  }
  const LinearRef weights{.kind = WeightKind::kBlock4,
                          .out = kOut,
                          .in = kIn,
                          .data = codes.data(),
                          .absmax = absmax.data(),
                          .block_size = 32,
                          .levels = kNf4Levels};
  for (int64_t row = 0; row < kOut; ++row) {
    std::vector<float> values(kIn, -99.f);
    DequantizeRow(weights, row, values);
    EXPECT_TRUE(testing::AllClose(values, std::span(want).subspan(row * kIn, kIn), {})) << row;
  }
  EXPECT_EQ(BytesOf(weights).data, 50u);
  EXPECT_EQ(BytesOf(weights).absmax, 16u);
}

template <typename T>
void ExpectPlainRow(WeightKind kind, T (*encode)(float)) {
  // One byte in: files promise no alignment.
  std::vector<std::byte> bytes(1 + 6 * sizeof(T));
  const std::vector<float> want = {1.5f, -2.0f, 0.0f, 0.25f, 1024.0f, -0.5f};
  for (size_t i = 0; i < want.size(); ++i) {
    const T value = encode(want[i]);
    std::memcpy(bytes.data() + 1 + i * sizeof(T), &value, sizeof(T));
  }
  const LinearRef weights{.kind = kind, .out = 2, .in = 3, .data = bytes.data() + 1};
  std::vector<float> row(3);
  DequantizeRow(weights, 1, row);
  EXPECT_TRUE(testing::AllClose(row, std::span(want).subspan(3), {}));
  EXPECT_EQ(BytesOf(weights).data, 6 * sizeof(T));
  EXPECT_EQ(BytesOf(weights).absmax, 0u);
}

TEST(DequantizeRow, PlainKindsAreReadAtAnyAlignment) {
  ExpectPlainRow<uint16_t>(WeightKind::kBF16, F32ToBF16);
  ExpectPlainRow<uint16_t>(WeightKind::kF16, F32ToF16);
  ExpectPlainRow<float>(WeightKind::kF32, [](float value) { return value; });
}

TEST(Levels, TablesAreThosePublished) {
  EXPECT_EQ(kNf4Levels[0], -1.0f);
  EXPECT_EQ(kNf4Levels[7], 0.0f);
  EXPECT_EQ(kNf4Levels[15], 1.0f);
  for (int i = 1; i < 16; ++i) EXPECT_LT(kNf4Levels[i - 1], kNf4Levels[i]);
  // FP4: one sign bit, and 0, 1/192, 2/3, 1, 1/3, 1/2, 1/6, 1/4: twelfths of 0, 0.0625, 8, 12, 4,
  // 6, 2, 3.
  const float twelfths[8] = {0.f, 0.0625f, 8.f, 12.f, 4.f, 6.f, 2.f, 3.f};
  for (int i = 0; i < 8; ++i) {
    EXPECT_NEAR(kFp4Levels[i], twelfths[i] / 12, 1e-8);
    EXPECT_EQ(kFp4Levels[i + 8], -kFp4Levels[i]);
  }
}

}  // namespace
}  // namespace hearth
