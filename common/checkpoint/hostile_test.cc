// Folders from strangers: each kind of damage is refused with the file and the tensor, and without
// a crash.
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/file.h"
#include "common/checkpoint/checkpoint.h"
#include "common/checkpoint/quant_state.h"
#include "common/checkpoint/testing/checkpoint_writer.h"
#include "common/testing/status_matchers.h"

namespace hearth::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

const std::string kUp = "model.layers.1.mlp.experts.6.up_proj";
const std::string kWeight = kUp + ".weight";
const std::string kState = kWeight + ".quant_state.bitsandbytes__nf4";

class HostileFolder : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ =
        fs::temp_directory_path() / absl::StrCat("hearth-hostile-", ::getpid(), "-", info->name());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  void Write(const std::string& name, const std::string& bytes) {
    ASSERT_OK(WriteFileAtomically(folder_ / name, bytes));
  }
  void ExpectRefused(const std::string& file, const std::string& message) {
    const auto opened = Checkpoint::Open(folder_);
    ASSERT_FALSE(opened.ok()) << message;
    EXPECT_THAT(std::string(opened.status().message()), AllOf(HasSubstr(file), HasSubstr(message)));
  }

  fs::path folder_;
};

RawTensor& TensorNamed(std::vector<RawTensor>& tensors, const std::string& name) {
  for (RawTensor& tensor : tensors) {
    if (tensor.name == name) return tensor;
  }
  ADD_FAILURE() << name;
  return tensors.front();
}

void SetText(RawTensor& tensor, const std::string& text) {
  tensor.bytes = text;
  tensor.shape = {text.size()};
}

std::string StateText(const std::string& change_from, const std::string& change_to) {
  std::string text =
      R"({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [32, 64], )"
      R"("nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5})";
  const size_t at = text.find(change_from);
  EXPECT_NE(at, std::string::npos) << change_from;
  return text.replace(at, change_from.size(), change_to);
}

void Drop(std::vector<RawTensor>& tensors, const std::string& name) {
  std::erase_if(tensors, [&](const RawTensor& tensor) { return tensor.name == name; });
}

struct Damage {
  std::function<void(std::vector<RawTensor>&)> apply;
  std::string message;
};

Damage BadState(const std::string& from, const std::string& to, const std::string& message) {
  return {[=](auto& tensors) { SetText(TensorNamed(tensors, kState), StateText(from, to)); },
          kState + ": " + message};
}

Damage Cut(const std::string& name, uint64_t bytes) {
  return {[=](auto& tensors) {
            RawTensor& tensor = TensorNamed(tensors, name);
            tensor.bytes.resize(tensor.bytes.size() - bytes);
            tensor.shape = {tensor.bytes.size() / static_cast<uint64_t>(DtypeBytes(tensor.dtype))};
          },
          "tensor " + name};
}

