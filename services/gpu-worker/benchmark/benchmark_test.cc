#include <numeric>

#include "common/synthetic/synthetic_checkpoint.h"
#include "common/testing/status_matchers.h"
#include "services/expert-store/loading/loader.h"
#include "services/gpu-worker/benchmark/compare.h"
#include "services/gpu-worker/benchmark/report.h"
#include "services/gpu-worker/benchmark/runner.h"
#include "services/gpu-worker/benchmark/test_list.h"
#include "services/gpu-worker/benchmark/traffic.h"
#include "services/gpu-worker/engine/expert_sources.h"

namespace hearth::worker {
namespace {

using ::hearth::testing::IsStatus;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

constexpr auto kPrefill = BenchmarkTest::Kind::kPrefill;
constexpr auto kDecode = BenchmarkTest::Kind::kDecode;

TEST(TestList, EveryTestStandsOnceForEachBatch) {
  ASSERT_OK_AND_ASSIGN(const auto tests, ParseTests("prefill:128,decode:32@2k", "1,4"));
  EXPECT_THAT(tests,
              ElementsAre(BenchmarkTest{kPrefill, 128, 0, 1}, BenchmarkTest{kDecode, 32, 2048, 1},
                          BenchmarkTest{kPrefill, 128, 0, 4}, BenchmarkTest{kDecode, 32, 2048, 4}));
  EXPECT_EQ(TestName(tests[1]), "decode:32@2048");
}

TEST(TestList, WrongTestsAreRefusedWithWhatIsAllowed) {
  const auto refused = [](const char* tests, const char* batches, const char* says) {
    EXPECT_THAT(ParseTests(tests, batches),
                IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr(says)))
        << tests << " " << batches;
  };
  refused("", "1", "'' is no test: allowed are prefill:TOKENS[@CONTEXT]");
  refused("prefill:128,", "1", "'' is no test");
  refused("fill:1", "1", "'fill:1' is no test");
  refused("decode", "1", "the number of tokens is ''");
  refused("decode:0", "1", "the number of tokens is '0', allowed are 1 to 1048576");
  refused("decode:-1", "1", "the number of tokens is '-1'");
  refused("decode:1e3", "1", "the number of tokens is '1e3'");
  refused("decode:1@", "1", "the context is ''");
  refused("decode:1@x", "1", "'decode:1@x': the context is 'x'");
  refused("decode:1@1025k", "1", "the context is '1025k'");
  refused("decode:99999999999999999999", "1", "the number of tokens");
  refused("decode:1", "0", "the batch is '0', allowed are 1 to 256");
  refused("decode:1", "1,", "the batch is ''");
  refused("decode:1", "257", "the batch is '257'");
  refused("decode:1,decode:1@0", "1", "'decode:1@0' with batch 1 is there twice");
}

TEST(Runner, KvTokensCoverTheLargestTestInWholePages) {
  EXPECT_EQ(KvTokensNeeded({{kPrefill, 100, 0, 1}, {kDecode, 3, 30, 4}}, 16, 3), 4 * 48);
  EXPECT_EQ(KvTokensNeeded({{kDecode, 3, 30, 4}}, 16, 40), 4 * 80);
  EXPECT_EQ(KvTokensNeeded({{kPrefill, 1, 0, 1}}, 16, 40), 16);
}

TEST(Traffic, AStepTouchesEachPartAsOftenAsItIsUsed) {
  const Traffic traffic{.dense_bytes = 1000,
                        .head_bytes = 100,
                        .embedding_row_bytes = 10,
                        .expert_bytes = 7,
                        .state_bytes = 3,
                        .kv_token_bytes = 2};
  EXPECT_EQ(StepBytes(traffic, {.rows = 2, .sequences = 2, .kv_positions = 50, .experts = 20}),
            1000 + 100 + 2 * 10 + 20 * 7 + 2 * 3 + (50 + 2) * 2);
  EXPECT_EQ(StepBytes(traffic, {.rows = 1, .sequences = 1, .has_logits = false}),
            1000 + 10 + 3 + 2);
}

// Against the figures of the design: an expert is 1.55 MiB in files and 1.69 with float scales, a
// state 2 MiB a layer, keys and values of 2 heads of 256.
TEST(Traffic, TheLargeShapesBytesAreThoseOfItsDescription) {
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenModel("synthetic:qwen3-next-80b,layers=4", 1));
  ASSERT_OK_AND_ASSIGN(const Traffic traffic, ComputeTraffic(*checkpoint, true));
  EXPECT_NEAR(traffic.head_bytes, 151936.0 * 2048 * 2, 1);
  EXPECT_NEAR(traffic.expert_bytes, 3 * 2048 * 512 * (0.5 + 4.0 / 64), 1000);
  EXPECT_EQ(traffic.embedding_row_bytes, 4096);
  EXPECT_EQ(traffic.kv_token_bytes, 2.0 * 2 * 256 * 4);
  EXPECT_EQ(traffic.state_bytes, 3 * 2 * 4.0 * (32 * 128 * 128 + 3 * 8192));
  const double delta = 12288.0 * 2048 + 2048 * 4096, attention = 2048.0 * (8192 + 1024 + 4096);
  const double quantised = 3 * delta + attention + 4 * 3 * 2048.0 * 512;
  const double plain = 3 * 64.0 * 2048 + 4 * 513.0 * 2048;
  const double vectors = 4.0 * (9 * 2048 + 3 * (8192 * 4 + 128 + 64) + 2 * 256);
  EXPECT_NEAR(traffic.dense_bytes, quantised * (0.5 + 4.0 / 64) + plain * 2 + vectors, 1);
}

