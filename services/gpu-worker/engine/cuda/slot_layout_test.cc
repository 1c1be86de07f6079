#include <cstring>
#include <filesystem>
#include <vector>

#include "common/experts/layout.h"
#include "common/experts/packing.h"
#include "common/testing/source_dir.h"
#include "common/testing/status_matchers.h"
#include "services/gpu-worker/engine/cuda/device_weights.h"
#include "services/gpu-worker/engine/expert_sources.h"

namespace hearth::worker {
namespace {

std::unique_ptr<Checkpoint> OpenGolden(const char* name) {
  auto checkpoint =
      Checkpoint::Open(std::filesystem::path(hearth::testing::SourceDir()) / "tests/golden" / name);
  EXPECT_OK(checkpoint);
  return *std::move(checkpoint);
}

std::vector<std::byte> Pack(const Checkpoint& checkpoint, int layer, ExpertLayout layout) {
  CheckpointExperts source(&checkpoint);
  const auto expert = source.Get(layer, 0);
  EXPECT_OK(expert);
  std::vector<std::byte> bytes(*PackedExpertBytes(*expert, layout));
  EXPECT_OK(PackExpert(*expert, layout, bytes));
  return bytes;
}

TEST(SlotLayout, EveryExpertOfAModelFitsAndOthersDoNot) {
  const auto model = OpenGolden("tiny-b");  // layer 1 has no experts
  ASSERT_OK_AND_ASSIGN(const SlotLayout layout, FindSlotLayout(*model));
  EXPECT_TRUE(layout.can_cache);
  EXPECT_EQ(layout.shape.width, 192);
  EXPECT_EQ(layout.shape.inner, 64);
  EXPECT_EQ(layout.shape.top_k, 5);
  EXPECT_GE(layout.stride, layout.bytes);
  EXPECT_EQ(layout.stride % kExpertAlignment, 0u);
  for (const int layer : {0, 2, 5}) {
    EXPECT_TRUE(FitsSlot(layout, Pack(*model, layer, kTiledExperts))) << layer;
  }
  EXPECT_FALSE(FitsSlot(layout, {}));
  EXPECT_FALSE(FitsSlot(layout, Pack(*model, 0, kPlainExperts)));
  EXPECT_FALSE(FitsSlot(layout, Pack(*OpenGolden("tiny-a"), 0, kTiledExperts)));
}

// A slot is read by one layout for all: what differs from it must not get in.
TEST(SlotLayout, BytesWithOtherLevelsKindsOrPlacesDoNotFit) {
  const auto model = OpenGolden("tiny-a");
  ASSERT_OK_AND_ASSIGN(const SlotLayout layout, FindSlotLayout(*model));
  const std::vector<std::byte> good = Pack(*model, 0, kTiledExperts);
  ASSERT_TRUE(FitsSlot(layout, good));
  const auto changed = [&](auto change) {
    std::vector<std::byte> bytes = good;
    PackedExpert expert;
    std::memcpy(&expert, bytes.data(), sizeof(expert));
    change(expert);
    std::memcpy(bytes.data(), &expert, sizeof(expert));
    return FitsSlot(layout, bytes);
  };
  EXPECT_TRUE(changed([](PackedExpert&) {}));
  EXPECT_TRUE(changed([](PackedExpert& e) { e.gate.factor *= 2; }));  // experts differ in it
  EXPECT_FALSE(changed([](PackedExpert& e) { e.gate.levels[3] += 0.5F; }));
  EXPECT_FALSE(changed([](PackedExpert& e) { e.up.kind = 0; }));
  EXPECT_FALSE(changed([](PackedExpert& e) { e.down.data_offset += 64; }));
  EXPECT_FALSE(changed([](PackedExpert& e) { e.up.absmax_offset += 64; }));
}

TEST(SlotLayout, ExpertsThatNoKernelReadsAreNotCached) {
  ASSERT_OK_AND_ASSIGN(const SlotLayout layout, FindSlotLayout(*OpenGolden("tiny-a-bf16")));
  EXPECT_FALSE(layout.can_cache);
  EXPECT_FALSE(FitsSlot(layout, Pack(*OpenGolden("tiny-a-bf16"), 0, kTiledExperts)));
}

}  // namespace
}  // namespace hearth::worker