TEST_F(HostileFolder, EveryBadTensorIsRefusedWithFileAndName) {
  const Damage damages[] = {
      BadState("nf4", "fp4", "quant_type is not that of the name"),
      BadState("nf4", "int8", "quant_state: quant_type is \"int8\""),
      BadState("64,", "63,", "quant_state: blocksize is 63, allowed: a power of two"),
      BadState("64,", "16,", "quant_state: blocksize is 16"),
      BadState("64,", "8192,", "quant_state: blocksize is 8192"),
      BadState("64,", "32.5,", "quant_state: blocksize"),
      BadState("[32, 64]", "[64, 32]", "shape [64, 32], the config asks for [32, 64]"),
      BadState("[32, 64]", "[32, -64]", "quant_state: shape is -64"),
      BadState("[32, 64]", "2048", "quant_state: shape is 2048"),
      BadState("\"shape\": [32, 64], ", "", "quant_state: shape is missing"),
      BadState("float32", "float16", "quant_state: nested_dtype"),
      BadState("0.5", "1e999", ""),
      BadState("0.5", "null", "quant_state: nested_offset is missing"),
      BadState("256", "0", "quant_state: nested_blocksize is 0"),
      BadState(R"("dtype")", R"("blocksize")", "key \"blocksize\" given twice"),
      BadState("{", "", "invalid JSON"),
      BadState("0.5", std::string(60, '[') + std::string(60, ']'), "invalid JSON"),
      {[](auto& t) { SetText(TensorNamed(t, kState), std::string(5000, ' ')); }, kState},
      Cut(kWeight, 1),
      Cut(kWeight + ".absmax", 1),
      Cut(kWeight + ".nested_absmax", 4),
      Cut(kWeight + ".quant_map", 4),
      Cut(kWeight + ".nested_quant_map", 4),
      Cut("model.norm.weight", 2),
      Cut("model.layers.0.mlp.gate.weight", 2),
      {[](auto& t) { Drop(t, kState); }, "tensor " + kWeight + ": 4-bit codes"},
      {[](auto& t) { Drop(t, kWeight + ".absmax"); }, kWeight + ".absmax"},
      {[](auto& t) { Drop(t, kWeight + ".nested_quant_map"); }, kWeight + ".nested_quant_map"},
      {[](auto& t) {
         RawTensor fp4 = TensorNamed(t, kState);
         fp4.name = kWeight + ".quant_state.bitsandbytes__fp4";
         t.push_back(fp4);
       },
       "tensor " + kWeight},
      {[](auto& t) { TensorNamed(t, kWeight).dtype = Dtype::kI8; },
       "tensor " + kWeight + ": dtype I8"},
      {[](auto& t) { TensorNamed(t, kWeight + ".absmax").dtype = Dtype::kI8; },
       kWeight + ".absmax"},
      {[](auto& t) { TensorNamed(t, "model.norm.weight").dtype = Dtype::kI16; },
       "tensor model.norm.weight: must be F32, F16 or BF16"},
      {[](auto& t) {
         TensorNamed(t, "lm_head.weight").shape = {64, 96};
       },
       "tensor lm_head.weight: shape [64, 96], the config asks for [96, 64]"},
  };
  const CheckpointOptions options;
  const std::vector<RawTensor> good = CheckpointTensors(options);
  for (const Damage& damage : damages) {
    std::vector<RawTensor> tensors = good;
    damage.apply(tensors);
    ASSERT_OK(WriteCheckpoint(ConfigJson(options), tensors, 1, folder_));
    ExpectRefused(folder_.string(), damage.message);
  }
}

void SetFloat(RawTensor& tensor, size_t index, float value) {
  std::memcpy(tensor.bytes.data() + index * sizeof(float), &value, sizeof(float));
}

// Values are looked at when a linear is read: opening does not read 40 GB.
TEST_F(HostileFolder, BadScalesAndLevelsAreRefusedWhenTheLinearIsRead) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const bool nested : {false, true}) {
    const CheckpointOptions options{.block4 = {.double_quantization = nested}};
    const std::vector<RawTensor> good = CheckpointTensors(options);
    std::vector<std::pair<std::string, float>> damages = {{".quant_map", kNan},
                                                          {".quant_map", kInfinity}};
    const std::string scales = nested ? ".nested_absmax" : ".absmax";
    for (const float bad : {kNan, kInfinity, -kInfinity, -1.f}) damages.emplace_back(scales, bad);
    if (nested) damages.emplace_back(".nested_quant_map", kNan);
    for (const auto& [member, value] : damages) {
      std::vector<RawTensor> tensors = good;
      SetFloat(TensorNamed(tensors, kWeight + member), 0, value);
      ASSERT_OK(WriteCheckpoint(ConfigJson(options), tensors, 1, folder_));
      ASSERT_OK_AND_ASSIGN(const auto checkpoint, Checkpoint::Open(folder_));
      EXPECT_THAT(checkpoint->Linear(kUp),
                  IsStatus(absl::StatusCode::kDataLoss,
                           AllOf(HasSubstr("model.safetensors"), HasSubstr(kWeight + member))));
      EXPECT_OK(checkpoint->Linear("model.layers.1.mlp.experts.5.up_proj"));
      // A plan of 24576 experts asks for shapes alone.
      EXPECT_EQ(checkpoint->LinearShape(kUp).ok(), member != ".quant_map") << member;
    }
  }
}

TEST_F(HostileFolder, ScalesFarBelowZeroAreRefused) {
  const CheckpointOptions options;
  std::vector<RawTensor> tensors = CheckpointTensors(options);
  SetText(TensorNamed(tensors, kState), StateText("0.5", "-0.5"));
  ASSERT_OK(WriteCheckpoint(ConfigJson(options), tensors, 1, folder_));
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, Checkpoint::Open(folder_));
  EXPECT_THAT(checkpoint->Linear(kUp),
              IsStatus(absl::StatusCode::kDataLoss, HasSubstr("not negative")));
}

TEST_F(HostileFolder, VectorsWithNanAreRefused) {
  const CheckpointOptions options;
  std::vector<RawTensor> tensors = CheckpointTensors(options);
  TensorNamed(tensors, "model.norm.weight").bytes.replace(0, 2, "\xff\x7f");
  ASSERT_OK(WriteCheckpoint(ConfigJson(options), tensors, 1, folder_));
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, Checkpoint::Open(folder_));
  EXPECT_THAT(checkpoint->Vector("model.norm.weight"),
              IsStatus(absl::StatusCode::kDataLoss, HasSubstr("model.norm.weight")));
}

