#include "common/experts/packing.h"

#include <cstring>
#include <limits>

#include "common/experts/layout.h"
#include "common/experts/testing.h"

namespace hearth {
namespace {

using testing::ExpectSameExpert;
using testing::ExpectSameLinear;
using testing::FakeExpert;
using ::testing::HasSubstr;
using testing::IsStatus;

// Aligned as in a segment.
struct Payload {
  explicit Payload(uint64_t n)
      : memory(n + kExpertAlignment), bytes(memory.data(), static_cast<size_t>(n)) {
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    bytes = {memory.data() + (kExpertAlignment - address % kExpertAlignment), n};
  }
  std::vector<std::byte> memory;
  std::span<std::byte> bytes;
};

Payload Packed(const FakeExpert& expert) {
  Payload payload(*PackedExpertBytes(expert.ref()));
  EXPECT_OK(PackExpert(expert.ref(), kPlainExperts, payload.bytes));
  return payload;
}

TEST(Packing, EveryKindComesBackAsItWas) {
  for (const auto kind :
       {WeightKind::kF32, WeightKind::kF16, WeightKind::kBF16, WeightKind::kBlock4}) {
    const FakeExpert expert(5, 7, 13,
                            kind);  // odd: blocks straddle rows, the last code is half a byte
    const Payload payload = Packed(expert);
    ASSERT_OK_AND_ASSIGN(const ExpertRef got, UnpackExpert(payload.bytes));
    ExpectSameExpert(got, expert);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(got.gate.data) % kTensorAlignment, 0u);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(got.down.absmax) % kTensorAlignment, 0u);
  }
}

std::vector<float> RowOf(const LinearRef& linear, int64_t row) {
  std::vector<float> values(static_cast<size_t>(linear.in));
  DequantizeRow(linear, row, values);
  return values;
}

TEST(Packing, TiledExpertsHoldTheSameWeightsWhereTheirShapesAllowTiles) {
  const FakeExpert expert(5, 96, 128);  // down_proj's rows of 96 are no whole tiles
  Payload payload(*PackedExpertBytes(expert.ref(), kTiledExperts));
  ASSERT_OK(PackExpert(expert.ref(), kTiledExperts, payload.bytes));
  ASSERT_OK_AND_ASSIGN(const ExpertRef got, UnpackExpert(payload.bytes));
  EXPECT_EQ(got.gate.kind, WeightKind::kTiled4);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(got.gate.scales) % kTensorAlignment, 0u);
  ExpectSameLinear(got.down, expert.down);
  for (const int64_t row : {0, 17, 95}) {
    const auto want = RowOf(expert.up.ref, row), have = RowOf(got.up, row);
    for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(have[i], want[i], 1e-3) << i;
  }
  // The factor is part of what is checked.
  for (const float bad : {0.f, -1.f, std::numeric_limits<float>::quiet_NaN()}) {
    std::memcpy(payload.bytes.data() + offsetof(PackedLinear, factor), &bad, sizeof bad);
    EXPECT_THAT(UnpackExpert(payload.bytes), IsStatus(absl::StatusCode::kDataLoss, HasSubstr("")));
  }
}

TEST(Packing, ShapesThatDoNotFitTogetherAreRefused) {
  FakeExpert expert(1);
  expert.down.ref.in += 1;
  EXPECT_THAT(PackedExpertBytes(expert.ref()),
              IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("down_proj [20, 7]")));
  FakeExpert huge(1);
  huge.gate.ref.out = std::numeric_limits<int64_t>::max();
  EXPECT_THAT(PackedExpertBytes(huge.ref()),
              IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("gate_proj: shape")));
  FakeExpert block(1);
  block.up.ref.block_size = 0;
  EXPECT_THAT(PackedExpertBytes(block.ref()),
              IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("up_proj: block size 0")));
  FakeExpert level(1);
  level.up.ref.levels[3] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(PackedExpertBytes(level.ref()),
              IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("not finite")));
}

TEST(Packing, AnotherSizeThanReservedIsRefused) {
  const FakeExpert expert(1);
  Payload payload(*PackedExpertBytes(expert.ref()) + kTensorAlignment);
  EXPECT_THAT(PackExpert(expert.ref(), kPlainExperts, payload.bytes),
              IsStatus(absl::StatusCode::kFailedPrecondition, HasSubstr("reserved are")));
}

// Headers are judged without the checksum here: a writer's bug must not become a wild read.
TEST(Packing, NoHeaderByteCanBeChangedUnnoticedWhereItMatters) {
  const FakeExpert expert(9);
  Payload payload = Packed(expert);
  for (size_t i = 0; i < sizeof(PackedExpert); ++i) {
    const size_t field = i % sizeof(PackedLinear);
    // Another finite level, or a block size that takes as many bytes, is legal: the checksum's
    // business.
    const bool is_legal =
        (field >= offsetof(PackedLinear, levels) && field < offsetof(PackedLinear, data_offset)) ||
        (field >= 4 && field < 8);
    if (is_legal) continue;
    payload.bytes[i] ^= std::byte{0x81};
    EXPECT_THAT(UnpackExpert(payload.bytes), IsStatus(absl::StatusCode::kDataLoss, HasSubstr("")))
        << "byte " << i;
    payload.bytes[i] ^= std::byte{0x81};
  }
  EXPECT_OK(UnpackExpert(payload.bytes));
}

TEST(Packing, ShortPayloadsAreRefused) {
  const Payload payload = Packed(FakeExpert(2));
  for (const size_t n : {size_t{0}, size_t{1}, sizeof(PackedExpert) - 1, sizeof(PackedExpert),
                         payload.bytes.size() - 1}) {
    EXPECT_THAT(UnpackExpert(payload.bytes.first(n)),
                IsStatus(absl::StatusCode::kDataLoss, HasSubstr("")));
  }
}

}  // namespace
}  // namespace hearth
