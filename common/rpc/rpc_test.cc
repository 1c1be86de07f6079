#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <thread>
#include <vector>

#include "common/base/file.h"
#include "common/rpc/channel.h"
#include "common/rpc/health.h"
#include "common/rpc/server.h"
#include "common/rpc/status.h"
#include "common/testing/status_matchers.h"

namespace hearth {
namespace {

using ::hearth::testing::IsStatus;
using ::testing::HasSubstr;
using namespace std::chrono_literals;

class RpcTest : public ::testing::Test {
 protected:
  RpcTest()
      : folder_(std::filesystem::temp_directory_path() /
                ("hearth-rpc-" + std::to_string(::getpid()))) {
    EXPECT_OK(MakePrivateDirectory(folder_));
  }
  ~RpcTest() override { std::filesystem::remove_all(folder_); }

  std::string Address() const { return "unix:" + (folder_ / "a.sock").string(); }

  std::filesystem::path folder_;
  std::atomic<HealthService::Answer> answer_{HealthService::Answer::kServing};
  HealthService health_{[this](std::string_view service) {
    return service.empty() ? answer_.load() : HealthService::Answer::kUnknownService;
  }};
};

TEST_F(RpcTest, ProbeTellsServingFromNotServingFromAbsent) {
  EXPECT_THAT(ProbeHealth(Address(), "", 500ms),
              IsStatus(absl::StatusCode::kUnavailable, ::testing::_));
  ASSERT_OK_AND_ASSIGN(const auto server, RpcServer::Start({.address = Address()}, {&health_}));
  EXPECT_OK(ProbeHealth(Address(), "", 5s));
  answer_ = HealthService::Answer::kNotServing;
  EXPECT_THAT(ProbeHealth(Address(), "", 5s),
              IsStatus(absl::StatusCode::kFailedPrecondition, ::testing::_));
  EXPECT_THAT(ProbeHealth(Address(), "nonsense", 5s),
              IsStatus(absl::StatusCode::kNotFound, ::testing::_));
}

TEST_F(RpcTest, SecondServerOnOneSocketIsRefusedWithThePid) {
  ASSERT_OK_AND_ASSIGN(const auto first, RpcServer::Start({.address = Address()}, {&health_}));
  EXPECT_THAT(RpcServer::Start({.address = Address()}, {&health_}),
              IsStatus(absl::StatusCode::kAlreadyExists, HasSubstr(std::to_string(::getpid()))));
  EXPECT_OK(ProbeHealth(Address(), "", 5s));
}

TEST_F(RpcTest, StaleSocketIsReplacedAndPrivate) {
  const auto path = folder_ / "a.sock";
  ASSERT_OK(WriteFileAtomically(path, "stale"));
  ASSERT_OK_AND_ASSIGN(const auto server, RpcServer::Start({.address = Address()}, {&health_}));
  struct stat info {};
  ASSERT_EQ(::stat(path.c_str(), &info), 0);
  EXPECT_TRUE(S_ISSOCK(info.st_mode));
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

TEST_F(RpcTest, LockThatItsHolderRemovesHasOneHolderAtATime) {
  const std::string path = (folder_ / "lock").string();
  std::atomic<int> holders{0}, held{0}, most{0};
  const auto deadline = std::chrono::steady_clock::now() + 20s;
  const auto take_often = [&] {
    while (held < 500 && std::chrono::steady_clock::now() < deadline) {
      const auto lock = LockFile(path);
      if (!lock.ok()) continue;
      const int now = ++holders;
      if (now > most) most = now;
      ++held;
      std::this_thread::yield();
      --holders;  // removing the file lets the next one in
      ::unlink(path.c_str());
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) threads.emplace_back(take_often);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(most, 1);
  EXPECT_GE(held, 500);
}

TEST_F(RpcTest, TooLongSocketPathSaysTheLimit) {
  EXPECT_THAT(RpcServer::Start({.address = "unix:/tmp/" + std::string(200, 'x')}, {&health_}),
              IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("the limit is 107")));
}

TEST_F(RpcTest, WatchSendsChangesAndEndsWithTheCaller) {
  ASSERT_OK_AND_ASSIGN(const auto server, RpcServer::Start({.address = Address()}, {&health_}));
  const auto stub = grpc::health::v1::Health::NewStub(MakeChannel(Address()));
  grpc::ClientContext context;
  const auto reader = stub->Watch(&context, {});
  grpc::health::v1::HealthCheckResponse response;
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.status(), grpc::health::v1::HealthCheckResponse::SERVING);
  answer_ = HealthService::Answer::kNotServing;
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.status(), grpc::health::v1::HealthCheckResponse::NOT_SERVING);
  context.TryCancel();
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST(StatusConversion, KeepsCodeAndMessage) {
  const absl::Status status = absl::ResourceExhaustedError("queue full");
  EXPECT_EQ(FromGrpc(ToGrpc(status)), status);
  EXPECT_TRUE(ToGrpc(absl::OkStatus()).ok());
}

}  // namespace
}  // namespace hearth
