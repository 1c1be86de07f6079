// What cannot work is refused at the start: by `hearth serve` with one line that names what is
// wrong and what to do, exit code 2, within seconds and without a try at restarting.
#include <netinet/in.h>
#include <sys/socket.h>

#include <fstream>
#include <functional>

#include "absl/strings/str_cat.h"
#include "tests/integration/cluster_testing.h"
#include "tests/integration/damaged_model.h"

namespace hearth::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr seconds kSoon{10};  // on a busy machine; alone it is less than one
constexpr char kShard[] = "model-00002-of-00002.safetensors";
constexpr char kNan[] = {'\0', '\0', '\xc0', '\x7f'};
constexpr char kExpert[] = "model.layers.4.mlp.experts.15.down_proj.weight";
constexpr char kDense[] = "model.layers.0.linear_attn.in_proj_qkvz.weight";

std::string LastLine(const std::string& log) {
  if (log.empty()) return "";
  const size_t begin = log.rfind('\n', log.size() - 2);
  return log.substr(begin == std::string::npos ? 0 : begin + 1);
}

class ClusterBadStartTest : public ClusterTest {
 protected:
  // Runs it to its end, which must be a refusal that says all of `says` in its last line.
  void ExpectRefused(std::vector<std::string> arguments, const std::vector<std::string>& says) {
    Process process(std::move(arguments), log_);
    const int status = process.Wait(kSoon);
    const std::string last = LastLine(log());
    EXPECT_EQ(status, 2) << log();
    EXPECT_THAT(last, StartsWith("hearth serve: "));
    for (const std::string& part : says) EXPECT_THAT(last, HasSubstr(part));
    EXPECT_LT(last.size(), 800u) << last;
    EXPECT_THAT(log(), Not(HasSubstr("starting it again")));
    EXPECT_FALSE(fs::exists(segment_));
  }
  std::vector<std::string> WithModel(const fs::path& model) const {
    std::vector<std::string> arguments = ServeArguments();
    *std::find(arguments.begin(), arguments.end(), model_.string()) = model;
    return arguments;
  }
  // Replaces the value of a flag, or adds it.
  std::vector<std::string> With(const std::string& flag, const std::string& value) const {
    std::vector<std::string> arguments = ServeArguments();
    const auto found = std::find(arguments.begin(), arguments.end(), flag);
    if (found != arguments.end()) {
      *(found + 1) = value;
    } else {
      arguments.insert(arguments.end(), {flag, value});
    }
    return arguments;
  }
};

struct Damage {
  std::function<void(const DamagedModel&)> make;
  std::vector<std::string> says;
};

std::vector<Damage> DamagedConfigs() {
  const auto replaced = [](const char* from, const char* to) {
    return [=](const DamagedModel& model) { model.Replace("config.json", from, to); };
  };
  return {
      {[](const auto& m) { m.Remove("config.json"); }, {"config.json", "give the folder"}},
      {[](const auto& m) { m.Write("config.json", "{\"model_type\": "); }, {"config.json"}},
      {[](const auto& m) { m.Write("config.json", std::string(100000, '[')); }, {"config.json"}},
      {replaced("\"qwen3_next\"", "\"llama\""), {"config.json", "model_type", "llama"}},
      {replaced("\"hidden_size\": 256", "\"hidden_size\": -256"), {"config.json", "hidden_size"}},
      {replaced("\"hidden_size\": 256", "\"hidden_size\": 1e30"), {"config.json", "hidden_size"}},
      {replaced("\"hidden_size\": 256", "\"hidden_size\": 255"), {"255"}},
      {replaced("\"num_experts\": 32", "\"num_experts\": 0"), {"config.json", "num_experts"}},
      {replaced("\"num_experts\": 32", "\"num_experts\": 33"), {"mlp.gate.weight", "[33, 256]"}},
      {replaced("\"num_experts_per_tok\": 4", "\"num_experts_per_tok\": 40"),
       {"config.json", "num_experts_per_tok"}},
      {replaced("\"num_hidden_layers\": 8", "\"num_hidden_layers\": 2000000000"),
       {"config.json", "num_hidden_layers"}},
  };
}