// A guess reads the head's layer and lm_head; a step of an engine that guesses reads fc and two
// projections more.
TEST(Traffic, GuessesTouchTheHeadsWeights) {
  ASSERT_OK_AND_ASSIGN(const auto checkpoint,
                       OpenModel("synthetic:qwen3-next-80b,layers=4,mtp=1", 1));
  ASSERT_OK_AND_ASSIGN(const Traffic without, ComputeTraffic(*checkpoint, true));
  ASSERT_OK_AND_ASSIGN(const Traffic with, ComputeTraffic(*checkpoint, true, /*with_mtp=*/true));
  const double fc = 4096.0 * 2048, k_and_v = 2048.0 * 1024, byte = 0.5 + 4.0 / 64;
  const double quantised = fc + k_and_v + 2048.0 * (8192 + 4096) + 3 * 2048.0 * 512;
  const double plain = 513.0 * 2048, vectors = 4.0 * (5 * 2048 + 2 * 256);
  EXPECT_NEAR(with.draft_bytes, quantised * byte + plain * 2 + vectors, 1);
  EXPECT_NEAR(with.dense_bytes - without.dense_bytes, (fc + k_and_v) * byte, 1);
  EXPECT_EQ(with.kv_token_bytes, 2 * without.kv_token_bytes);  // one attention layer of four
  EXPECT_EQ(without.draft_bytes, 0);
  EXPECT_NEAR(DraftBytes(with, {.sequences = 2, .kv_positions = 10, .experts = 3}),
              with.draft_bytes + with.head_bytes + 2 * 4096 + 3 * with.expert_bytes +
                  12 * with.draft_kv_token_bytes,
              1);
}

class RunnerTest : public ::testing::Test {
 protected:
  void SetUp() override { Load("synthetic:tiny,layers=4", 0); }

  void Load(const char* model, int max_drafts) {
    engine_.reset();
    auto checkpoint = OpenModel(model, 1);
    ASSERT_OK(checkpoint);
    checkpoint_ = *std::move(checkpoint);
    auto segment = store::LoadIntoMemory(*checkpoint_, 1);
    ASSERT_OK(segment);
    segment_ = std::make_unique<SegmentExperts>(*std::move(segment));
    experts_ = std::make_unique<CountingExperts>(segment_.get());
    auto engine =
        Engine::Create(*checkpoint_, experts_.get(),
                       {.kv_tokens = 1024, .max_batch_tokens = 32, .max_drafts = max_drafts});
    ASSERT_OK(engine);
    engine_ = *std::move(engine);
    traffic_ = *ComputeTraffic(*checkpoint_, true, max_drafts > 0);
  }

  absl::StatusOr<BenchmarkResult> Run(const BenchmarkTest& test, int repetitions = 3) {
    return RunBenchmark(*engine_, *experts_, traffic_, test,
                        {.repetitions = repetitions, .max_batch_tokens = 32});
  }

  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<SegmentExperts> segment_;
  std::unique_ptr<CountingExperts> experts_;
  std::unique_ptr<Engine> engine_;
  Traffic traffic_;
};

TEST_F(RunnerTest, DecodingIsTimedTokenByToken) {
  ASSERT_OK_AND_ASSIGN(const auto result, Run({kDecode, 5, 20, 2}));
  EXPECT_THAT(result.tokens_per_second, SizeIs(3));
  EXPECT_THAT(result.between_token_seconds, SizeIs(15));  // without the warm-up
  EXPECT_TRUE(result.first_token_seconds.empty());
  for (const double rate : result.tokens_per_second) EXPECT_GT(rate, 0);
  // Two of eight experts for each of two tokens.
  EXPECT_GE(result.experts_per_step, 2);
  EXPECT_LE(result.experts_per_step, 4);
  EXPECT_EQ(engine_->pages_free(), engine_->pages_total());
}

