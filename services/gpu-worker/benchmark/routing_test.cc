#include "services/gpu-worker/benchmark/routing.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "common/base/file.h"
#include "common/checkpoint/safetensors.h"
#include "common/checkpoint/safetensors_bytes.h"
#include "common/synthetic/synthetic_checkpoint.h"
#include "common/testing/source_dir.h"
#include "common/testing/status_matchers.h"

namespace hearth::worker {
namespace {

using ::hearth::testing::IsStatus;
using ::testing::HasSubstr;

ModelConfig LargeShape(int n_layers = 4) {
  return (*OpenModel(absl::StrCat("synthetic:qwen3-next-80b,layers=", n_layers), 1))->config();
}

std::vector<int32_t> Impose(RoutingOverride& routing, int layer, int n_rows, int top_k) {
  std::vector<int32_t> ids(static_cast<size_t>(n_rows * top_k), -1);
  const RoutingOverride::Rows item{0, n_rows, 0};
  routing.Impose(layer, {&item, 1}, top_k, ids);
  return ids;
}

TEST(LocalRouting, AnLruOfAQuarterOfTheExpertsHitsAboutFourFifths) {
  const ModelConfig config = LargeShape();
  for (const uint64_t seed : {1, 2, 3}) {
    for (const int layer : {0, 3}) {
      const auto routing = MakeLocalRouting(config, DefaultWorkingSet(config), seed);
      EXPECT_NEAR(LruHitRate(*routing, layer, 10, 128, 4000), 0.8, 0.02);
    }
  }
}

TEST(LocalRouting, ALargerWorkingSetHitsLessAndAllExpertsAreFlat) {
  const ModelConfig config = LargeShape();
  const auto rate = [&config](int working_set) {
    return LruHitRate(*MakeLocalRouting(config, working_set, 1), 0, 10, 128, 4000);
  };
  EXPECT_GT(rate(80), rate(160) + 0.05);
  EXPECT_NEAR(rate(512), 0.24, 0.02);  // 118 of the 128 slots are not the token's own: 10 of 512
}

TEST(LocalRouting, EveryTokenGetsDifferentExperts) {
  const ModelConfig config = LargeShape();
  for (const int working_set : {20, 80, 512}) {
    const auto routing = MakeLocalRouting(config, working_set, 1);
    const auto ids = Impose(*routing, 1, 300, 10);
    std::set<int32_t> all;
    for (size_t row = 0; row < ids.size(); row += 10) {
      const std::set<int32_t> token(ids.begin() + row, ids.begin() + row + 10);
      EXPECT_EQ(token.size(), 10U);
      EXPECT_GE(*token.begin(), 0);
      EXPECT_LT(*token.rbegin(), 512);
      all.insert(token.begin(), token.end());
    }
    EXPECT_GT(all.size(), 150U);
  }
}

TEST(LocalRouting, SharedMeansOneWorkingSetForAllSequences) {
  const ModelConfig config = LargeShape();
  const auto experts_of_second = [&](bool is_shared) {
    // How many of the second sequence's experts the first one's set of 20 has, over some tokens.
    const auto routing = MakeLocalRouting(config, 20, 1, is_shared);
    std::set<int32_t> first, second;
    for (int token = 0; token < 20; ++token) {
      const std::array<RoutingOverride::Rows, 2> items = {{{0, 1, token}, {1, 2, token}}};
      std::vector<int32_t> ids(20);
      routing->Impose(0, items, 10, ids);
      first.insert(ids.begin(), ids.begin() + 10);
      second.insert(ids.begin() + 10, ids.end());
    }
    return std::ranges::count_if(second, [&](int32_t id) { return first.contains(id); });
  };
  EXPECT_GE(experts_of_second(true), 20);
  EXPECT_LT(experts_of_second(false), 20);
}

TEST(LocalRouting, ASharedSetChangesAsFastForEightSequencesAsForOne) {
  const ModelConfig config = LargeShape();
  // Experts that are chosen often in the last of 200 steps, and were in the first.
  const auto kept = [&](int n_sequences) {
    const auto routing = MakeLocalRouting(config, 20, 1, true);
    std::map<int32_t, int> early, late;
    for (int step = 0; step < 200; ++step) {
      std::vector<RoutingOverride::Rows> items;
      for (int i = 0; i < n_sequences; ++i) items.push_back({i, i + 1, step});
      std::vector<int32_t> ids(static_cast<size_t>(n_sequences) * 10);
      routing->Impose(0, items, 10, ids);
      auto& counts = step < 10 ? early : late;
      if (step < 10 || step >= 190) {
        for (const int32_t id : std::span(ids).first(10)) ++counts[id];
      }
    }
    return std::ranges::count_if(
        late, [&](const auto& use) { return use.second >= 3 && early[use.first] >= 3; });
  };
  // Some 20 replacements leave a third of 20 members; 160 leave nobody.
  EXPECT_GE(kept(1), 3);
  EXPECT_GE(kept(8), 3);
}

TEST(LocalRouting, SeedLayerAndSequenceDecide) {
  const ModelConfig config = LargeShape();
  const auto first = Impose(*MakeLocalRouting(config, 80, 1), 1, 5, 10);
  EXPECT_EQ(Impose(*MakeLocalRouting(config, 80, 1), 1, 5, 10), first);
  EXPECT_NE(Impose(*MakeLocalRouting(config, 80, 2), 1, 5, 10), first);
  EXPECT_NE(Impose(*MakeLocalRouting(config, 80, 1), 2, 5, 10), first);
  const auto both = MakeLocalRouting(config, 80, 1);
  std::vector<int32_t> ids(100);
  const RoutingOverride::Rows items[] = {{0, 5, 0}, {5, 10, 0}};
  both->Impose(1, items, 10, ids);
  EXPECT_TRUE(std::equal(first.begin(), first.end(), ids.begin()));
  EXPECT_FALSE(std::equal(first.begin(), first.end(), ids.begin() + 50));
}

TEST(MakeRouting, TextsAreReadOrRefused) {
  const ModelConfig config = LargeShape();
  ASSERT_OK_AND_ASSIGN(const auto flat, MakeRouting("flat", config, 1));
  EXPECT_EQ(flat.routing, nullptr);
  ASSERT_OK_AND_ASSIGN(const auto local, MakeRouting("locality:100", config, 1));
  EXPECT_NE(local.routing, nullptr);
  EXPECT_THAT(local.description, HasSubstr("working set of 100 of 512"));
  EXPECT_THAT(local.description, HasSubstr("LRU of 128 slots"));
  EXPECT_OK(MakeRouting("locality", config, 1));
  for (const char* text : {"", "hot", "flat:1", "trace", "trace:", "locality:"}) {
    EXPECT_THAT(MakeRouting(text, config, 1),
                IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("allowed are flat")))
        << text;
  }
  for (const char* text : {"locality:19", "locality:513", "locality:x", "locality:-1"}) {
    EXPECT_THAT(MakeRouting(text, config, 1),
                IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("must be 20 to 512")))
        << text;
  }
  EXPECT_FALSE(MakeRouting("trace:/nowhere", config, 1).ok());
}