std::vector<Damage> DamagedWeights() {
  const auto length = [](uint64_t value) {
    return [=](const DamagedModel& model) {
      model.Patch(kShard, 0, std::string(reinterpret_cast<const char*>(&value), sizeof value));
    };
  };
  const std::string nan(kNan, sizeof kNan);
  return {
      {[](const auto& m) { m.Remove(kShard); }, {kShard}},
      {[](const auto& m) { m.Truncate(kShard, 5); }, {kShard}},
      {[](const auto& m) { m.Truncate(kShard, 100000); }, {kShard}},
      {[](const auto& m) { m.Truncate(kShard, m.Read(kShard).size() - 1); }, {kShard}},
      {[](const auto& m) { m.Write(kShard, m.Read(kShard) + "x"); }, {kShard}},
      {[](const auto& m) { m.Write(kShard, ""); }, {kShard}},
      {length(0), {kShard}},
      {length(uint64_t{1} << 40), {kShard}},
      {length(~uint64_t{0}), {kShard}},
      {[](const auto& m) { m.Patch(kShard, 20, "\x01"); }, {kShard}},
      {[](const auto& m) { m.Patch(kShard, 9, std::string(5000, '[')); }, {kShard}},
      {[](const auto& m) { m.SetEntry(absl::StrCat(kExpert, ".quant_map"), "[16]", "[15]"); },
       {kShard, absl::StrCat(kExpert, ".quant_map")}},
      {[](const auto& m) { m.SetEntry(absl::StrCat(kExpert, ".quant_map"), "[16]", "[-1]"); },
       {kShard, absl::StrCat(kExpert, ".quant_map")}},
      {[](const auto& m) { m.SetEntry(absl::StrCat(kExpert, ".quant_map"), "\"F32\"", "\"F99\""); },
       {kShard, absl::StrCat(kExpert, ".quant_map")}},
      {[=](const auto& m) { m.PatchData(absl::StrCat(kExpert, ".nested_absmax"), nan); },
       {absl::StrCat(kExpert, ".nested_absmax"), "is nan", "must be finite"}},
      {[=](const auto& m) { m.PatchData(absl::StrCat(kExpert, ".quant_map"), nan); },
       {absl::StrCat(kExpert, ".quant_map"), "NaN"}},
      {[=](const auto& m) { m.PatchData(absl::StrCat(kDense, ".nested_absmax"), nan); },
       {absl::StrCat(kDense, ".nested_absmax"), "is nan", "must be finite"}},
      {[](const auto& m) {
         m.Replace("model.safetensors.index.json", absl::StrCat("\"", kDense, "\""), "\"other\"");
       },
       {"other"}},
      {[](const auto& m) { m.Write("model.safetensors.index.json", "[]"); },
       {"model.safetensors.index.json"}},
  };
}

std::vector<Damage> DamagedTexts() {
  return {
      {[](const auto& m) { m.Remove("tokenizer.json"); }, {"tokenizer.json"}},
      {[](const auto& m) { m.Write("tokenizer.json", "{"); }, {"tokenizer.json"}},
      {[](const auto& m) { m.Truncate("tokenizer.json", 100000); }, {"tokenizer.json"}},
      {[](const auto& m) { m.Write("tokenizer.json", "\xff\xfe"); }, {"tokenizer.json"}},
  };
}

TEST_F(ClusterBadStartTest, DamagedConfigsAreRefusedByTheirField) {
  for (const Damage& damage : DamagedConfigs()) {
    const DamagedModel model(model_, folder_ / "model");
    damage.make(model);
    ExpectRefused(WithModel(model.folder()), damage.says);
  }
}

TEST_F(ClusterBadStartTest, DamagedWeightsAreRefusedByFileAndTensor) {
  for (const Damage& damage : DamagedWeights()) {
    const DamagedModel model(model_, folder_ / "model");
    damage.make(model);
    ExpectRefused(WithModel(model.folder()), damage.says);
  }
}

TEST_F(ClusterBadStartTest, DamagedTokenizersAreRefused) {
  for (const Damage& damage : DamagedTexts()) {
    const DamagedModel model(model_, folder_ / "model");
    damage.make(model);
    ExpectRefused(WithModel(model.folder()), damage.says);
  }
}

TEST_F(ClusterBadStartTest, TheUndamagedCopyIsServed) {
  const DamagedModel model(model_, folder_ / "model");
  serve_ = std::make_unique<Process>(WithModel(model.folder()), log_);
  EXPECT_TRUE(WaitReady()) << log();
}

TEST_F(ClusterBadStartTest, WrongModelFoldersAreRefused) {
  std::ofstream(folder_ / "file") << "text";
  fs::create_directory(folder_ / "empty");
  ExpectRefused(WithModel("/no/such/model"), {"/no/such/model: no such folder", "config.json"});
  ExpectRefused(WithModel(folder_ / "file"), {"file: ", "folder"});
  ExpectRefused(WithModel(folder_ / "empty"), {"config.json", "give the folder"});
}

TEST_F(ClusterBadStartTest, FlagsThatCannotBeAreRefusedByTheirName) {
  const std::vector<std::vector<std::string>> cases = {
      {"--threads", "0"},          {"--threads", "many"},    {"--context", "1"},
      {"--context", "1000000"},    {"--max-sequences", "0"}, {"--queue-limit", "-1"},
      {"--kv-tokens", "16777216"}, {"--backend", "abacus"},  {"--log-level", "loud"},
      {"--max-connections", "0"},  {"--prefill-chunk", "0"},
  };
  for (const auto& flag : cases) ExpectRefused(With(flag[0], flag[1]), {flag[0], flag[1]});
  ExpectRefused(With("--api-key-file", (folder_ / "none").string()), {"--api-key-file", "none"});
}

