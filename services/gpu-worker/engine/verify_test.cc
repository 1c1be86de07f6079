#include "services/gpu-worker/engine/verify.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>
#include <tuple>

#include "common/testing/source_dir.h"
#include "common/testing/status_matchers.h"
#include "services/expert-store/loading/loader.h"
#include "services/gpu-worker/engine/expert_sources.h"
#include "services/gpu-worker/ops/kernels.h"

namespace hearth::worker {
namespace {

struct Loaded {
  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<ExpertSource> experts;
  std::unique_ptr<Engine> engine;
};

std::filesystem::path Golden(const std::string& name) {
  return std::filesystem::path(hearth::testing::SourceDir()) / "tests/golden" / name;
}

absl::StatusOr<Loaded> Load(const std::filesystem::path& folder, int n_threads,
                            const std::string& isa = {}, int max_drafts = 0) {
  const bool exact = isa.empty();
  Loaded loaded;
  HEARTH_ASSIGN_OR_RETURN(loaded.checkpoint, Checkpoint::Open(folder));
  HEARTH_ASSIGN_OR_RETURN(
      auto segment,
      store::LoadIntoMemory(*loaded.checkpoint, n_threads, exact ? kPlainExperts : kTiledExperts));
  loaded.experts = std::make_unique<SegmentExperts>(std::move(segment));
  HEARTH_ASSIGN_OR_RETURN(
      loaded.engine,
      Engine::Create(
          *loaded.checkpoint, loaded.experts.get(),
          {.n_threads = n_threads, .exact = exact, .isa = isa, .max_drafts = max_drafts}));
  return loaded;
}

class VerifyGolden : public ::testing::TestWithParam<const char*> {};

TEST_P(VerifyGolden, EveryQuantityIsWithinTolerance) {
  ASSERT_OK_AND_ASSIGN(const Loaded loaded, Load(Golden(GetParam()), 2));
  ASSERT_OK_AND_ASSIGN(const VerifyReport report,
                       Verify(*loaded.engine, Golden(GetParam()) / "reference.safetensors"));
  EXPECT_TRUE(report.ok()) << report.ToText();
  EXPECT_TRUE(report.skipped.empty()) << report.ToText();
  EXPECT_GT(report.quantities.size(), 12u);
}

INSTANTIATE_TEST_SUITE_P(References, VerifyGolden,
                         ::testing::Values("tiny-a", "tiny-a-bf16", "tiny-b", "made-yarn-tied",
                                           "made-top1-unnormalised", "made-fused-fp4",
                                           "made-equal-heads-f16"));

class VerifyFast : public ::testing::TestWithParam<std::tuple<const char*, const char*>> {};

TEST_P(VerifyFast, LogitsAndLikelihoodAreWithinTolerance) {
  const auto& [model, isa] = GetParam();
  if (FindKernels(isa) == nullptr) GTEST_SKIP() << "this CPU lacks " << isa;
  ASSERT_OK_AND_ASSIGN(const Loaded loaded, Load(Golden(model), 2, isa));
  ASSERT_OK_AND_ASSIGN(
      const VerifyReport report,
      Verify(*loaded.engine, Golden(model) / "reference.safetensors", {.exact = false}));
  EXPECT_TRUE(report.ok()) << report.ToText();
  for (const VerifyQuantity& q : report.quantities) {
    if (!q.name.starts_with("prefill in chunks")) continue;
    EXPECT_EQ(q.largest_error, 0) << q.name << ": a row depends on how the prompt was cut";
  }
}

INSTANTIATE_TEST_SUITE_P(References, VerifyFast,
                         ::testing::Combine(::testing::Values("tiny-a", "tiny-a-bf16", "tiny-b",
                                                              "made-top1-unnormalised",
                                                              "made-equal-heads-f16"),
                                            ::testing::Values("amx", "avx512", "avxvnni", "avx2")));

TEST(Verify, AnotherModelsReferenceIsFoundWrong) {
  ASSERT_OK_AND_ASSIGN(const Loaded loaded, Load(Golden("tiny-a"), 1));
  ASSERT_OK_AND_ASSIGN(const VerifyReport report,
                       Verify(*loaded.engine, Golden("tiny-a-bf16") / "reference.safetensors"));
  EXPECT_FALSE(report.ok()) << report.ToText();
}

std::filesystem::path Demo() {
  return std::filesystem::path(hearth::testing::SourceDir()) / "models/demo";
}

TEST(Verify, PartsOfAReferenceAreComparedAndTheRestIsListed) {
  ASSERT_OK_AND_ASSIGN(const Loaded loaded, Load(Demo(), 2));
  ASSERT_OK_AND_ASSIGN(const VerifyReport report,
                       Verify(*loaded.engine, Golden("demo-mtp") / "reference.safetensors"));
  EXPECT_TRUE(report.ok()) << report.ToText();
  EXPECT_EQ(report.skipped, std::vector<std::string>{"draft_logits"});
}

TEST(Verify, DraftsAreTheReferences) {
  ASSERT_OK_AND_ASSIGN(const Loaded loaded, Load(Demo(), 2, {}, /*max_drafts=*/1));
  ASSERT_OK_AND_ASSIGN(const VerifyReport report,
                       Verify(*loaded.engine, Golden("demo-mtp") / "reference.safetensors"));
  EXPECT_TRUE(report.ok()) << report.ToText();
  EXPECT_TRUE(report.skipped.empty()) << report.ToText();
  const auto drafts = std::ranges::find(report.quantities, "draft_logits", &VerifyQuantity::name);
  ASSERT_NE(drafts, report.quantities.end());
  EXPECT_TRUE(drafts->is_judged);
  EXPECT_EQ(drafts->note, "41 of 41 guesses are the reference's");
}

TEST(Verify, DraftsOfTheFastBackendAreJudgedAsAWhole) {
  if (FindKernels("") == nullptr) GTEST_SKIP() << "no fast backend on this CPU";
  ASSERT_OK_AND_ASSIGN(const Loaded loaded, Load(Demo(), 2, std::string(FindKernels("")->name), 1));
  ASSERT_OK_AND_ASSIGN(
      const VerifyReport report,
      Verify(*loaded.engine, Golden("demo-mtp") / "reference.safetensors", {.exact = false}));
  const auto drafts =
      std::ranges::find(report.quantities, "draft_logits RMS", &VerifyQuantity::name);
  ASSERT_NE(drafts, report.quantities.end());
  EXPECT_TRUE(drafts->is_judged && drafts->ok) << report.ToText();
}

TEST(Verify, AFileThatIsNoReferenceIsAnError) {
  ASSERT_OK_AND_ASSIGN(const Loaded loaded, Load(Golden("tiny-a"), 1));
  EXPECT_THAT(Verify(*loaded.engine, Golden("tiny-a") / "model.safetensors"),
              ::hearth::testing::IsStatus(absl::StatusCode::kInvalidArgument,
                                          ::testing::HasSubstr("input_ids")));
}

}  // namespace
}  // namespace hearth::worker
