#include "services/gpu-worker/engine/cuda/vram_plan.h"

#include <gmock/gmock.h>

#include "common/testing/status_matchers.h"

namespace hearth::worker {
namespace {

using ::hearth::testing::IsStatus;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr uint64_t kMib = 1 << 20;

VramNeeds Needs() {
  return {.fixed = {{"dense weights", 100 * kMib}, {"KV pages", 50 * kMib}},
          .slot_bytes = 2 * kMib,
          .all_experts = 64};
}

TEST(VramPlan, ExpertsGetTheRest) {
  ASSERT_OK_AND_ASSIGN(const VramPlan plan, PlanVram(Needs(), 201 * kMib, 500 * kMib));
  EXPECT_EQ(plan.n_slots, 25);
  EXPECT_EQ(plan.parts.back().bytes, kMib);
  EXPECT_THAT(plan.ToText(), HasSubstr("experts (25 of 64)"));
}

TEST(VramPlan, NeverMoreThanIsFreeNorThanThereAre) {
  ASSERT_OK_AND_ASSIGN(const VramPlan free, PlanVram(Needs(), 1000 * kMib, 160 * kMib));
  EXPECT_EQ(free.n_slots, 5);
  ASSERT_OK_AND_ASSIGN(const VramPlan all, PlanVram(Needs(), 1000 * kMib, 1000 * kMib));
  EXPECT_EQ(all.n_slots, 64);
}

TEST(VramPlan, WantedSlotsAreTakenOrRefused) {
  VramNeeds needs = Needs();
  needs.wanted_slots = 10;
  ASSERT_OK_AND_ASSIGN(const VramPlan plan, PlanVram(needs, 200 * kMib, 500 * kMib));
  EXPECT_EQ(plan.n_slots, 10);
  needs.wanted_slots = 26;
  EXPECT_THAT(PlanVram(needs, 200 * kMib, 500 * kMib).status(),
              IsStatus(absl::StatusCode::kResourceExhausted, HasSubstr("202 MiB are needed")));
}

TEST(VramPlan, WithoutABudgetTheReserveIsLeftToOthers) {
  ASSERT_OK_AND_ASSIGN(const VramPlan plan, PlanVram(Needs(), 0, kVramReserve + 160 * kMib));
  EXPECT_EQ(plan.n_slots, 5);
  EXPECT_THAT(PlanVram(Needs(), 0, 900 * kMib).status(),
              IsStatus(absl::StatusCode::kResourceExhausted,
                       HasSubstr("900 MiB are free and 1024 MiB of them left to others")));
}

// The supervisor shows the last line of what a service said.
TEST(VramPlan, LastLineSaysWhatIsWrongAndWhatToDo) {
  const std::string message(PlanVram(Needs(), 500 * kMib, 100 * kMib).status().message());
  EXPECT_THAT(message.substr(message.rfind('\n') + 1),
              AllOf(HasSubstr("150 MiB are needed, only 100 MiB are free"),
                    HasSubstr("--kv-tokens"), HasSubstr("nvidia-smi")));
}

TEST(VramPlan, SaysWhatWasNeeded) {
  EXPECT_THAT(PlanVram(Needs(), 149 * kMib, 500 * kMib).status(),
              IsStatus(absl::StatusCode::kResourceExhausted,
                       AllOf(HasSubstr("--vram allows 149 MiB"), HasSubstr("KV pages"))));
  EXPECT_THAT(PlanVram(Needs(), 500 * kMib, 100 * kMib).status(),
              IsStatus(absl::StatusCode::kResourceExhausted, HasSubstr("only 100 MiB are free")));
}

}  // namespace
}  // namespace hearth::worker
