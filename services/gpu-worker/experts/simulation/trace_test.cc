#include "services/gpu-worker/experts/simulation/trace.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/base/file.h"
#include "common/checkpoint/safetensors_bytes.h"
#include "common/testing/source_dir.h"
#include "common/testing/status_matchers.h"
#include "services/gpu-worker/engine/expert_sources.h"
#include "services/gpu-worker/experts/simulation/recorder.h"

namespace hearth::worker {
namespace {

using ::hearth::testing::IsStatus;
using ::testing::HasSubstr;

class TraceTest : public ::testing::Test {
 protected:
  ~TraceTest() override { std::filesystem::remove(file_); }
  absl::Status ReadBytes(std::vector<RawTensor> tensors,
                         const std::map<std::string, std::string>& metadata = {
                             {"n_layers", "2"}, {"n_experts", "4"}}) {
    EXPECT_OK(WriteFileAtomically(file_, SafetensorsBytes(tensors, metadata)));
    return ReadTrace(file_).status();
  }
  static RawTensor Ids(const char* name, std::vector<uint64_t> shape, std::string bytes) {
    return {name, Dtype::kU8, std::move(shape), std::move(bytes)};
  }
  const std::filesystem::path file_ =
      absl::StrCat("/tmp/hearth-routing-", ::getpid(), ".safetensors");
};

TEST_F(TraceTest, WhatIsWrittenIsRead) {
  RoutingTrace trace;
  trace.model = "made up";
  trace.fingerprint = "ab";
  trace.n_layers = 3;
  trace.n_experts = 600;
  trace.top_k = 2;
  trace.tokens = {{0, 0, true}, {0, 0, true}, {1, 0, false}};
  trace.ids = {{1, 2, 3, 4, 599, 0}, {}, {0, 1, 0, 1, 0, 1}};
  trace.early_ids = {{}, {}, {1, 0, 2, 3, 4, 5}};
  ASSERT_OK(WriteTrace(trace, file_));
  ASSERT_OK_AND_ASSIGN(const RoutingTrace read, ReadTrace(file_));
  EXPECT_EQ(read.model, trace.model);
  EXPECT_EQ(read.fingerprint, trace.fingerprint);
  EXPECT_EQ(read.n_layers, 3);
  EXPECT_EQ(read.n_experts, 600);
  EXPECT_EQ(read.top_k, 2);
  EXPECT_EQ(read.ids, trace.ids);
  EXPECT_EQ(read.early_ids, trace.early_ids);
  ASSERT_EQ(read.tokens.size(), 3u);
  EXPECT_TRUE(read.tokens[1].is_prompt);
  EXPECT_FALSE(read.tokens[2].is_prompt);
  EXPECT_EQ(read.tokens[2].step, 1);
  EXPECT_FALSE(read.Shape(5).HasExperts(1));
  EXPECT_TRUE(read.Shape(5).HasExperts(2));
}

TEST_F(TraceTest, WithoutTokensEachIsAStepOfOneSequence) {
  ASSERT_OK(ReadBytes({Ids("layers.1.router.topk_ids", {2, 2}, {0, 1, 2, 3})}));
  ASSERT_OK_AND_ASSIGN(const RoutingTrace trace, ReadTrace(file_));
  ASSERT_EQ(trace.tokens.size(), 2u);
  EXPECT_EQ(trace.tokens[1].step, 1);
  EXPECT_EQ(trace.tokens[1].sequence, 0);
  EXPECT_FALSE(trace.tokens[1].is_prompt);
}

TEST_F(TraceTest, WhatIsNoTraceIsRefused) {
  const RawTensor good = Ids("layers.0.router.topk_ids", {2, 2}, {0, 1, 2, 3});
  EXPECT_OK(ReadBytes({good}));
  const auto refused = [&](std::vector<RawTensor> tensors, const char* why,
                           const std::map<std::string, std::string>& metadata = {
                               {"n_layers", "2"}, {"n_experts", "4"}}) {
    EXPECT_THAT(ReadBytes(std::move(tensors), metadata),
                IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr(why)));
  };
  refused({good}, "must say n_experts", {{"n_layers", "2"}});
  refused({good}, "must say n_layers", {{"n_layers", "0"}, {"n_experts", "4"}});
  refused({Ids("layers.2.router.topk_ids", {1, 2}, {0, 1})}, "no layer has topk_ids");
  refused({Ids("layers.0.router.topk_ids", {1, 5}, {0, 1, 2, 3, 4})}, "must be [tokens");
  refused({Ids("layers.0.router.topk_ids", {2, 2}, {0, 1, 2, 4})}, "different experts below 4");
  refused({Ids("layers.0.router.topk_ids", {2, 2}, {0, 1, 2, 2})}, "different experts below 4");
  refused({good, Ids("layers.1.router.topk_ids", {1, 2}, {0, 1})}, "1 tokens, others 2");
  refused({good, Ids("tokens.step", {1}, {0})}, "tokens.step has 1 values");
  refused({good, Ids("tokens.step", {2}, {1, 0})}, "token 1 is of step 0");
}

TEST_F(TraceTest, RecorderSeesTheReferencesRouting) {
  const std::filesystem::path folder =
      std::filesystem::path(hearth::testing::SourceDir()) / "tests/golden/tiny-a";
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, Checkpoint::Open(folder));
  ASSERT_OK_AND_ASSIGN(const auto file, SafetensorsFile::Open(folder / "reference.safetensors"));
  const std::vector<int64_t> wide = *ToIntegers(*file.Find("input_ids"));
  const std::vector<int32_t> prompt(wide.begin(), wide.end());
  CheckpointExperts experts(checkpoint.get());
  ASSERT_OK_AND_ASSIGN(const auto engine, Engine::Create(*checkpoint, &experts, {}));
  RoutingRecorder recorder(engine.get(), "tiny-a", "");
  ASSERT_OK(recorder.Run(prompt, {.max_tokens = 3, .max_batch_tokens = 7, .eos_ids = {}}));
  ASSERT_OK(
      recorder.Run({prompt.data(), 1}, {.max_tokens = 1, .max_batch_tokens = 7, .eos_ids = {}}));
  const RoutingTrace& trace = recorder.trace();
  ASSERT_EQ(trace.tokens.size(), prompt.size() + 3 + 1 + 1);
  EXPECT_TRUE(trace.tokens[prompt.size() - 1].is_prompt);
  EXPECT_FALSE(trace.tokens[prompt.size()].is_prompt);
  EXPECT_EQ(trace.tokens[7].step, 1);
  EXPECT_EQ(trace.tokens.back().sequence, 1);
  int n_compared = 0;
  for (int layer = 0; layer < trace.n_layers; ++layer) {
    const std::string name = absl::StrCat("layers.", layer, ".router.topk_ids");
    if (file.Find(name) == nullptr) continue;
    ASSERT_OK_AND_ASSIGN(const TraceLayer want,
                         ReadTraceLayer(file, name, trace.n_experts, trace.top_k));
    const auto& got = trace.ids[static_cast<size_t>(layer)];
    ASSERT_EQ(got.size(), trace.tokens.size() * static_cast<size_t>(trace.top_k));
    EXPECT_TRUE(std::equal(want.ids.begin(), want.ids.end(), got.begin())) << layer;
    ++n_compared;
  }
  EXPECT_GT(n_compared, 2);
  ASSERT_OK(WriteTrace(trace, file_));
  EXPECT_OK(ReadTrace(file_));
}