TEST_F(ClusterBadStartTest, FewDescriptorsRefuseTheFlagAndLowerItsDefault) {
  const auto with_few = [](std::vector<std::string> command) {
    command.insert(command.begin(), {"/bin/sh", "-c", "ulimit -n 300; exec \"$@\"", "sh"});
    return command;
  };
  ExpectRefused(with_few(With("--max-connections", "250")), {"--max-connections 250", "300"});
  serve_ = std::make_unique<Process>(with_few(ServeArguments()), log_);
  ASSERT_TRUE(WaitReady()) << log();
  EXPECT_THAT(log(), HasSubstr("\"descriptors\":300,\"max_connections\":236"));
  EXPECT_EQ(Stop(), 0);
}

TEST_F(ClusterBadStartTest, WrongCommandLinesAreRefusedBeforeAnythingStarts) {
  const std::vector<std::vector<std::string>> cases = {
      {"--port", "70000"}, {"--port", "-1"}, {"--frobnicate"}, {"--grace-seconds", "-1"}};
  for (const auto& flag : cases) {
    Process process(ServeArguments(flag), log_);
    EXPECT_EQ(process.Wait(kSoon), 2);
    EXPECT_THAT(log(), HasSubstr(flag[0]));
    EXPECT_FALSE(fs::exists(run_));
  }
  Process process({HEARTH_CLI, "serve"}, log_);
  EXPECT_EQ(process.Wait(kSoon), 2);
  EXPECT_THAT(log(), HasSubstr("--model"));
}

TEST_F(ClusterBadStartTest, APortInUseIsRefusedByItsNumber) {
  const UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  ASSERT_EQ(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), size), 0);
  ASSERT_EQ(::listen(fd.get(), 1), 0);
  ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &size);
  const std::string number = absl::StrCat(ntohs(address.sin_port));
  ExpectRefused(With("--port", number), {"port " + number, "in use", "--port"});
}

TEST_F(ClusterBadStartTest, HostsThatAreNotThisMachineAreRefused) {
  std::vector<std::string> arguments = With("--host", "192.0.2.1");
  *std::find(arguments.begin(), arguments.end(), "0") = "18080";
  ExpectRefused(arguments, {"192.0.2.1:18080", "--host"});
  ExpectRefused(With("--host", "192.0.2.1"), {"192.0.2.1", "--host"});
  ExpectRefused(With("--host", "no such host"), {"--host no such host"});
}

TEST_F(ClusterBadStartTest, RunDirectoriesThatCannotBeAreRefused) {
  std::ofstream(folder_ / "file") << "text";
  fs::create_directory(folder_ / "open");
  fs::permissions(folder_ / "open", fs::perms::all);
  ExpectRefused(With("--run-dir", "/sys/hearth"), {"/sys/hearth", "--run-dir"});
  ExpectRefused(With("--run-dir", folder_ / "file"), {"file: not a folder"});
  ExpectRefused(With("--run-dir", folder_ / "file/run"), {"file/run"});
  ExpectRefused(With("--run-dir", folder_ / "open"), {"open: must belong", "chmod 700"});
  ExpectRefused(With("--run-dir", folder_ / std::string(120, 'r')), {"rrr", "socket", "107"});
}

TEST_F(ClusterBadStartTest, SegmentsThatCannotBeAreRefused) {
  ExpectRefused(With("--segment", folder_ / "no/such/folder"), {"--segment", "no/such/folder"});
  ExpectRefused(With("--segment", folder_.path()), {"--segment", folder_.path()});
  ExpectRefused(With("--segment", "/sys/hearth"), {"--segment /sys/hearth", "tmpfs"});
}

TEST_F(ClusterBadStartTest, ATmpfsThatIsTooSmallIsRefusedBeforeItIsFilled) {
  const fs::path mount = folder_ / "mount";
  fs::create_directory(mount);
  std::vector<std::string> arguments = {
      "unshare",
      "-rm",
      "sh",
      "-c",
      "mount -t tmpfs -o size=8m tmpfs \"$0\" || exit 99; exec \"$@\"",
      mount.string()};
  Process probe({"unshare", "-rm", "sh", "-c", "mount -t tmpfs tmpfs \"$0\"", mount}, log_);
  if (probe.Wait(kSoon) != 0) GTEST_SKIP() << "may not mount a tmpfs here: " << log();
  for (const std::string& argument : With("--segment", mount / "experts")) {
    arguments.push_back(argument);
  }
  ExpectRefused(arguments, {"the experts need", "MiB", "free space on", "leaves 8.0 MiB"});
}

TEST_F(ClusterBadStartTest, AnIncompleteInstallationIsRefused) {
  fs::create_directory(folder_ / "bin");
  ExpectRefused(With("--bin-dir", folder_ / "bin"), {"hearth-expert-store", "installed"});
}

}  // namespace
}  // namespace hearth::testing