TEST_F(RunnerTest, WarmsUpForAsManyTokensAsAsked) {
  const auto run = [&](int64_t warm_up_tokens) {
    return RunBenchmark(*engine_, *experts_, traffic_, {kDecode, 1, 0, 1},
                        {.repetitions = 1, .warm_up_tokens = warm_up_tokens});
  };
  ASSERT_OK_AND_ASSIGN(const auto result, run(1024));  // all that there are pages for
  EXPECT_THAT(result.between_token_seconds, SizeIs(1));
  EXPECT_THAT(run(1025), IsStatus(absl::StatusCode::kResourceExhausted, ::testing::_));
}

TEST_F(RunnerTest, OneTokensBytesAreThoseOfItsStep) {
  ASSERT_OK_AND_ASSIGN(const auto result, Run({kDecode, 1, 100, 1}));
  EXPECT_EQ(result.experts_per_step, 2);
  EXPECT_NEAR(result.bytes_per_token,
              StepBytes(traffic_, {.rows = 1, .sequences = 1, .kv_positions = 101, .experts = 8}),
              0.01);
}

TEST_F(RunnerTest, PromptsShareTheStepsAndEachHasAFirstToken) {
  ASSERT_OK_AND_ASSIGN(const auto result, Run({kPrefill, 50, 0, 3}, 2));
  EXPECT_THAT(result.tokens_per_second, SizeIs(2));
  EXPECT_THAT(result.first_token_seconds, SizeIs(6));
  EXPECT_TRUE(result.between_token_seconds.empty());
  // Weights are touched once for up to 32 tokens: far less a token than decoding.
  EXPECT_LT(result.bytes_per_token, traffic_.dense_bytes / 10 + 8 * 4 * traffic_.expert_bytes);
  EXPECT_EQ(engine_->pages_free(), engine_->pages_total());
}

TEST_F(RunnerTest, MoreSequencesThanRowsAreStillRead) {
  ASSERT_OK_AND_ASSIGN(const auto result, Run({kPrefill, 2, 0, 40}, 1));
  EXPECT_THAT(result.first_token_seconds, SizeIs(40));
}

TEST_F(RunnerTest, RightGuessesGiveTokensWithoutStepsOfTheirOwn) {
  Load("synthetic:tiny,layers=4,mtp=1", 2);
  const auto run = [&](double right_share) {
    return RunBenchmark(
        *engine_, *experts_, traffic_, {kDecode, 9, 20, 2},
        {.repetitions = 2, .max_batch_tokens = 32, .drafts = 2, .right_share = right_share});
  };
  ASSERT_OK_AND_ASSIGN(const auto all, run(1));
  EXPECT_EQ(all.tokens_per_step, 3);
  EXPECT_THAT(all.between_token_seconds, SizeIs(18));
  ASSERT_OK_AND_ASSIGN(const auto none, run(0));
  EXPECT_EQ(none.tokens_per_step, 1);
  EXPECT_THAT(none.between_token_seconds, SizeIs(18));
  // The same steps for a third of the tokens, the last ones without guesses beyond the end.
  EXPECT_GT(none.bytes_per_token, 2 * all.bytes_per_token);
  EXPECT_GT(none.experts_per_step, 3);  // of six rows
  ASSERT_OK_AND_ASSIGN(const auto from_nothing,
                       RunBenchmark(*engine_, *experts_, traffic_, {kDecode, 7, 0, 1},
                                    {.repetitions = 1, .drafts = 2, .right_share = 1}));
  EXPECT_NEAR(from_nothing.tokens_per_step, 7.0 / 3, 1e-9);  // the first step guesses nothing
  ASSERT_OK_AND_ASSIGN(const auto some, run(0.5));
  EXPECT_GT(some.tokens_per_step, 1);
  EXPECT_LT(some.tokens_per_step, 3);
  EXPECT_EQ(engine_->pages_free(), engine_->pages_total());
}

TEST_F(RunnerTest, AContextBeyondThePagesIsAnError) {
  EXPECT_THAT(Run({kDecode, 1, 2000, 1}),
              IsStatus(absl::StatusCode::kResourceExhausted, HasSubstr("KV pages")));
}

