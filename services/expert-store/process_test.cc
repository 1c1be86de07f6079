// hearth-expert-store as a process: killed, stopped, doubled, starved of memory. The oracle is the
// segment of an undisturbed run: same model, same bytes.
#include "common/testing/process.h"

#include <sys/stat.h>

#include <chrono>

#include "common/experts/describe.h"
#include "common/experts/testing.h"
#include "common/rpc/channel.h"
#include "common/rpc/health.h"
#include "common/rpc/status.h"
#include "common/testing/source_dir.h"
#include "hearth/v1/expert_store.grpc.pb.h"

namespace hearth::store {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using namespace hearth::testing;  // NOLINT: test helpers
using std::chrono::seconds;
using std::chrono::steady_clock;

constexpr auto kDeadline = kProcessDeadline;

class StoreProcessTest : public ::testing::Test {
 protected:
  std::vector<std::string> Arguments(std::vector<std::string> more = {}) {
    std::vector<std::string> arguments = {HEARTH_EXPERT_STORE, "--model",     model_.string(),
                                          "--run-dir",         run_.string(), "--segment",
                                          segment_.string()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  std::unique_ptr<Process> Start(std::vector<std::string> more = {}) {
    return std::make_unique<Process>(Arguments(std::move(more)), log_);
  }
  std::unique_ptr<v1::ExpertStore::Stub> Connect() {
    const auto channel =
        MakeChannel("unix:" + (run_ / "store.sock").string(), ChannelReuse::kOwnConnection);
    EXPECT_TRUE(channel->WaitForConnected(std::chrono::system_clock::now() + kDeadline))
        << Slurp(log_);
    return v1::ExpertStore::NewStub(channel);
  }
  v1::DescribeResponse Describe(v1::ExpertStore::Stub& stub) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kDeadline);
    v1::DescribeResponse response;
    const grpc::Status status = stub.Describe(&context, {}, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
  // The last message of WatchLoading.
  v1::LoadingProgress WaitLoaded() {
    const auto stub = Connect();
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kDeadline);
    const auto stream = stub->WatchLoading(&context, {});
    v1::LoadingProgress message;
    while (stream->Read(&message)) {
    }
    return message;
  }
  uint64_t Inode() {
    struct stat info {};
    return ::stat(segment_.c_str(), &info) == 0 ? info.st_ino : 0;
  }
  std::string Loaded() {
    const auto process = Start();
    EXPECT_EQ(WaitLoaded().state(), v1::LOADING_STATE_READY) << Slurp(log_);
    EXPECT_EQ(process->Stop(SIGTERM), 0) << Slurp(log_);
    return Slurp(segment_);
  }

  TempFolder folder_{"/dev/shm"};
  const fs::path model_ = fs::path(hearth::testing::SourceDir()) / "models/demo";
  const fs::path run_ = folder_ / "run";
  const fs::path segment_ = folder_ / "segment";
  const fs::path log_ = folder_ / "log";
};

TEST_F(StoreProcessTest, LoadsTheDemoModelForItsUserOnlyAndExitsWithZero) {
  const auto process = Start();
  const v1::LoadingProgress progress = WaitLoaded();
  EXPECT_EQ(progress.state(), v1::LOADING_STATE_READY) << Slurp(log_);
  EXPECT_EQ(progress.experts_done(), 288u);
  const std::string address = "unix:" + (run_ / "store.sock").string();
  EXPECT_OK(ProbeHealth(address, "", kDeadline));
  EXPECT_OK(ProbeHealth(address, "ready", kDeadline));
  struct stat info {};
  for (const fs::path& file : {segment_, run_ / "store.sock"}) {
    ASSERT_EQ(::stat(file.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0600u) << file;
  }
  EXPECT_EQ(process->Stop(SIGTERM), 0);
  ASSERT_OK_AND_ASSIGN(const auto reader, SegmentReader::Open(segment_, ""));
  EXPECT_EQ(DescribeSegment(*reader, {.checksums = true}).at("experts_damaged"), 0);
}

TEST_F(StoreProcessTest, KilledWhileLoadingItIsNeverAttachedAndTheNextStartCompletesIt) {
  const std::string want = Loaded();
  for (const uint64_t percent : {10, 50, 90}) {
    fs::remove(segment_);
    {
      const auto process = Start({"--load-rate-mb", "15"});
      const auto stub = Connect();
      v1::DescribeResponse state = Describe(*stub);
      while (state.loading().experts_done() < 288 * percent / 100) state = Describe(*stub);
      ASSERT_EQ(process->Stop(SIGKILL), 128 + SIGKILL);
      ASSERT_LT(state.loading().experts_done(), 288u);
    }
    EXPECT_THAT(SegmentReader::Open(segment_, ""),
                IsStatus(absl::StatusCode::kUnavailable, HasSubstr("still being filled")));
    const uint64_t inode = Inode();
    const auto process = Start();
    const v1::LoadingProgress progress = WaitLoaded();
    EXPECT_EQ(progress.state(), v1::LOADING_STATE_READY) << Slurp(log_);
    EXPECT_THAT(Slurp(log_), HasSubstr("its good experts are kept"));
    EXPECT_EQ(Inode(), inode);
    EXPECT_EQ(process->Stop(SIGTERM), 0);
    EXPECT_TRUE(Slurp(segment_) == want) << "killed at " << percent << " %";
  }
}

TEST_F(StoreProcessTest, KilledWhenReadyItsSegmentIsAdoptedWithinASecond) {
  {
    const auto process = Start();
    ASSERT_EQ(WaitLoaded().state(), v1::LOADING_STATE_READY);
    EXPECT_EQ(process->Stop(SIGKILL), 128 + SIGKILL);
  }
  const uint64_t inode = Inode();
  ASSERT_OK_AND_ASSIGN(const auto reader, SegmentReader::Open(segment_, ""));  // a worker's
  const auto process = Start();
  const v1::LoadingProgress progress = WaitLoaded();
  EXPECT_TRUE(progress.adopted());
  EXPECT_LT(progress.seconds(), 1.0);
  EXPECT_EQ(Inode(), inode);
  const auto stub = Connect();
  const auto deadline = steady_clock::now() + kDeadline;
  while (Describe(*stub).experts_verified() < 64 + 288) {
    ASSERT_LT(steady_clock::now(), deadline) << "background verification did not finish";
  }
  EXPECT_OK(reader->Expert(0, 0));
}

TEST_F(StoreProcessTest, SecondStoreOnOneRunDirectoryOrSegmentIsRefusedWithThePid) {
  const auto first = Start();
  ASSERT_EQ(WaitLoaded().state(), v1::LOADING_STATE_READY);
  const std::string pid = absl::StrCat("held by process ", first->pid());
  Process same_segment(Arguments({"--run-dir", (folder_ / "run2").string()}), folder_ / "log2");
  EXPECT_EQ(same_segment.Wait(kDeadline), 2);
  EXPECT_THAT(Slurp(folder_ / "log2"), HasSubstr(pid));
  Process same_run_dir({HEARTH_EXPERT_STORE, "--model", model_.string(), "--run-dir", run_.string(),
                        "--segment", (folder_ / "other").string()},
                       folder_ / "log3");
  EXPECT_EQ(same_run_dir.Wait(kDeadline), 2);
  EXPECT_THAT(Slurp(folder_ / "log3"), HasSubstr(pid));
  EXPECT_FALSE(fs::exists(folder_ / "other"));
  EXPECT_EQ(first->Stop(SIGTERM), 0);
}

TEST_F(StoreProcessTest, SigtermWhileLoadingEndsItQuicklyWithZero) {
  const auto process = Start({"--load-rate-mb", "0.1"});
  const auto stub = Connect();
  while (Describe(*stub).loading().experts_done() == 0) {
  }
  const auto start = steady_clock::now();
  EXPECT_EQ(process->Stop(SIGTERM), 0);
  EXPECT_LT(steady_clock::now() - start, seconds(3));
}

TEST_F(StoreProcessTest, ProfileSurvivesARestart) {
  for (const uint64_t want : {5, 10}) {
    const auto process = Start();
    ASSERT_EQ(WaitLoaded().state(), v1::LOADING_STATE_READY);
    const auto stub = Connect();
    grpc::ClientContext report, get;
    v1::ReportUsageRequest request;
    v1::ReportUsageResponse response;
    auto* usage = request.add_usage();
    usage->set_layer(1);
    usage->set_expert(7);
    usage->set_count(5);
    ASSERT_TRUE(stub->ReportUsage(&report, request, &response).ok());
    v1::Profile profile;
    ASSERT_TRUE(stub->GetProfile(&get, {}, &profile).ok());
    ASSERT_EQ(profile.usage_size(), 1);
    EXPECT_EQ(profile.usage(0).count(), want);
    ASSERT_EQ(process->Stop(SIGTERM), 0);
  }
}

TEST_F(StoreProcessTest, WrongModelsAndFlagsExitWithTwoAndOneClearLine) {
  const fs::path broken = folder_ / "broken";
  fs::copy(model_, broken, fs::copy_options::recursive);
  fs::permissions(broken / "model-00002-of-00002.safetensors", fs::perms::owner_all);
  fs::resize_file(broken / "model-00002-of-00002.safetensors", 100000);
  const struct {
    std::vector<std::string> arguments;
    const char* message;
  } cases[] = {
      {{HEARTH_EXPERT_STORE, "--model", (folder_ / "none").string(), "--run-dir", run_.string(),
        "--segment", segment_.string()},
       "none"},
      {{HEARTH_EXPERT_STORE, "--model", broken.string(), "--run-dir", run_.string(), "--segment",
        segment_.string()},
       "model-00002-of-00002.safetensors"},
      {Arguments({"--segment", (folder_ / "no/such/folder").string()}), "no/such/folder"},
      {Arguments({"--threads", "0"}), "--threads"},
      {{HEARTH_EXPERT_STORE}, "--model"},
  };
  for (const auto& c : cases) {
    Process process(c.arguments, log_);
    EXPECT_EQ(process.Wait(kDeadline), 2) << c.message;
    EXPECT_THAT(Slurp(log_), HasSubstr(c.message));
    EXPECT_FALSE(fs::exists(segment_));
  }
}

TEST_F(StoreProcessTest, TmpfsThatIsTooSmallIsRefusedBeforeFilling) {
  const fs::path mount = folder_ / "mount";
  fs::create_directory(mount);
  std::vector<std::string> arguments = {
      "unshare",
      "-m",
      "sh",
      "-c",
      "mount -t tmpfs -o size=8m tmpfs \"$0\" || exit 99; exec \"$@\"",
      mount.string()};
  for (const std::string& argument : Arguments({"--segment", (mount / "s").string()})) {
    arguments.push_back(argument);
  }
  Process process(arguments, log_);
  const int status = process.Wait(kDeadline);
  if (status == 99 || status == 1 || status == 127) GTEST_SKIP() << "may not mount a tmpfs here";
  EXPECT_EQ(status, 2);
  EXPECT_THAT(Slurp(log_), AllOf(HasSubstr("the experts need 14.6 MiB"), HasSubstr("free space on"),
                                 HasSubstr("leaves 8.0 MiB")));
}

TEST_F(StoreProcessTest, TruncatedSegmentEndsTheProcessWithAMessage) {
  Loaded();
  const auto process = Start({"--verify-interval-seconds", "0"});
  ASSERT_TRUE(WaitLoaded().adopted());
  fs::resize_file(segment_, 4096);
  EXPECT_EQ(process->Wait(kDeadline), 135);
  EXPECT_THAT(Slurp(log_), HasSubstr("SIGBUS"));
  const auto next = Start();  // and the next one replaces it
  EXPECT_EQ(WaitLoaded().state(), v1::LOADING_STATE_READY);
  EXPECT_EQ(next->Stop(SIGTERM), 0);
}

TEST_F(StoreProcessTest, SegmentIsRemovedAtExitWhereAskedFor) {
  const auto process = Start({"--remove-segment-on-exit"});
  ASSERT_EQ(WaitLoaded().state(), v1::LOADING_STATE_READY);
  EXPECT_EQ(process->Stop(SIGTERM), 0);
  EXPECT_FALSE(fs::exists(segment_));
}

}  // namespace
}  // namespace hearth::store
