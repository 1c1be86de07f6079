// hearth-gpu-worker beside a real hearth-expert-store, on the demo model. The oracles are the demo
// model's recorded answers, and the text of an undisturbed run.
#include <thread>

#include "common/base/json.h"
#include "services/gpu-worker/process_testing.h"

namespace hearth::worker {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using namespace hearth::testing;  // NOLINT: test helpers
using std::chrono::milliseconds;
using std::chrono::seconds;

// A cancelled sequence must be gone after one step: far less than this, with a slow machine's
// share.
constexpr seconds kOneStep{5};

struct Row {
  std::string prompt, answer;
};

// Every `stride`-th row of the demo model's evaluation.
std::vector<Row> Rows(const fs::path& model, size_t stride) {
  const auto parsed = ParseJson(Slurp(model / "evaluation.json"));
  EXPECT_OK(parsed);
  std::vector<Row> rows;
  const json::array& all = parsed->as_array();
  for (size_t i = 0; i < all.size(); i += stride) {
    const json::object& row = all[i].as_object();
    rows.push_back({row.at("prompt").as_string().c_str(), row.at("answer").as_string().c_str()});
  }
  return rows;
}

TEST_F(WorkerProcessTest, GreedyAnswersAreTheRecordedOnesAloneAndEightAtOnce) {
  Start();
  const std::vector<Row> rows = Rows(model_, 25);
  ASSERT_EQ(rows.size(), 8u);
  for (const Row& row : rows) {
    const Answer answer = Generate(Question(row.prompt));
    EXPECT_OK(answer.status);
    EXPECT_EQ(answer.text, row.answer);
    EXPECT_EQ(answer.finish.reason(), v1::FINISH_REASON_STOP);
  }
  std::vector<Answer> answers(rows.size());
  std::vector<std::thread> clients;
  for (size_t i = 0; i < rows.size(); ++i) {
    clients.emplace_back([&, i] { answers[i] = Generate(Question(rows[i].prompt)); });
  }
  for (std::thread& client : clients) client.join();
  for (size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(answers[i].text, rows[i].answer);
}

TEST_F(WorkerProcessTest, KilledStoreChangesNoTextAndIsAttachedAgainWhenBack) {
  Start();
  const v1::GenerateRequest request = Endless(2000);
  const Answer undisturbed = Generate(request);
  ASSERT_EQ(undisturbed.finish.completion_tokens(), 2000);

  Call call(*stub_, request);
  call.ReadBytes(20);
  ASSERT_EQ(store_->Stop(SIGKILL), 128 + SIGKILL);
  EXPECT_EQ(Status().n_running(), 1) << "the store was not killed in the middle";
  EXPECT_EQ(call.ReadAll().text, undisturbed.text);
  EXPECT_TRUE(WaitForStatus([](const auto& s) { return !s.store_connected(); }, seconds(10)));
  EXPECT_EQ(Generate(request).text, undisturbed.text) << "a new request without a store";
  EXPECT_OK(ProbeHealth(address_, "ready", kProcessDeadline));

  store_ = StartStore();
  EXPECT_TRUE(WaitForStatus([](const auto& s) { return s.store_connected(); }, seconds(20)));
  EXPECT_EQ(Generate(request).text, undisturbed.text);
}

TEST_F(WorkerProcessTest, NewSegmentOfARestartedStoreIsTakenOverWhileTextIsGenerated) {
  Start();
  const v1::GenerateRequest request = Endless(2000);
  const std::string undisturbed = Generate(request).text;
  ASSERT_EQ(store_->Stop(SIGKILL), 128 + SIGKILL);
  ASSERT_TRUE(WaitForStatus([](const auto& s) { return !s.store_connected(); }, seconds(10)));
  fs::remove(segment_);
  Call call(*stub_, Endless(20000));
  call.ReadBytes(20);
  store_ = StartStore();
  EXPECT_TRUE(WaitForStatus([](const auto& s) { return s.store_connected(); }, seconds(20)));
  EXPECT_EQ(Status().n_running(), 1) << "the segment was not replaced in the middle";
  call.ReadBytes(undisturbed.size());
  EXPECT_EQ(call.answer().text.substr(0, undisturbed.size()), undisturbed);
  EXPECT_EQ(call.Cancel().status.code(), absl::StatusCode::kCancelled);
  // The removed file's memory is given back once nobody maps it: with the next step, whatever it
  // is.
  EXPECT_EQ(Generate(request).text, undisturbed);
  const fs::path maps = absl::StrCat("/proc/", worker_->pid(), "/maps");
  const std::string mapped = Slurp(maps);
  EXPECT_EQ(mapped.find(segment_.string() + " (deleted)"), std::string::npos);
  EXPECT_NE(mapped.find(segment_.string()), std::string::npos);
}

TEST_F(WorkerProcessTest, FrozenStoreDelaysNobodyAndIsNoticed) {
  Start();
  const v1::GenerateRequest request = Endless(2000);
  const std::string undisturbed = Generate(request).text;
  Call call(*stub_, request);
  call.ReadBytes(20);
  store_->Signal(SIGSTOP);
  EXPECT_EQ(call.ReadAll().text, undisturbed);
  EXPECT_TRUE(WaitForStatus([](const auto& s) { return !s.store_connected(); }, seconds(20)));
  EXPECT_EQ(Generate(request).text, undisturbed);
  store_->Signal(SIGCONT);
  EXPECT_TRUE(WaitForStatus([](const auto& s) { return s.store_connected(); }, seconds(20)));
}

TEST_F(WorkerProcessTest, WaitsForAStoreThatStartsLaterAndIsAliveMeanwhile) {
  worker_ = StartWorker();
  const auto waits = [](const v1::WorkerStatus& s) {
    return s.state() == v1::WORKER_STATE_WAITING_FOR_STORE;
  };
  ASSERT_TRUE(WaitForStatus(waits, seconds(20)));
  EXPECT_OK(ProbeHealth(address_, "", kProcessDeadline));
  EXPECT_THAT(ProbeHealth(address_, "ready", kProcessDeadline),
              IsStatus(absl::StatusCode::kFailedPrecondition, HasSubstr("")));
  EXPECT_THAT(Generate(Question("hi")).status,
              IsStatus(absl::StatusCode::kUnavailable, HasSubstr("not ready")));
  store_ = StartStore();
  EXPECT_TRUE(WaitReady()) << Slurp(log_);
  EXPECT_OK(Generate(Question("hi")).status);
}

TEST_F(WorkerProcessTest, CancelFreesThePlaceThatAFullQueueRefused) {
  Start({"--max-sequences", "1", "--queue-limit", "1"});
  Call running(*stub_, Endless(20000));
  running.ReadBytes(1);
  Call waiting(*stub_, Endless(20000));
  ASSERT_TRUE(WaitForStatus([](const auto& s) { return s.n_waiting() == 1; }, seconds(20)));
  EXPECT_THAT(Generate(Question("hi")).status,
              IsStatus(absl::StatusCode::kResourceExhausted,
                       AllOf(HasSubstr("the queue is full"), HasSubstr("the limit is 2"))));
  EXPECT_EQ(waiting.Cancel().status.code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(WaitForStatus([](const auto& s) { return s.n_waiting() == 0 && s.n_running() == 1; },
                            kOneStep));
  EXPECT_EQ(running.Cancel().status.code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(WaitForStatus(IsIdle, kOneStep));
  EXPECT_OK(Generate(Question("hi")).status);
}

TEST_F(WorkerProcessTest, DeadlineEndsARunningAndAWaitingRequest) {
  Start({"--max-sequences", "1"});
  Call running(*stub_, Endless(20000), seconds(3));
  running.ReadBytes(1);
  Call waiting(*stub_, Endless(20000), milliseconds(300));
  EXPECT_EQ(waiting.ReadAll().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_FALSE(waiting.answer().has_started);
  EXPECT_TRUE(WaitForStatus([](const auto& s) { return s.n_waiting() == 0 && s.n_running() == 1; },
                            kOneStep));
  EXPECT_EQ(running.ReadAll().status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(WaitForStatus(IsIdle, kOneStep));
}

TEST_F(WorkerProcessTest, ClientThatLeavesDuringPrefillEndsIt) {
  Start({"--max-batch-tokens", "32"});
  v1::GenerateRequest request;
  for (int i = 0; i < 30000; ++i) request.mutable_tokens()->add_ids(100 + i % 50);
  Call call(*stub_, request);
  call.ReadStarted();
  ASSERT_TRUE(WaitForStatus([](const auto& s) { return s.kv_pages_used() > 4; }, seconds(20)));
  EXPECT_EQ(call.Cancel().text, "") << "the prompt was read before the client left";
  EXPECT_TRUE(WaitForStatus(IsIdle, kOneStep));
}

TEST_F(WorkerProcessTest, AbsurdRequestsAreRefusedByFieldAndDisturbNobody) {
  Start({"--context", "2048"});
  const v1::GenerateRequest endless = Endless(2000);
  const std::string undisturbed = Generate(endless).text;
  Call other(*stub_, endless);
  other.ReadBytes(10);
  const struct {
    std::function<void(v1::GenerateRequest&)> damage;
    const char* message;
  } cases[] = {
      {[](auto& r) { r.mutable_sampling()->set_temperature(NAN); }, "temperature: "},
      {[](auto& r) { r.mutable_sampling()->set_top_k(-1); }, "top_k: -1"},
      {[](auto& r) { r.set_max_tokens(-5); }, "max_tokens: -5"},
      {[](auto& r) { r.set_max_tokens(1 << 30); }, "max_tokens: 1073741824"},
      {[](auto& r) { r.mutable_tokens()->add_ids(-1); }, "prompt: -1"},
      {[](auto& r) { r.clear_prompt(); }, "prompt: is missing"},
      {[](auto& r) { r.mutable_chat()->mutable_messages(0)->set_role("king"); },
       "messages[0].role: "},
      {[](auto& r) { r.mutable_chat()->add_tools_json(std::string(10000, '[')); }, "tools[0]: "},
  };
  for (const auto& c : cases) {
    v1::GenerateRequest request = Question("hi");
    c.damage(request);
    EXPECT_THAT(Generate(request).status,
                IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr(c.message)));
  }
  v1::GenerateRequest long_one = Question("hi");
  long_one.set_text(std::string(100000, 'x') + " y z" + std::string(99999, '.'));
  EXPECT_THAT(Generate(long_one).status,
              IsStatus(absl::StatusCode::kOutOfRange,
                       HasSubstr("prompt and answer together can have 2048")));
  EXPECT_EQ(other.ReadAll().text, undisturbed);
}

TEST_F(WorkerProcessTest, TextThatIsNotUtf8IsRefusedByGrpcAndNeverSent) {
  Start();
  // Such a message doesn't parse, so gRPC answers it (without a reason, in 1.51).
  v1::GenerateRequest request = Question("hi");
  request.set_text("\xff\xfe");
  EXPECT_FALSE(Generate(request).status.ok());
  // The vocabulary begins with the single bytes: parts of characters come as U+FFFD.
  for (int32_t id = 0; id < 300; ++id) {
    grpc::ClientContext context;
    v1::DetokenizeRequest part;
    part.add_ids(id);
    v1::DetokenizeResponse response;
    ASSERT_OK(FromGrpc(stub_->Detokenize(&context, part, &response))) << id;
  }
  v1::GenerateRequest echo;
  echo.mutable_tokens()->add_ids(200);
  echo.set_echo(true);
  echo.set_max_tokens(3);
  EXPECT_OK(Generate(echo).status);
}

TEST_F(WorkerProcessTest, SigtermLetsRunningRequestsEndWithinTheGraceAndExitsWithZero) {
  Start({"--grace-seconds", "60"});
  const Answer undisturbed = Generate(Endless(1500));
  Call call(*stub_, Endless(1500));
  call.ReadBytes(10);
  worker_->Signal(SIGTERM);
  const Answer answer = call.ReadAll();
  EXPECT_OK(answer.status);
  EXPECT_EQ(answer.text, undisturbed.text);
  EXPECT_EQ(worker_->Wait(kProcessDeadline), 0) << Slurp(log_);
}

TEST_F(WorkerProcessTest, SigtermEndsWhatOutlastsTheGraceWithUnavailable) {
  Start({"--grace-seconds", "0.2"});
  Call call(*stub_, Endless(20000));
  call.ReadBytes(10);
  worker_->Signal(SIGTERM);
  EXPECT_THAT(call.ReadAll().status,
              IsStatus(absl::StatusCode::kUnavailable, HasSubstr("shutting down")));
  EXPECT_EQ(worker_->Wait(kProcessDeadline), 0) << Slurp(log_);
}

TEST_F(WorkerProcessTest, SigtermWhileWaitingForTheStoreExitsWithZero) {
  worker_ = StartWorker();
  EXPECT_EQ(worker_->Stop(SIGTERM), 0) << Slurp(log_);
}

TEST_F(WorkerProcessTest, WrongModelsAndFlagsExitWithTwoAndOneClearLastLine) {
  const fs::path copy = folder_ / "copy";
  fs::copy(model_, copy, fs::copy_options::recursive);
  for (const auto& entry : fs::directory_iterator(copy)) {
    fs::permissions(entry.path(), fs::perms::owner_all);
  }
  const std::string config = Slurp(copy / "config.json");
  std::string llama = config;
  llama.replace(llama.find("qwen3_next"), 10, "llama");
  const auto write = [&](const char* name, const std::string& text) {
    std::ofstream(copy / name) << text;
  };
  const auto refused = [&](std::vector<std::string> more, const char* message) {
    std::vector<std::string> arguments = {HEARTH_GPU_WORKER, "--run-dir", run_.string()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    Process process(arguments, log_);
    EXPECT_EQ(process.Wait(kProcessDeadline), 2) << message;
    const std::string log = Slurp(log_);
    EXPECT_THAT(log.substr(log.rfind('\n', log.size() - 2) + 1),
                AllOf(::testing::StartsWith("hearth-gpu-worker: "), HasSubstr(message)));
  };
  refused({}, "--model");
  refused({"--model", "/no/such"}, "/no/such: there is no such folder; give the folder of");
  refused({"--model", run_.string()}, "has no config.json; give the folder of");
  refused({"--model", copy.string(), "--threads", "0"}, "--threads");
  refused({"--model", copy.string(), "--context", "40000"}, "positions end at 32768");
  refused({"--model", copy.string(), "--max-sequences", "9", "--max-batch-tokens", "9"},
          "--max-sequences: Value 9 must be less than --max-batch-tokens");
  write("config.json", llama);
  refused({"--model", copy.string()}, "model_type is \"llama\"");
  write("config.json", config);
  write("tokenizer.json", "{");
  refused({"--model", copy.string()}, "tokenizer.json");
  fs::resize_file(copy / "model-00002-of-00002.safetensors", 100000);
  refused({"--model", copy.string()}, "model-00002-of-00002.safetensors");
}

TEST_F(WorkerProcessTest, SecondWorkerOnOneSocketIsRefusedWithThePid) {
  worker_ = StartWorker();
  Process second(WorkerArguments(), folder_ / "second.log");
  EXPECT_EQ(second.Wait(kProcessDeadline), 2);
  EXPECT_THAT(Slurp(folder_ / "second.log"),
              HasSubstr(absl::StrCat("held by process ", worker_->pid())));
}

}  // namespace
}  // namespace hearth::worker