TEST_F(RunnerTest, TheReportSaysWhatWasMeasuredAndHow) {
  ASSERT_OK_AND_ASSIGN(const auto prefill, Run({kPrefill, 8, 0, 1}));
  ASSERT_OK_AND_ASSIGN(const auto decode, Run({kDecode, 4, 16, 1}));
  BenchmarkReport report{.model = "synthetic:tiny",
                         .n_threads = 3,
                         .repetitions = 3,
                         .kernels = "float32 reference",
                         .routing = "flat",
                         .fills_contexts = true,
                         .read_bandwidth = {1e9, 9e8, 2e9},
                         .memory = {{"RAM", "experts", 123}},
                         .results = {prefill, decode}};
  const json::object object = ToJson(report);
  const json::array& results = object.at("results").as_array();
  ASSERT_THAT(results, SizeIs(2));
  const json::object& second = results[1].as_object();
  EXPECT_EQ(second.at("test"), "decode");
  EXPECT_EQ(second.at("tokens"), 4);
  EXPECT_EQ(second.at("context"), 16);
  EXPECT_EQ(second.at("batch"), 1);
  EXPECT_EQ(second.at("threads"), 3);
  const json::object& rate = second.at("tokens_per_second").as_object();
  const double median = rate.at("median").as_double();
  EXPECT_LE(rate.at("min").as_double(), median);
  EXPECT_GE(rate.at("max").as_double(), median);
  EXPECT_NEAR(second.at("bandwidth_share").as_double(), median * decode.bytes_per_token / 1e9,
              1e-9);
  EXPECT_TRUE(second.contains("between_tokens_seconds"));
  EXPECT_EQ(second.at("tokens_per_step"), 1.0);
  EXPECT_EQ(object.at("parameters").as_object().at("mtp"), "off");
  EXPECT_FALSE(second.contains("time_to_first_token_seconds"));
  EXPECT_TRUE(results[0].as_object().contains("time_to_first_token_seconds"));
  EXPECT_FALSE(object.at("commit").as_string().empty());
  EXPECT_THAT(ToText(report), AllOf(HasSubstr("prefill:8@0"), HasSubstr("decode:4@16"),
                                    HasSubstr("contexts were filled with random")));
}

json::value Report(double median, double min, double max, int64_t tokens = 32) {
  return {{"model", "m"},
          {"machine", {{"cpu", "a"}, {"cores", 2}}},
          {"results",
           {{{"test", "decode"},
             {"tokens", tokens},
             {"context", 0},
             {"batch", 1},
             {"threads", 2},
             {"tokens_per_second", {{"median", median}, {"min", min}, {"max", max}}}}}}};
}

TEST(Compare, OnlyAClearDropIsSlower) {
  const auto is_slower = [](const json::value& before, const json::value& after) {
    const auto comparison = CompareReports(before, after, 0.05);
    EXPECT_OK(comparison);
    return comparison.ok() && comparison->is_slower();
  };
  EXPECT_FALSE(is_slower(Report(100, 98, 102), Report(110, 108, 112)));
  EXPECT_FALSE(is_slower(Report(100, 98, 102), Report(96, 95, 97)));  // within 5 %
  EXPECT_FALSE(is_slower(Report(100, 80, 102), Report(90, 85, 95)));  // within the old spread
  EXPECT_TRUE(is_slower(Report(100, 98, 102), Report(90, 85, 95)));
}

TEST(Compare, TestsAreMatchedByAllTheirParameters) {
  ASSERT_OK_AND_ASSIGN(const auto comparison,
                       CompareReports(Report(100, 98, 102), Report(10, 9, 11, 64), 0.05));
  EXPECT_TRUE(comparison.changes.empty());
  EXPECT_FALSE(comparison.is_slower());
  EXPECT_THAT(comparison.unmatched, ElementsAre("decode:32@0 batch 1 threads 2 (before only)",
                                                "decode:64@0 batch 1 threads 2 (now only)"));
}

TEST(Compare, AnotherMachineIsSaid) {
  json::value other = Report(100, 98, 102);
  other.at("machine").as_object()["cpu"] = "b";
  ASSERT_OK_AND_ASSIGN(const auto comparison, CompareReports(Report(100, 98, 102), other, 0.05));
  EXPECT_THAT(comparison.warnings, ElementsAre("the CPU differs: \"a\" before, \"b\" now"));
  EXPECT_THAT(ToText(comparison), HasSubstr("careful: the CPU differs"));
}

TEST(Compare, WhatIsNoReportIsRefused) {
  const json::value good = Report(1, 1, 1);
  const auto refused = [&](const json::value& report, const char* says) {
    EXPECT_THAT(CompareReports(report, good, 0.05),
                IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr(says)));
  };
  refused(json::array{}, "the old report has no list of results");
  refused({{"results", 1}}, "the old report has no list of results");
  refused({{"results", {1, 2}}}, "no results[].test");
  json::value bad = good;
  bad.at("results").at(0).as_object().erase("batch");
  refused(bad, "no results[].batch");
  bad = good;
  bad.at("results").at(0).at("tokens_per_second").as_object().erase("max");
  refused(bad, "no results[].tokens_per_second.max");
}

}  // namespace
}  // namespace hearth::worker
