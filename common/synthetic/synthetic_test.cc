#include <sys/resource.h>

#include <cmath>
#include <csignal>
#include <cstring>
#include <set>

#include "common/base/file.h"
#include "common/checkpoint/checkpoint.h"
#include "common/checkpoint/model_tensors.h"
#include "common/experts/testing.h"
#include "common/synthetic/byte_tokenizer.h"
#include "common/synthetic/make_model.h"
#include "common/synthetic/random.h"
#include "common/synthetic/synthetic_checkpoint.h"
#include "common/synthetic/tensors.h"
#include "common/testing/status_matchers.h"
#include "common/text/chat_template.h"
#include "common/text/tokenizer.h"
#include "services/expert-store/loading/loader.h"
#include "services/gpu-worker/engine/engine.h"
#include "services/gpu-worker/engine/expert_sources.h"

namespace hearth {
namespace {

using ::hearth::testing::IsStatus;
using ::hearth::testing::TempFolder;
using ::testing::AllOf;
using ::testing::HasSubstr;

SyntheticSpec Spec(const std::string& shape, int layers, uint64_t seed = 1) {
  return *MakeSyntheticSpec(shape, layers, seed);
}

TEST(SyntheticSpec, NamesGiveShapeLayersAndSeed) {
  ASSERT_OK_AND_ASSIGN(const SyntheticSpec spec,
                       ParseSyntheticName("synthetic:qwen3-next-80b,layers=4,seed=7"));
  EXPECT_EQ(spec.shape, "qwen3-next-80b");
  EXPECT_EQ(spec.n_layers, 4);
  EXPECT_EQ(spec.seed, 7U);
  EXPECT_EQ(SyntheticName(spec), "synthetic:qwen3-next-80b,layers=4,seed=7");
  ASSERT_OK_AND_ASSIGN(const SyntheticSpec whole, ParseSyntheticName("synthetic:qwen3-next-80b"));
  EXPECT_EQ(whole.n_layers, 48);
  EXPECT_EQ(whole.seed, 1U);
}

TEST(SyntheticSpec, WhatCannotBeMadeIsRefusedWithTheChoices) {
  const auto refused = [](const char* name, const char* says) {
    EXPECT_THAT(ParseSyntheticName(name),
                IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr(says)))
        << name;
  };
  refused("synthetic:qwen4", "one of qwen3-next-80b, demo, small, tiny");
  refused("synthetic:", "unknown shape ''");
  refused("synthetic:tiny,layers=49", "49 layers: allowed are 1 to 48");
  refused("synthetic:tiny,layers=-1", "-1 layers: allowed are 1 to 48");
  refused("synthetic:tiny,layers=0", "'layers=0'");
  refused("synthetic:tiny,layers=2x", "'layers=2x'");
  refused("synthetic:tiny,seed=-1", "'seed=-1'");
  refused("synthetic:tiny,speed=1", "allowed are layers=1 to 48, seed=NUMBER and mtp=0 or 1");
  refused("synthetic:tiny,mtp=2", "'mtp=2'");
  refused("models/demo", "is not synthetic:");
  EXPECT_FALSE(IsSyntheticName("models/synthetic:tiny"));
}

TEST(SyntheticSpec, TheLargeShapeIsThePublishedOne) {
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenSynthetic(Spec("qwen3-next-80b", 4), 1));
  const ModelConfig& c = checkpoint->config();
  EXPECT_EQ(c.hidden_size, 2048);
  EXPECT_EQ(c.n_experts, 512);
  EXPECT_EQ(c.experts_per_token, 10);
  EXPECT_EQ(c.vocab_size, 151936);
  EXPECT_EQ(c.conv_channels(), 8192);
  EXPECT_EQ(c.layers[3].mixer, MixerKind::kFullAttention);
  EXPECT_EQ(c.layers[2].mixer, MixerKind::kDeltaNet);
  // 4 layers of 512 experts of 1.55 MiB, and twice 622 MB of embedding and head.
  EXPECT_NEAR(static_cast<double>(checkpoint->total_bytes()), 4.7e9, 0.1e9);
}

TEST(SyntheticRandom, AnyPartIsTheSameAsThatPartOfTheWhole) {
  std::vector<std::byte> whole(4096 + 5), part(100);
  FillRandomBytes(StreamOf(1, "a"), 0, whole);
  FillRandomBytes(StreamOf(1, "a"), 1600, part);
  EXPECT_EQ(std::memcmp(whole.data() + 1600, part.data(), part.size()), 0);
  FillRandomBytes(StreamOf(2, "a"), 1600, part);
  EXPECT_NE(std::memcmp(whole.data() + 1600, part.data(), part.size()), 0);
  std::vector<uint16_t> values(1000), some(10);
  FillNormalBf16(StreamOf(1, "b"), 0, 0, 1, std::as_writable_bytes(std::span(values)));
  FillNormalBf16(StreamOf(1, "b"), 500, 0, 1, std::as_writable_bytes(std::span(some)));
  EXPECT_EQ(std::memcmp(values.data() + 500, some.data(), 20), 0);
}

