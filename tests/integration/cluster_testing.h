// A real `hearth serve` over the demo model, its clients and its oracle, for the tests of whole
// clusters.
#pragma once

#include <gmock/gmock.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/experts/testing.h"
#include "common/testing/process.h"
#include "common/testing/source_dir.h"
#include "hearth/v1/inference.pb.h"
#include "tests/integration/http_call.h"

namespace hearth::testing {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

// Far more than anything needs: a test that waits so long has failed.
inline constexpr seconds kPatience{60};

// Waits without sleeping longer than a moment. Whether the condition came true in time.
bool Eventually(const std::function<bool()>& condition, milliseconds timeout = kPatience);

// One text to ask for: as the API takes it.
struct Question {
  std::string prompt = "What is a lighthouse?";
  int max_tokens = 200;
  double temperature = 0;
  int seed = 1;
  bool ignore_eos = true;
};
std::string ChatBody(const Question& question, bool stream);

// A streamed chat completion.
class TextStream {
 public:
  TextStream(int port, const Question& question)
      : call_(port, {.body = ChatBody(question, true)}) {}

  // Reads until so many bytes of text came.
  bool ReadBytes(size_t n) {
    return call_.ReadUntil([&] { return Parse(), text_.size() >= n; }, kPatience);
  }
  // Reads to the end, however it ends.
  void Finish(milliseconds timeout = kPatience) {
    call_.ReadAll(timeout);
    Parse();
  }

  HttpCall& call() { return call_; }
  const std::string& text() const { return text_; }
  // The last event's error object as JSON text, empty without.
  const std::string& error() const { return error_; }
  const std::string& finish_reason() const { return finish_reason_; }
  // With all of it: a reason to finish and the end mark, and no error.
  bool is_whole() const { return call_.is_complete() && is_done_ && error_.empty(); }
  bool is_done() const { return is_done_; }

 private:
  void Parse();
  void OnEvent(std::string_view data);

  HttpCall call_;
  size_t parsed_ = 0;  // bytes of the body
  std::string text_, error_, finish_reason_;
  bool is_done_ = false;
};

// What an answer without streaming gave.
struct PlainAnswer {
  int status = 0;  // 0: none came
  std::string text, retry_after, body;
};
PlainAnswer Ask(int port, const Question& question, milliseconds timeout = kPatience);

class ClusterTest : public ::testing::Test {
 protected:
  void SetUp() override;
  void TearDown() override;

  // `hearth serve` on the test's run directory.
  std::vector<std::string> ServeArguments(std::vector<std::string> more = {}) const;
  // Starts it and waits until it is ready. The first cluster of a program also gives the oracle.
  void Start(std::vector<std::string> more = {});
  void StartOnly(std::vector<std::string> more = {});
  bool WaitReady(milliseconds timeout = kPatience);
  // 128 + signal or the exit code.
  int Stop(int signal = SIGTERM) { return serve_->Stop(signal); }

  int port() const;
  std::string log() const { return Slurp(log_); }
  // Of the incarnation that was started last; 0 before.
  pid_t PidOf(const std::string& service) const;
  bool IsReady() const;
  // Nothing when it does not answer.
  std::optional<v1::WorkerStatus> WorkerStatus() const;
  bool WaitForWorker(const std::function<bool(const v1::WorkerStatus&)>& condition,
                     milliseconds timeout = kPatience) const;
  uint64_t SegmentInode() const;

  // Checks that new requests get the undisturbed texts.
  void ExpectUndisturbed() const;

  const std::filesystem::path model_ = std::filesystem::path(SourceDir()) / "models/demo";
  TempFolder folder_{"/tmp"};
  TempFolder memory_{"/dev/shm"};
  const std::filesystem::path run_ = folder_ / "run";
  const std::filesystem::path segment_ = memory_ / "experts";
  const std::filesystem::path log_ = folder_ / "log";
  std::unique_ptr<Process> serve_;

  // Greedy and sampled ones: a sampled text differs from its first wrong token on.
  const std::vector<Question> questions_ = {
      {.prompt = "What is a lighthouse?"},
      {.prompt = "What is a lighthouse?", .temperature = 1, .seed = 7},
      {.prompt = "Name a colour.", .temperature = 1, .seed = 11}};
  std::vector<std::string> oracle_;  // an undisturbed run's texts of them
};

}  // namespace hearth::testing
