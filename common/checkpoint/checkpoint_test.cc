// Synthetic checkpoints of every style and storage: what was written is what is read.
#include "common/checkpoint/checkpoint.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/file.h"
#include "common/checkpoint/testing/checkpoint_writer.h"
#include "common/testing/compare.h"
#include "common/testing/status_matchers.h"

namespace hearth::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class CheckpointTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = std::filesystem::temp_directory_path() /
              absl::StrCat("hearth-checkpoint-", ::getpid(), "-", info->name());
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::unique_ptr<Checkpoint> WriteAndOpen(const CheckpointOptions& options) {
    EXPECT_OK(WriteCheckpoint(options, folder_));
    auto opened = Checkpoint::Open(folder_);
    EXPECT_TRUE(opened.ok()) << opened.status();
    return opened.ok() ? *std::move(opened) : nullptr;
  }

  std::filesystem::path folder_;
};

std::vector<float> AllRows(const LinearRef& ref) {
  std::vector<float> values(static_cast<size_t>(ref.out * ref.in));
  for (int64_t row = 0; row < ref.out; ++row) {
    DequantizeRow(ref, row, std::span(values).subspan(row * ref.in, ref.in));
  }
  return values;
}

const char* const kExpert = "model.layers.2.mlp.experts.5.";

// The same seed gives the same weights whatever stores them, so f32 is the truth that the others
// are held against.
TEST_F(CheckpointTest, EveryStorageReadsBackTheValuesWritten) {
  const auto exact = WriteAndOpen({.experts = Storage::kF32, .linears = Storage::kF32});
  ASSERT_NE(exact, nullptr);
  EXPECT_EQ(exact->quantization(), "none");
  struct Case {
    Storage storage;
    bool double_quantization;
    int block_size;
    double tolerance;  // of the largest weight: half the widest gap between levels, and the scale's
                       // own rounding
  };
  for (const Case& c :
       {Case{Storage::kBF16, true, 64, 0.004}, Case{Storage::kF16, true, 64, 0.0005},
        Case{Storage::kNf4, true, 64, 0.16}, Case{Storage::kNf4, false, 32, 0.153},
        Case{Storage::kFp4, true, 128, 0.18}, Case{Storage::kFp4, false, 64, 0.17}}) {
    const auto other = WriteAndOpen(
        {.experts = c.storage,
         .linears = c.storage,
         .block4 = {.block_size = c.block_size, .double_quantization = c.double_quantization}});
    ASSERT_NE(other, nullptr);
    for (const std::string& module :
         {std::string(kExpert) + "up_proj", std::string("model.layers.3.self_attn.q_proj")}) {
      ASSERT_OK_AND_ASSIGN(const OwnedLinear want, exact->Linear(module));
      ASSERT_OK_AND_ASSIGN(const OwnedLinear got, other->Linear(module));
      const std::vector<float> values = AllRows(want.ref);
      float largest = 0;
      for (const float value : values) largest = std::max(largest, std::abs(value));
      EXPECT_TRUE(AllClose(AllRows(got.ref), values, {.abs = c.tolerance * largest})) << module;
    }
  }
}

TEST_F(CheckpointTest, FusedExpertsAreTheSameSlices) {
  for (const Storage storage : {Storage::kBF16, Storage::kNf4}) {
    for (const bool suffix : {false, true}) {
      std::filesystem::remove_all(folder_);
      CheckpointOptions options{
          .experts = storage, .fused_experts = true, .fused_weight_suffix = suffix};
      const auto checkpoint = WriteAndOpen(options);
      ASSERT_NE(checkpoint, nullptr);
      EXPECT_THAT(checkpoint->unknown_tensors(), IsEmpty());
      // Against the stored tensor itself, read as one tall matrix.
      ASSERT_OK_AND_ASSIGN(const auto file, SafetensorsFile::Open(folder_ / "model.safetensors"));
      const char* ending = suffix ? ".weight" : "";
      const TensorView* whole =
          file.Find(absl::StrCat("model.layers.2.mlp.experts.gate_up_proj", ending));
      ASSERT_NE(whole, nullptr);
      ASSERT_OK_AND_ASSIGN(const OwnedLinear gate,
                           checkpoint->Linear(std::string(kExpert) + "gate_proj"));
      ASSERT_OK_AND_ASSIGN(const OwnedLinear up,
                           checkpoint->Linear(std::string(kExpert) + "up_proj"));
      const uint64_t size = 32 * 64;
      const uint64_t bytes = storage == Storage::kNf4 ? size / 2 : size * 2;
      EXPECT_EQ(std::memcmp(gate.ref.data, whole->bytes.data() + 10 * bytes, bytes), 0);
      EXPECT_EQ(std::memcmp(up.ref.data, whole->bytes.data() + 11 * bytes, bytes), 0);
      if (storage == Storage::kNf4) {
        ASSERT_EQ(up.absmax.size(), size / 64);
        EXPECT_NE(up.absmax, gate.absmax);
      }
    }
  }
}