TEST(SyntheticRandom, WordsOfAStreamDiffer) {
  std::set<uint64_t> words;
  for (uint64_t i = 0; i < 10'000; ++i) words.insert(RandomWord(StreamOf(1, "a"), i));
  EXPECT_EQ(words.size(), 10'000U);
}

TEST(SyntheticRandom, ValuesHaveTheMomentsThatWereAskedFor) {
  std::vector<uint16_t> values(1 << 20);
  FillNormalBf16(StreamOf(3, "moments"), 0, 1.F, 0.5F, std::as_writable_bytes(std::span(values)));
  double sum = 0, squares = 0;
  for (const uint16_t value : values) {
    const double x = BF16ToF32(value);
    sum += x;
    squares += x * x;
  }
  const double n = static_cast<double>(values.size()), mean = sum / n;
  EXPECT_NEAR(mean, 1, 0.005);
  EXPECT_NEAR(std::sqrt(squares / n - mean * mean), 0.5, 0.005);
  std::vector<std::byte> bytes(1 << 20);
  std::vector<int> counts(256);
  FillRandomBytes(StreamOf(3, "bytes"), 0, bytes);
  for (const std::byte b : bytes) ++counts[static_cast<size_t>(b)];
  for (const int count : counts) EXPECT_NEAR(count, 4096, 6 * 64);  // six deviations
}

// Weights of a 4-bit linear of width `in` have the deviation 1 / sqrt(in).
TEST(SyntheticTensors, QuantisedWeightsHaveTheirWidthsDeviation) {
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenSynthetic(Spec("demo", 1), 1));
  ASSERT_OK_AND_ASSIGN(const OwnedLinear linear,
                       checkpoint->Linear("model.layers.0.linear_attn.in_proj_qkvz"));
  ASSERT_EQ(linear.ref.kind, WeightKind::kBlock4);
  std::vector<float> row(static_cast<size_t>(linear.ref.in));
  double squares = 0;
  for (int64_t r = 0; r < linear.ref.out; ++r) {
    DequantizeRow(linear.ref, r, row);
    for (const float w : row) squares += static_cast<double>(w) * w;
  }
  const double n = static_cast<double>(linear.ref.out * linear.ref.in);
  EXPECT_NEAR(std::sqrt(squares / n) * std::sqrt(256.0), 1, 0.05);
}

void ExpectSame(const OwnedLinear& a, const OwnedLinear& b, const std::string& module) {
  ASSERT_EQ(a.ref.kind, b.ref.kind) << module;
  ASSERT_EQ(a.ref.out, b.ref.out) << module;
  ASSERT_EQ(a.ref.in, b.ref.in) << module;
  EXPECT_EQ(std::memcmp(a.ref.data, b.ref.data, BytesOf(a.ref).data), 0) << module;
  EXPECT_EQ(a.absmax, b.absmax) << module;
  if (a.ref.kind != WeightKind::kBlock4) return;
  EXPECT_EQ(a.ref.levels, b.ref.levels) << module;
  EXPECT_EQ(a.ref.block_size, b.ref.block_size) << module;
}

TEST(MakeModel, FilesAndMemoryHoldTheSameBytes) {
  const TempFolder folder;
  const SyntheticSpec spec = Spec("tiny", 4, 5);
  ASSERT_OK(
      MakeModel(spec, {.folder = folder / "model", .n_threads = 3, .max_shard_bytes = 150'000}));
  ASSERT_OK_AND_ASSIGN(const auto files, OpenModel(folder / "model", 1));
  ASSERT_OK_AND_ASSIGN(const auto memory, OpenModel("synthetic:tiny,layers=4,seed=5", 2));
  EXPECT_TRUE(std::filesystem::exists(folder / "model" / "model-00002-of-00004.safetensors"));
  EXPECT_TRUE(files->unknown_tensors().empty());
  EXPECT_EQ(files->quantization(), "nf4");
  EXPECT_EQ(files->total_bytes(), memory->total_bytes());
  const ModelTensors tensors = ListModelTensors(files->config());
  std::vector<LinearSpec> linears = tensors.linears;
  for (const std::string& experts : tensors.experts) {
    for (LinearSpec& linear : ExpertLinears(files->config(), experts)) linears.push_back(linear);
  }
  ASSERT_EQ(linears.size(), 35U + 96);  // all that are not experts, and 4 layers of 8 experts
  for (const LinearSpec& linear : linears) {
    ASSERT_OK_AND_ASSIGN(const OwnedLinear a, files->Linear(linear.module));
    ASSERT_OK_AND_ASSIGN(const OwnedLinear b, memory->Linear(linear.module));
    ExpectSame(a, b, linear.module);
    ASSERT_OK_AND_ASSIGN(const LinearRef shape, memory->LinearShape(linear.module));
    EXPECT_EQ(shape.data, nullptr);
    EXPECT_EQ(shape.kind, a.ref.kind);
    EXPECT_EQ(shape.out, a.ref.out);
  }
  for (const VectorSpec& vector : tensors.vectors) {
    EXPECT_EQ(files->Vector(vector.name).value(), memory->Vector(vector.name).value());
  }
}

TEST(MakeModel, AnMtpHeadIsThereWhereItWasAskedFor) {
  const TempFolder folder;
  ASSERT_OK_AND_ASSIGN(const SyntheticSpec spec,
                       ParseSyntheticName("synthetic:tiny,layers=2,mtp=1"));
  EXPECT_EQ(SyntheticName(spec), "synthetic:tiny,layers=2,seed=1,mtp=1");
  ASSERT_OK(MakeModel(spec, {.folder = folder / "model", .n_threads = 2}));
  ASSERT_OK_AND_ASSIGN(const auto files, OpenModel(folder / "model", 1));
  ASSERT_OK_AND_ASSIGN(const auto memory, OpenSynthetic(spec, 1));
  EXPECT_TRUE(files->has_mtp() && memory->has_mtp());
  EXPECT_TRUE(files->unknown_tensors().empty());
  EXPECT_EQ(files->total_bytes(), memory->total_bytes());
  for (const char* module : {"mtp.fc", "mtp.layers.0.mlp.experts.7.down_proj"}) {
    ASSERT_OK_AND_ASSIGN(const OwnedLinear a, files->Linear(module));
    ASSERT_OK_AND_ASSIGN(const OwnedLinear b, memory->Linear(module));
    ExpectSame(a, b, module);
    EXPECT_EQ(a.ref.kind, WeightKind::kBlock4);
  }
  EXPECT_EQ(files->Vector("mtp.norm.weight").value(), memory->Vector("mtp.norm.weight").value());
  // The model itself is the one without.
  ASSERT_OK_AND_ASSIGN(const auto without, OpenModel("synthetic:tiny,layers=2,mtp=0", 1));
  EXPECT_FALSE(without->has_mtp());
  ASSERT_OK_AND_ASSIGN(const OwnedLinear a,
                       without->Linear("model.layers.1.mlp.experts.0.up_proj"));
  ASSERT_OK_AND_ASSIGN(const OwnedLinear b, memory->Linear("model.layers.1.mlp.experts.0.up_proj"));
  ExpectSame(a, b, "model.layers.1.mlp.experts.0.up_proj");
}

TEST(MakeModel, AnotherSeedGivesOtherWeightsAndAnotherFingerprint) {
  ASSERT_OK_AND_ASSIGN(const auto a, OpenSynthetic(Spec("tiny", 1, 1), 1));
  ASSERT_OK_AND_ASSIGN(const auto b, OpenSynthetic(Spec("tiny", 1, 2), 1));
  const char* module = "model.layers.0.mlp.experts.3.up_proj";
  ASSERT_OK_AND_ASSIGN(const OwnedLinear wa, a->Linear(module));
  ASSERT_OK_AND_ASSIGN(const OwnedLinear wb, b->Linear(module));
  EXPECT_NE(wa.absmax, wb.absmax);
  EXPECT_NE(std::memcmp(wa.ref.data, wb.ref.data, BytesOf(wa.ref).data), 0);
  EXPECT_NE(a->ExpertFingerprint(), b->ExpertFingerprint());
  EXPECT_EQ(a->ExpertFingerprint().size(), 64U);
}

TEST(MakeModel, PublishedFilesLinearsStayUnquantised) {
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenSynthetic(Spec("tiny", 4), 1));
  for (const char* module :
       {"lm_head", "model.embed_tokens", "model.layers.0.mlp.gate",
        "model.layers.0.mlp.shared_expert_gate", "model.layers.0.linear_attn.in_proj_ba"}) {
    EXPECT_EQ(checkpoint->LinearShape(module)->kind, WeightKind::kBF16) << module;
  }
  for (const char* module :
       {"model.layers.0.linear_attn.in_proj_qkvz", "model.layers.0.linear_attn.out_proj",
        "model.layers.3.self_attn.q_proj", "model.layers.3.mlp.shared_expert.gate_proj",
        "model.layers.3.mlp.experts.7.gate_proj"}) {
    EXPECT_EQ(checkpoint->LinearShape(module)->kind, WeightKind::kBlock4) << module;
  }
}

TEST(MakeModel, WhatIsNotThereIsNotFound) {
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenSynthetic(Spec("tiny", 2), 1));
  for (const char* module :
       {"", ".", "gate_proj", "model.layers.0.mlp.experts.8.gate_proj",
        "model.layers.0.mlp.experts.-1.gate_proj", "model.layers.2.mlp.experts.0.gate_proj",
        "model.layers.0.mlp.experts.0.gate", "model.layers.0.self_attn.q_proj"}) {
    EXPECT_FALSE(checkpoint->Has(module)) << module;
    EXPECT_THAT(checkpoint->Linear(module), IsStatus(absl::StatusCode::kNotFound, HasSubstr("no")))
        << module;
  }
  EXPECT_FALSE(checkpoint->Vector("model.norm").ok());
}

TEST(MakeModel, AFolderThatHoldsSomethingIsLeftAlone) {
  const TempFolder folder;
  ASSERT_OK(WriteFileAtomically(folder / "mine", "text"));
  EXPECT_THAT(MakeModel(Spec("tiny", 1), {.folder = folder.path()}),
              IsStatus(absl::StatusCode::kAlreadyExists, HasSubstr("holds something already")));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
}

TEST(MakeModel, ADiskWithoutRoomIsSaidBeforeAnythingIsWritten) {
  EXPECT_OK(CheckDiskRoom(1'000'000'000, {1'100'000'000, "free space on /x"}));
  EXPECT_THAT(CheckDiskRoom(1'000'000'000, {1'000'000'000, "free space on /x"}),
              IsStatus(absl::StatusCode::kResourceExhausted,
                       AllOf(HasSubstr("takes 979 MiB"), HasSubstr("free space on /x is 953 MiB"),
                             HasSubstr("fewer --layers"))));
}

