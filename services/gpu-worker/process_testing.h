// The real store and worker on the demo model, and a client, for process_test.cc.
#pragma once

#include <gmock/gmock.h>

#include <memory>
#include <string>
#include <vector>

#include "common/experts/testing.h"
#include "common/rpc/channel.h"
#include "common/rpc/health.h"
#include "common/rpc/status.h"
#include "common/testing/process.h"
#include "common/testing/source_dir.h"
#include "hearth/v1/inference.grpc.pb.h"

namespace hearth::worker {

// What one Generate call gave.
struct Answer {
  std::string text;
  bool has_started = false;
  v1::Finish finish;
  absl::Status status;
};

// One running Generate call.
class Call {
 public:
  Call(v1::Inference::Stub& stub, const v1::GenerateRequest& request,
       std::chrono::milliseconds timeout = testing::kProcessDeadline) {
    context_.set_deadline(std::chrono::system_clock::now() + timeout);
    reader_ = stub.Generate(&context_, request);
  }
  ~Call() {
    if (!has_ended_) Cancel();
  }
  // False at the end.
  bool ReadOne() {
    v1::GenerateEvent event;
    if (has_ended_ || !reader_->Read(&event)) return false;
    answer_.has_started |= event.has_started();
    answer_.text += event.delta().text();
    if (event.has_finish()) answer_.finish = event.finish();
    return true;
  }
  void ReadBytes(size_t n) {
    while (answer_.text.size() < n && ReadOne()) {
    }
  }
  void ReadStarted() {
    while (!answer_.has_started && ReadOne()) {
    }
  }
  Answer ReadAll() {
    while (ReadOne()) {
    }
    if (!std::exchange(has_ended_, true)) answer_.status = FromGrpc(reader_->Finish());
    return answer_;
  }
  Answer Cancel() {
    context_.TryCancel();
    return ReadAll();
  }
  const Answer& answer() const { return answer_; }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::GenerateEvent>> reader_;
  Answer answer_;
  bool has_ended_ = false;
};

inline v1::GenerateRequest Question(const std::string& text, int max_tokens = 64) {
  v1::GenerateRequest request;
  v1::ChatMessage* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content(text);
  request.mutable_chat()->set_add_generation_prompt(true);
  request.mutable_sampling()->set_temperature(0);
  request.set_max_tokens(max_tokens);
  return request;
}

// Goes on to its last token, and differs at every one of them if anything is wrong.
inline v1::GenerateRequest Endless(int max_tokens, uint64_t seed = 7) {
  v1::GenerateRequest request = Question("What is a lighthouse?", max_tokens);
  request.mutable_sampling()->set_temperature(1);
  request.mutable_sampling()->set_seed(seed);
  request.set_ignore_eos(true);
  return request;
}

class WorkerProcessTest : public ::testing::Test {
 protected:
  std::vector<std::string> WorkerArguments(std::vector<std::string> more = {}) {
    std::vector<std::string> arguments = {
        HEARTH_GPU_WORKER, "--model", model_.string(), "--run-dir", run_.string(),
        "--threads",       "2"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  std::unique_ptr<testing::Process> StartStore() {
    return std::make_unique<testing::Process>(
        std::vector<std::string>{HEARTH_EXPERT_STORE, "--model", model_.string(), "--run-dir",
                                 run_.string(), "--segment", segment_.string()},
        folder_ / "store.log");
  }
  // Connects a client too.
  std::unique_ptr<testing::Process> StartWorker(std::vector<std::string> more = {}) {
    auto process = std::make_unique<testing::Process>(WorkerArguments(std::move(more)), log_);
    channel_ = MakeChannel(address_, ChannelReuse::kOwnConnection);
    EXPECT_TRUE(channel_->WaitForConnected(Deadline())) << testing::Slurp(log_);
    stub_ = v1::Inference::NewStub(channel_);
    return process;
  }
  // Both, ready.
  void Start(std::vector<std::string> more = {}) {
    store_ = StartStore();
    worker_ = StartWorker(std::move(more));
    ASSERT_TRUE(WaitReady()) << testing::Slurp(log_);
  }
  bool WaitReady() {
    grpc::ClientContext context;
    context.set_deadline(Deadline());
    grpc::health::v1::HealthCheckRequest request;
    request.set_service("ready");
    const auto reader = grpc::health::v1::Health::NewStub(channel_)->Watch(&context, request);
    grpc::health::v1::HealthCheckResponse response;
    while (reader->Read(&response)) {
      if (response.status() == grpc::health::v1::HealthCheckResponse::SERVING) return true;
    }
    return false;
  }
  Answer Generate(const v1::GenerateRequest& request) { return Call(*stub_, request).ReadAll(); }
  v1::WorkerStatus Status() {
    grpc::ClientContext context;
    context.set_deadline(Deadline());
    v1::WorkerStatus status;
    EXPECT_TRUE(stub_->GetStatus(&context, {}, &status).ok());
    return status;
  }
  template <typename Condition>
  ::testing::AssertionResult WaitForStatus(Condition condition, std::chrono::seconds timeout) {
    const auto deadline = std::chrono::steady_clock::now() + timeout;
    v1::WorkerStatus status = Status();
    while (!condition(status)) {
      if (std::chrono::steady_clock::now() > deadline) {
        return ::testing::AssertionFailure() << status.DebugString() << testing::Slurp(log_);
      }
      status = Status();
    }
    return ::testing::AssertionSuccess();
  }
  static std::chrono::system_clock::time_point Deadline() {
    return std::chrono::system_clock::now() + testing::kProcessDeadline;
  }

  testing::TempFolder folder_{"/dev/shm"};
  const std::filesystem::path model_ =
      std::filesystem::path(hearth::testing::SourceDir()) / "models/demo";
  const std::filesystem::path run_ = folder_ / "run";
  const std::filesystem::path segment_ = folder_ / "segment";
  const std::filesystem::path log_ = folder_ / "worker.log";
  const std::string address_ = "unix:" + (run_ / "worker.sock").string();
  std::unique_ptr<testing::Process> store_, worker_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

// Nothing runs and nothing is held.
inline bool IsIdle(const v1::WorkerStatus& status) {
  return status.n_running() == 0 && status.n_waiting() == 0 && status.kv_pages_used() == 0;
}

}  // namespace hearth::worker
