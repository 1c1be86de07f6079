#include "tests/integration/cluster_testing.h"

#include <grpcpp/client_context.h>
#include <poll.h>
#include <sys/stat.h>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "cli/supervisor/run_dir.h"
#include "common/base/json.h"
#include "common/rpc/channel.h"
#include "hearth/v1/inference.grpc.pb.h"

namespace hearth::testing {
namespace {

std::string TextOf(const json::value* value) {
  return value != nullptr && value->is_string() ? std::string(value->as_string().c_str()) : "";
}

}  // namespace

bool Eventually(const std::function<bool()>& condition, milliseconds timeout) {
  const auto deadline = steady_clock::now() + timeout;
  while (!condition()) {
    if (steady_clock::now() > deadline) return false;
    ::poll(nullptr, 0, 10);
  }
  return true;
}

std::string ChatBody(const Question& question, bool stream) {
  return SerializeJson(json::object(
      {{"messages", json::array({json::object({{"role", "user"}, {"content", question.prompt}})})},
       {"max_tokens", question.max_tokens},
       {"temperature", question.temperature},
       {"seed", question.seed},
       {"ignore_eos", question.ignore_eos},
       {"stream", stream}}));
}

void TextStream::Parse() {
  const std::string& body = call_.body();
  if (call_.status() != 200) return;
  for (size_t end = 0; (end = body.find("\n\n", parsed_)) != std::string::npos; parsed_ = end + 2) {
    std::string_view event(body.data() + parsed_, end - parsed_);
    if (event.substr(0, 6) == "data: ") OnEvent(event.substr(6));
  }
}

void TextStream::OnEvent(std::string_view data) {
  EXPECT_FALSE(is_done_ || !error_.empty()) << "an event after the last one: " << data;
  if (data == "[DONE]") {
    is_done_ = true;
    return;
  }
  const auto value = ParseJson(data);
  ASSERT_OK(value) << data;  // half a character or a torn event would not parse
  const json::object& object = value->as_object();
  if (const json::value* error = object.if_contains("error")) {
    error_ = SerializeJson(*error);
    RememberError(error_);
    return;
  }
  const json::array& choices = object.at("choices").as_array();
  if (choices.empty()) return;
  const json::object& choice = choices[0].as_object();
  text_ += TextOf(choice.at("delta").as_object().if_contains("content"));
  const std::string reason = TextOf(choice.if_contains("finish_reason"));
  if (!reason.empty()) finish_reason_ = reason;
}

PlainAnswer Ask(int port, const Question& question, milliseconds timeout) {
  HttpCall call(port, {.body = ChatBody(question, false)});
  if (!call.ReadAll(timeout)) return {};
  PlainAnswer answer{.status = call.status(),
                     .text = "",
                     .retry_after = call.header("retry-after"),
                     .body = call.body()};
  if (answer.status != 200) return answer;
  const auto value = ParseJson(answer.body);
  EXPECT_OK(value) << answer.body;
  if (!value.ok()) return answer;
  const json::value& choice = value->as_object().at("choices").as_array()[0];
  answer.text = TextOf(choice.as_object().at("message").as_object().if_contains("content"));
  return answer;
}

void ClusterTest::SetUp() { ASSERT_TRUE(std::filesystem::exists(HEARTH_CLI)) << HEARTH_CLI; }

void ClusterTest::TearDown() {
  if (serve_ != nullptr && serve_->Wait(seconds(0)) == kStillRunning) {
    EXPECT_EQ(Stop(), 0) << log();
  }
  ExpectNoSecretsInErrors({run_, segment_, model_});
  if (HasFailure()) std::fprintf(stderr, "--- log of hearth serve ---\n%s\n", log().c_str());
}

std::vector<std::string> ClusterTest::ServeArguments(std::vector<std::string> more) const {
  std::vector<std::string> arguments = {HEARTH_CLI, "serve",     "--model", model_,      "--port",
                                        "0",        "--run-dir", run_,      "--segment", segment_};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

void ClusterTest::StartOnly(std::vector<std::string> more) {
  serve_ = std::make_unique<Process>(ServeArguments(std::move(more)), log_);
}

void ClusterTest::Start(std::vector<std::string> more) {
  StartOnly(std::move(more));
  ASSERT_TRUE(WaitReady()) << log();
  static std::vector<std::string> undisturbed;  // the same for every cluster of this program
  if (undisturbed.empty()) {
    for (const Question& question : questions_) {
      const PlainAnswer answer = Ask(port(), question);
      ASSERT_EQ(answer.status, 200) << answer.body;
      undisturbed.push_back(answer.text);
    }
  }
  oracle_ = undisturbed;
  for (const std::string& text : oracle_) ASSERT_GT(text.size(), 200u) << text;
  ASSERT_NE(oracle_[1], oracle_[2]);
}

bool ClusterTest::WaitReady(milliseconds timeout) {
  return Eventually([&] { return IsReady() || serve_->Wait(seconds(0)) != kStillRunning; },
                    timeout) &&
         IsReady();
}

int ClusterTest::port() const { return cli::ReadGatewayPort(run_).value_or(0); }

pid_t ClusterTest::PidOf(const std::string& service) const {
  pid_t pid = 0;
  for (const absl::string_view line : absl::StrSplit(log(), '\n')) {
    const auto value = ParseJson({line.data(), line.size()});
    if (!value.ok() || !value->is_object()) continue;
    const json::object& object = value->as_object();
    if (TextOf(object.if_contains("message")) == "started" &&
        TextOf(object.if_contains("child")) == service) {
      pid = object.at("pid").to_number<pid_t>();
    }
  }
  return pid;
}

bool ClusterTest::IsReady() const {
  if (port() == 0) return false;
  HttpCall call(port(), {.method = "GET", .path = "/ready"});
  return call.ReadAll(seconds(8)) && call.status() == 200;
}

std::optional<v1::WorkerStatus> ClusterTest::WorkerStatus() const {
  const auto stub =
      v1::Inference::NewStub(MakeChannel(cli::WorkerAddress(run_), ChannelReuse::kOwnConnection));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + seconds(1));
  v1::WorkerStatus status;
  if (!stub->GetStatus(&context, {}, &status).ok()) return std::nullopt;
  return status;
}

bool ClusterTest::WaitForWorker(const std::function<bool(const v1::WorkerStatus&)>& condition,
                                milliseconds timeout) const {
  return Eventually(
      [&] {
        const auto status = WorkerStatus();
        return status && condition(*status);
      },
      timeout);
}

uint64_t ClusterTest::SegmentInode() const {
  struct stat info {};
  return ::stat(segment_.c_str(), &info) == 0 ? info.st_ino : 0;
}

void ClusterTest::ExpectUndisturbed() const {
  for (size_t i = 0; i < questions_.size(); ++i) {
    const PlainAnswer answer = Ask(port(), questions_[i]);
    EXPECT_EQ(answer.status, 200) << answer.body;
    EXPECT_EQ(answer.text, oracle_[i]);
  }
}

}  // namespace hearth::testing