TEST(MakeModel, AWriteThatFailsLeavesNoFiles) {
  const TempFolder folder;
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  const rlimit small = {200'000, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const absl::Status status = MakeModel(Spec("tiny", 4), {.folder = folder.path(), .n_threads = 2});
  setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr("model-00001-of-00001.safetensors"));
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(MakeModel, ProgressEndsAtTheTotal) {
  const TempFolder folder;
  MakeModelProgress last;
  uint64_t calls = 0;
  ASSERT_OK(MakeModel(Spec("tiny", 2), {.folder = folder.path()}, [&](const auto& progress) {
    EXPECT_GT(progress.bytes_done, last.bytes_done);
    last = progress;
    ++calls;
  }));
  EXPECT_GT(calls, 0U);
  EXPECT_EQ(last.bytes_done, last.bytes_total);
}

TEST(ByteTokenizer, TextComesBackAndConversationsRender) {
  const TempFolder folder;
  ASSERT_OK(MakeModel(Spec("tiny", 1), {.folder = folder.path()}));
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, Tokenizer::Load(folder / "tokenizer.json"));
  EXPECT_EQ(tokenizer->vocab_size(), 512);
  ASSERT_OK_AND_ASSIGN(const auto ids, tokenizer->Encode("Wärme: 火 <|im_end|>\n"));
  EXPECT_EQ(ids.front(), 'W');
  EXPECT_EQ(ids[ids.size() - 2], kByteEndOfTurn);
  EXPECT_EQ(tokenizer->Decode(ids).value(), "Wärme: 火 <|im_end|>\n");
  EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{400}).value(), "");
  ASSERT_OK_AND_ASSIGN(const auto chat, ChatTemplate::Load(folder.path()));
  const json::object variables = {{"messages", {{{"role", "user"}, {"content", "Hi"}}}},
                                  {"add_generation_prompt", true}};
  EXPECT_EQ(chat->Render(variables).value(),
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}