TEST_F(HostileFolder, WhatIsNoRegularFileIsRefused) {
  const CheckpointOptions options;
  ASSERT_OK(WriteCheckpoint(options, folder_));
  const fs::path weights = folder_ / "model.safetensors", aside = folder_ / "aside";
  fs::rename(weights, aside);
  ExpectRefused(folder_.string(), "neither model.safetensors nor");
  fs::create_directory(weights);
  ExpectRefused("model.safetensors", "not a regular file");
  fs::remove(weights);
  ASSERT_EQ(::mkfifo(weights.c_str(), 0600), 0);
  ExpectRefused("model.safetensors", "not a regular file");
  fs::remove(weights);
  fs::create_symlink("/dev/zero", weights);
  ExpectRefused("model.safetensors", "not a regular file");
  fs::remove(weights);
  fs::create_symlink("aside", weights);  // as download caches lay files out
  EXPECT_OK(Checkpoint::Open(folder_));
  fs::resize_file(aside, fs::file_size(aside) - 1);
  ExpectRefused("model.safetensors", "do not lie in the");
  fs::resize_file(aside, 100);
  ExpectRefused("model.safetensors", "truncated?");
}

TEST_F(HostileFolder, IndexMustNameTensorsInFilesOfTheFolder) {
  const CheckpointOptions options{.n_shards = 2};
  ASSERT_OK(WriteCheckpoint(options, folder_));
  const std::string index_name = "model.safetensors.index.json";
  ASSERT_OK_AND_ASSIGN(const std::string good, ReadFile(folder_ / index_name, 1 << 20));
  const std::string shard = "model-00002-of-00002.safetensors";
  const auto with_entry = [&](const std::string& entry) {
    std::string text = good;
    const std::string start = R"("weight_map":{)";
    return text.insert(text.find(start) + start.size(), entry + ",");
  };
  const std::pair<std::string, std::string> damages[] = {
      {R"("x":"../model-00001-of-00002.safetensors")", "name of a file in the same folder"},
      {R"("x":"/etc/passwd")", "name of a file in the same folder"},
      {R"("x":"..")", "name of a file in the same folder"},
      {R"("x":"")", "name of a file in the same folder"},
      {R"("x":"a\u0000b")", "name of a file in the same folder"},
      {R"("x":7)", "x is 7, allowed: a file name"},
      {R"("x":")" + shard + "\"", "tensor x: named by"},
      {R"("lm_head.weight":")" + shard + "\"", "\"lm_head.weight\" given twice"},
      {R"("x":"model-00003-of-00002.safetensors")", "model-00003-of-00002.safetensors"},
  };
  for (const auto& [entry, message] : damages) {
    Write(index_name, with_entry(entry));
    ExpectRefused(index_name, message);
  }
  Write(index_name, "{}");
  ExpectRefused(index_name, "weight_map is missing");
  Write(index_name, good);
  EXPECT_OK(Checkpoint::Open(folder_));
  fs::remove(folder_ / shard);
  ExpectRefused(shard, "No such file");
}

TEST_F(HostileFolder, ConfigThatClaimsAHugeModelIsRefusedAtOnce) {
  const CheckpointOptions options;
  ASSERT_OK(WriteCheckpoint(options, folder_));
  json::object config = ConfigJson(options);
  config["num_hidden_layers"] = 1000;
  config["num_experts"] = 4096;
  std::vector<RawTensor> tensors = CheckpointTensors(options);
  std::erase_if(tensors,
                [](const RawTensor& tensor) { return tensor.name.ends_with(".mlp.gate.weight"); });
  ASSERT_OK(WriteCheckpoint(config, tensors, 1, folder_));
  ExpectRefused(folder_.string(), "tensors are missing");
}

TEST(QuantStateText, FlippedBitsNeverCrash) {
  const std::string good = StateText("0.5", "0.25");
  ASSERT_OK(ParseQuantState(good));
  for (size_t bit = 0; bit < good.size() * 8; ++bit) {
    std::string bad = good;
    bad[bit / 8] = static_cast<char>(static_cast<uint8_t>(bad[bit / 8]) ^ (1u << (bit % 8)));
    const auto state = ParseQuantState(bad);
    if (state.ok()) {
      EXPECT_GE(state->block_size, 32);
    }
  }
}

}  // namespace
}  // namespace hearth::testing