TEST(Trace, AReferencesRoutingIsReplayedByPosition) {
  const std::filesystem::path folder =
      std::filesystem::path(hearth::testing::SourceDir()) / "tests/golden/tiny-a";
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, Checkpoint::Open(folder));
  ASSERT_OK_AND_ASSIGN(const auto routing,
                       LoadTrace(folder / "reference.safetensors", checkpoint->config()));
  ASSERT_OK_AND_ASSIGN(const auto file, SafetensorsFile::Open(folder / "reference.safetensors"));
  const TensorView* tensor = file.Find("layers.2.router.topk_ids");
  ASSERT_NE(tensor, nullptr);
  const std::vector<int64_t> want = *ToIntegers(*tensor);
  const int top_k = static_cast<int>(tensor->shape[1]);
  const auto n_tokens = static_cast<int64_t>(tensor->shape[0]);
  std::vector<int32_t> ids(static_cast<size_t>(3 * top_k));
  // The last row, the first again, and a second item far from it.
  const RoutingOverride::Rows items[] = {{0, 2, n_tokens - 1}, {2, 3, 0}};
  routing->Impose(2, items, top_k, ids);
  for (int k = 0; k < top_k; ++k) {
    EXPECT_EQ(ids[k], want[(n_tokens - 1) * top_k + k]);
    EXPECT_EQ(ids[top_k + k], want[k]);
    EXPECT_EQ(ids[2 * top_k + k], want[997 % n_tokens * top_k + k]);
  }
}

TEST(Trace, WhatDoesNotFitTheModelIsRefused) {
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenModel("synthetic:tiny,layers=1", 1));
  const std::string path = absl::StrCat("/tmp/hearth-trace-", ::getpid(), ".safetensors");
  const auto load = [&](const char* name, std::vector<uint64_t> shape, std::vector<float> ids) {
    const std::string bytes(reinterpret_cast<const char*>(ids.data()), 4 * ids.size());
    const RawTensor tensor{name, Dtype::kF32, std::move(shape), bytes};
    EXPECT_OK(WriteFileAtomically(path, SafetensorsBytes({&tensor, 1})));
    const auto loaded = LoadTrace(path, checkpoint->config());
    std::filesystem::remove(path);
    return loaded.status();
  };
  const char* name = "layers.0.router.topk_ids";
  EXPECT_OK(load(name, {2, 2}, {0, 7, 3, 1}));
  EXPECT_THAT(load("layers.1.router.topk_ids", {1, 2}, {0, 1}),
              IsStatus(absl::StatusCode::kNotFound, HasSubstr("topk_ids is missing")));
  EXPECT_THAT(load(name, {1, 3}, {0, 1, 2}),
              IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("must be [tokens, 2]")));
  for (const std::vector<float>& ids :
       {std::vector<float>{0, 1, 0, 8}, {0, 1, 2, 2}, {0, 1, -1, 2}, {0, 1, 0.5F, 2}}) {
    EXPECT_THAT(load(name, {2, 2}, ids),
                IsStatus(absl::StatusCode::kInvalidArgument,
                         HasSubstr("token 1 does not choose 2 different experts below 8")));
  }
}

}  // namespace
}  // namespace hearth::worker