// The residual stream must neither vanish nor explode: through 48 layers, in float32.
TEST(SyntheticModel, ActivationsStaySaneThrough48Layers) {
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenSynthetic(Spec("tiny", 48), 1));
  ASSERT_OK_AND_ASSIGN(auto segment, store::LoadIntoMemory(*checkpoint, 2));
  worker::SegmentExperts experts(std::move(segment));
  ASSERT_OK_AND_ASSIGN(const auto engine, worker::Engine::Create(*checkpoint, &experts, {}));
  const auto sequence = engine->NewSequence();
  std::vector<int32_t> ids;
  ids.reserve(64);
  for (int i = 0; i < 64; ++i) ids.push_back(i * 7 % 512);
  const worker::StepItem item{sequence.get(), ids, worker::LogitsWanted::kAll};
  worker::StepLogits logits;
  ASSERT_OK(engine->Step(std::span(&item, 1), &logits));
  double squares = 0;
  for (const float value : logits.values) {
    ASSERT_TRUE(std::isfinite(value));
    squares += static_cast<double>(value) * value;
  }
  const double deviation = std::sqrt(squares / static_cast<double>(logits.values.size()));
  EXPECT_GT(deviation, 0.3);
  EXPECT_LT(deviation, 3);
}

}  // namespace
}  // namespace hearth