TEST_F(CheckpointTest, ShapesAreThoseOfTheLinears) {
  for (const Storage storage : {Storage::kBF16, Storage::kNf4}) {
    std::filesystem::remove_all(folder_);
    const auto checkpoint = WriteAndOpen({.experts = storage});
    ASSERT_NE(checkpoint, nullptr);
    for (const char* name : {"gate_proj", "down_proj"}) {
      ASSERT_OK_AND_ASSIGN(const LinearRef shape,
                           checkpoint->LinearShape(std::string(kExpert) + name));
      ASSERT_OK_AND_ASSIGN(const OwnedLinear linear,
                           checkpoint->Linear(std::string(kExpert) + name));
      EXPECT_EQ(shape.kind, linear.ref.kind);
      EXPECT_EQ(shape.out, linear.ref.out);
      EXPECT_EQ(shape.in, linear.ref.in);
      EXPECT_EQ(shape.block_size, linear.ref.block_size);
      EXPECT_EQ(shape.levels, linear.ref.levels);
      EXPECT_EQ(shape.data, nullptr);
      EXPECT_EQ(shape.absmax, nullptr);
    }
  }
  EXPECT_THAT(WriteAndOpen({})->LinearShape("model.none"),
              IsStatus(absl::StatusCode::kNotFound, HasSubstr("no linear model.none")));
}

TEST_F(CheckpointTest, FoldersThatAreNoCheckpointAreRefusedWithWhatToGive) {
  const auto refused = [](const std::filesystem::path& folder, const std::string& message) {
    EXPECT_THAT(Checkpoint::Open(folder),
                IsStatus(absl::StatusCode::kNotFound,
                         HasSubstr(absl::StrCat(folder.string(), ": ", message))));
  };
  refused(folder_ / "none", "there is no such folder; give the folder of a checkpoint");
  refused(folder_, "has no config.json; give the folder of a checkpoint");
  std::ofstream(folder_ / "file") << "text";
  refused(folder_ / "file", "is not a folder; give the folder of a checkpoint");
}

TEST_F(CheckpointTest, FusedSlicesInsideABlockAreRefused) {
  // 31 * 48 elements an expert matrix: no multiple of 64.
  ASSERT_OK(WriteCheckpoint(
      {.hidden_size = 48, .expert_intermediate_size = 31, .fused_experts = true}, folder_));
  EXPECT_THAT(Checkpoint::Open(folder_),
              IsStatus(absl::StatusCode::kDataLoss, HasSubstr("block of 64")));
}

TEST_F(CheckpointTest, RowsThatStraddleBlocksAreReadEverywhere) {
  const auto checkpoint = WriteAndOpen({.hidden_size = 54, .expert_intermediate_size = 31});
  ASSERT_NE(checkpoint, nullptr);
  ASSERT_OK_AND_ASSIGN(const OwnedLinear down,
                       checkpoint->Linear(std::string(kExpert) + "down_proj"));
  EXPECT_EQ(down.absmax.size(), 27u);  // ceil(54 * 31 / 64)
  for (const float value : AllRows(down.ref)) EXPECT_TRUE(std::isfinite(value));
}

TEST_F(CheckpointTest, ShardedTiedYarnPlainAndMtpOpenWithNothingUnknown) {
  const auto checkpoint = WriteAndOpen(
      {.layer_types = {"full_attention", "linear_attention", "linear_attention", "full_attention"},
       .mlp_only_layers = {1},
       .norm_topk_prob = false,
       .tie_word_embeddings = true,
       .mtp = true,
       .yarn = true,
       .newer_config = true,
       .linears = Storage::kFp4,
       .n_shards = 3});
  ASSERT_NE(checkpoint, nullptr);
  EXPECT_THAT(checkpoint->unknown_tensors(), IsEmpty());
  EXPECT_TRUE(checkpoint->has_mtp());
  EXPECT_TRUE(checkpoint->Has("mtp.layers.0.mlp.experts.7.gate_proj"));
  EXPECT_TRUE(checkpoint->Has("model.layers.1.mlp.up_proj"));
  EXPECT_FALSE(checkpoint->Has("model.layers.1.mlp.experts.0.up_proj"));
  EXPECT_EQ(checkpoint->config().rope.factor, 4);
  ASSERT_OK_AND_ASSIGN(const OwnedLinear head, checkpoint->Linear("lm_head"));
  ASSERT_OK_AND_ASSIGN(const OwnedLinear embedding, checkpoint->Linear("model.embed_tokens"));
  EXPECT_EQ(head.ref.data, embedding.ref.data);
}