TEST_F(TraceTest, EarlyRouterIsTheNextLayersOnThisLayersOutput) {
  const std::filesystem::path folder =
      std::filesystem::path(hearth::testing::SourceDir()) / "tests/golden/tiny-a";
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, Checkpoint::Open(folder));
  const ModelConfig& config = checkpoint->config();
  ASSERT_OK_AND_ASSIGN(const auto early, EarlyRouter::Read(*checkpoint));
  EXPECT_FALSE(early->HasLayer(0));
  EXPECT_FALSE(early->HasLayer(config.n_layers));
  ASSERT_TRUE(early->HasLayer(2));
  ASSERT_OK_AND_ASSIGN(const auto norm,
                       checkpoint->Vector("model.layers.2.post_attention_layernorm.weight"));
  ASSERT_OK_AND_ASSIGN(const OwnedLinear router, checkpoint->Linear("model.layers.2.mlp.gate"));
  CheckpointExperts experts(checkpoint.get());
  ASSERT_OK_AND_ASSIGN(const auto engine, Engine::Create(*checkpoint, &experts, {}));
  const auto width = static_cast<size_t>(config.hidden_size);
  RoutingRecorder recorder(engine.get(), "tiny-a", "", early.get());
  const std::vector<int32_t> prompt = {5, 17, 3, 44, 9};
  ASSERT_OK(recorder.Run(prompt, {.max_tokens = 0, .max_batch_tokens = 3, .eos_ids = {}}));
  const auto recorded = recorder.trace().early_ids[2];
  ASSERT_EQ(recorded.size(), prompt.size() * static_cast<size_t>(config.experts_per_token));
  // The same from the formula: the router's logits of the normed output of layer 1.
  std::vector<float> hidden;
  engine->SetObserver([&](std::string_view name, int rows, int columns, const float* values) {
    if (name == "layers.1.hidden")
      hidden.insert(hidden.end(), values, values + int64_t{rows} * columns);
  });
  const auto state = engine->NewSequence();
  StepLogits logits;
  const StepItem item{state.get(), prompt};
  ASSERT_OK(engine->Step({&item, 1}, &logits));
  std::vector<float> row(width);
  for (size_t t = 0; t < prompt.size(); ++t) {
    double squares = 0;
    for (size_t i = 0; i < width; ++i) squares += std::pow(double{hidden[t * width + i]}, 2);
    const double root = std::sqrt(squares / static_cast<double>(width) + config.rms_norm_eps);
    std::vector<std::pair<double, int32_t>> all;
    for (int32_t e = 0; e < config.n_experts; ++e) {
      DequantizeRow(router.ref, e, row);
      double logit = 0;
      for (size_t i = 0; i < width; ++i) {
        logit += double{hidden[t * width + i]} / root * (1.0 + norm[i]) * row[i];
      }
      all.push_back({-logit, e});
    }
    std::ranges::sort(all);
    for (size_t k = 0; k < static_cast<size_t>(config.experts_per_token); ++k) {
      EXPECT_EQ(recorded[t * static_cast<size_t>(config.experts_per_token) + k], all[k].second)
          << t << " " << k;
    }
  }
}

}  // namespace
}  // namespace hearth::worker