TEST_F(CheckpointTest, HeadThatIsNotWholeIsListedAndNotUsed) {
  CheckpointOptions options{.mtp = true};
  std::vector<RawTensor> tensors = CheckpointTensors(options);
  std::erase_if(tensors, [](const RawTensor& t) { return t.name == "mtp.norm.weight"; });
  ASSERT_OK(WriteCheckpoint(ConfigJson(options), tensors, 1, folder_));
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, Checkpoint::Open(folder_));
  EXPECT_FALSE(checkpoint->has_mtp());
  EXPECT_FALSE(checkpoint->Has("mtp.fc"));
  EXPECT_THAT(checkpoint->unknown_tensors(), ::testing::Contains("mtp.fc.weight"));
}

TEST_F(CheckpointTest, MissingTensorsAreNamedAndCounted) {
  CheckpointOptions options;
  std::vector<RawTensor> tensors = CheckpointTensors(options);
  std::erase_if(tensors, [](const RawTensor& t) {
    return t.name.find("experts.3.up_proj.weight") != std::string::npos ||
           t.name == "model.norm.weight";
  });
  tensors.push_back({"model.extra", Dtype::kI8, {3}, "abc"});
  ASSERT_OK(WriteCheckpoint(ConfigJson(options), tensors, 1, folder_));
  EXPECT_THAT(
      Checkpoint::Open(folder_),
      IsStatus(absl::StatusCode::kNotFound,
               ::testing::AllOf(HasSubstr("5 tensors are missing"), HasSubstr("model.norm.weight"),
                                HasSubstr("model.layers.0.mlp.experts.3.up_proj.weight"))));
}

TEST_F(CheckpointTest, UnknownTensorsAreListedSorted) {
  CheckpointOptions options;
  std::vector<RawTensor> tensors = CheckpointTensors(options);
  tensors.push_back({"zeta", Dtype::kI8, {3}, "abc"});
  tensors.push_back({"alpha", Dtype::kI64, {0}, ""});
  ASSERT_OK(WriteCheckpoint(ConfigJson(options), tensors, 1, folder_));
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, Checkpoint::Open(folder_));
  EXPECT_THAT(checkpoint->unknown_tensors(), ElementsAre("alpha", "zeta"));
}

TEST_F(CheckpointTest, MisalignedDataIsCopiedToWhereItsTypeMayLie) {
  CheckpointOptions options{.experts = Storage::kBF16, .linears = Storage::kBF16};
  std::vector<RawTensor> tensors = CheckpointTensors(options);
  tensors.insert(tensors.begin(), {"odd", Dtype::kU8, {1}, "x"});
  ASSERT_OK(WriteCheckpoint(ConfigJson(options), tensors, 1, folder_));
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, Checkpoint::Open(folder_));
  ASSERT_OK_AND_ASSIGN(const OwnedLinear head, checkpoint->Linear("lm_head"));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(head.ref.data) % 2, 0u);
  EXPECT_FALSE(head.aligned.empty());
}

TEST_F(CheckpointTest, FingerprintStaysWithACopyAndChangesWithTheWeights) {
  const auto first = WriteAndOpen({.seed = 1, .n_shards = 2});
  ASSERT_NE(first, nullptr);
  const std::string fingerprint = first->ExpertFingerprint();
  const auto copy = folder_.string() + "-copy";
  std::filesystem::copy(folder_, copy);
  ASSERT_OK_AND_ASSIGN(const auto again, Checkpoint::Open(copy));
  std::filesystem::remove_all(copy);
  EXPECT_EQ(again->ExpertFingerprint(), fingerprint);
  const auto other = WriteAndOpen({.seed = 2, .n_shards = 2});
  ASSERT_NE(other, nullptr);
  EXPECT_NE(other->ExpertFingerprint(), fingerprint);
}

TEST_F(CheckpointTest, BlocksOfZerosSurviveDoubleQuantization) {
  CheckpointOptions options;
  std::vector<RawTensor> tensors = CheckpointTensors(options);
  const std::string name = std::string(kExpert) + "up_proj.weight";
  std::erase_if(tensors, [&](const RawTensor& t) { return t.name.starts_with(name); });
  std::vector<float> values(32 * 64, 0.5f);
  std::fill(values.begin(), values.begin() + 320, 0.f);
  values[1000] = 3.f;
  AddTensor(name, {32, 64}, values, Storage::kNf4, {}, tensors);
  ASSERT_OK(WriteCheckpoint(ConfigJson(options), tensors, 1, folder_));
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, Checkpoint::Open(folder_));
  ASSERT_OK_AND_ASSIGN(const OwnedLinear up, checkpoint->Linear(std::string(kExpert) + "up_proj"));
  EXPECT_NEAR(up.absmax[0], 0, 0.04);
}

}  // namespace
}  // namespace hearth::testing
