// 10,000 random operations on a batch, checked against a simple model after each. Set
// HEARTH_SIMULATION_SEED to repeat a failure.
#include <cstdlib>
#include <random>

#include "common/testing/status_matchers.h"
#include "services/gpu-worker/scheduler/batch.h"
#include "services/gpu-worker/scheduler/testing.h"

namespace hearth::worker {
namespace {

using namespace std::chrono_literals;

constexpr int kPages = 40, kPageTokens = 4, kMaxBatchTokens = 24, kMaxSequences = 5;
constexpr int64_t kMaxTotal = 120;

struct Client {
  GenerationRequest request;
  std::shared_ptr<OutputStream> stream;
  testing::Received got;
  bool reads = true;  // a slow client reads nothing
  bool is_cancelled = false;
};

struct Counter : SchedulerObserver {
  void OnFinished(FinishReason, Seconds, int) override { ++finished; }
  void OnFailed(absl::StatusCode, int) override { ++failed; }
  void OnPreempted() override { ++preempted; }
  void OnGuesses(int n_guessed, int n_right) override { guessed += n_guessed, right += n_right; }
  int finished = 0, failed = 0, preempted = 0, guessed = 0, right = 0;
};

class Simulation {
 public:
  Simulation(uint64_t seed, Drafting drafting) : drafting_(drafting), random_(seed) {}

  void Run(int n_operations) {
    for (int i = 0; i < n_operations && !::testing::Test::HasFailure(); ++i) {
      Operate();
      Check();
    }
    for (Client& client : clients_) client.reads = true;
    for (int i = 0; i < 100000 && !batch_.is_empty(); ++i) {
      now_ += 600ms;  // past the pause after a failed step
      batch_.Step(now_);
      ReadAll();
    }
    CheckEnd();
  }

 private:
  int Pick(int n) { return static_cast<int>(random_() % static_cast<uint64_t>(n)); }

  void Operate() {
    const int dice = Pick(100);
    if (dice < 12) {
      Submit();
    } else if (dice < 16 && !clients_.empty()) {
      Client& client = Recent();
      client.stream->Cancel(absl::CancelledError("by the test"));
      client.is_cancelled = true;
    } else if (dice < 19 && !clients_.empty()) {
      Client& client = Recent();
      client.reads = !client.reads;
    } else if (dice < 20) {
      now_ += std::chrono::seconds(Pick(20));
    } else if (dice < 21) {
      (Pick(3) == 0 ? engine_.next_draft_error : engine_.next_error) =
          Pick(2) == 0 ? absl::UnavailableError("reloading") : absl::InternalError("broken step");
    } else {
      now_ += 10ms;
      batch_.Step(now_);
    }
    ReadAll();
  }

  Client& Recent() {
    const int n = static_cast<int>(clients_.size());
    return clients_[static_cast<size_t>(n - 1 - Pick(std::min(8, n)))];
  }

  void Submit() {
    GenerationRequest request;
    const int n_prompt = 1 + Pick(Pick(4) == 0 ? 100 : 12);
    for (int i = 0; i < n_prompt; ++i) request.prompt.push_back(1 + Pick(30));
    request.sampling.temperature = Pick(2) == 0 ? 0.f : 1.f;
    request.sampling.seed = random_();
    request.sampling.presence_penalty = 0.5f;
    request.max_tokens = 1 + Pick(60);
    request.stop_ids = {testing::kEos};
    request.return_token_ids = true;
    if (Pick(10) == 0) request.deadline = now_ + std::chrono::seconds(Pick(30));
    request.is_probe = false;
    auto stream = std::make_shared<OutputStream>(nullptr, 2 + Pick(8));
    batch_.Add(std::make_unique<Sequence>(request, stream, tokenizer_, kMaxTotal, now_));
    clients_.push_back({std::move(request), std::move(stream), {}, true, false});
  }

  void ReadAll() {
    for (Client& client : clients_) {
      if (client.reads) client.got.TakeAll(*client.stream);
    }
  }

  void Check() {
    EXPECT_LE(batch_.n_running(), kMaxSequences);
    EXPECT_GE(engine_.pages_free(), 0);
    EXPECT_EQ(engine_.n_states(), batch_.n_running());
    if (batch_.n_running() == 0) {
      EXPECT_EQ(engine_.pages_free(), kPages);
    }
    int n_open = 0;
    for (const Client& client : clients_) {
      const std::vector<int32_t>& ids = client.got.ids;
      if (client.got.n_ended == 0) ++n_open;
      if (ids.size() <= client_checked_[&client - clients_.data()]) continue;
      client_checked_[&client - clients_.data()] = ids.size();
      const auto want = testing::OracleTokens(client.request, kMaxTotal);
      ASSERT_LE(ids.size(), want.size());
      EXPECT_TRUE(std::equal(ids.begin(), ids.end(), want.begin())) << "a token differs";
    }
    EXPECT_GE(n_open, batch_.n_running() + batch_.n_waiting());
  }

  void CheckEnd() {
    EXPECT_TRUE(batch_.is_empty());
    EXPECT_EQ(engine_.n_states(), 0);
    EXPECT_EQ(engine_.pages_free(), kPages);
    int n_finished = 0;
    for (Client& client : clients_) {
      client.got.TakeAll(*client.stream);
      EXPECT_EQ(client.got.n_ended, 1);
      if (!client.got.finish.has_value()) continue;
      ++n_finished;
      EXPECT_EQ(client.got.ids, testing::OracleTokens(client.request, kMaxTotal));
    }
    EXPECT_EQ(counter_.finished, n_finished);
    EXPECT_EQ(counter_.finished + counter_.failed, static_cast<int>(clients_.size()));
    // The run exercised what it is for.
    EXPECT_GT(n_finished, static_cast<int>(clients_.size()) / 4);
    EXPECT_GT(counter_.failed, 20);
    EXPECT_GT(counter_.preempted, 20);
    if (drafting_ == Drafting::kOff) {
      EXPECT_EQ(engine_.n_draft_calls(), 0);
    } else {
      EXPECT_GT(counter_.right, 20);
      EXPECT_GT(counter_.guessed - counter_.right, 20);
    }
  }

  const Drafting drafting_;
  std::mt19937_64 random_;
  testing::FakeTokenizer tokenizer_;
  testing::FakeEngine engine_{kPages, kPageTokens, kMaxBatchTokens, kMaxDrafts};
  Counter counter_;
  ContinuousBatch batch_{engine_,
                         {.max_sequences = kMaxSequences,
                          .max_batch_tokens = kMaxBatchTokens,
                          .prefill_chunk = 8,
                          .drafting = drafting_},
                         counter_};
  Clock::time_point now_ = Clock::time_point(1h);
  std::vector<Client> clients_;
  std::map<std::ptrdiff_t, size_t> client_checked_;
};

TEST(BatchSimulation, TenThousandOperationsKeepTheInvariants) {
  std::vector<uint64_t> seeds = {1, 20261124, std::random_device()()};
  if (const char* given = std::getenv("HEARTH_SIMULATION_SEED")) seeds = {std::stoull(given)};
  for (const uint64_t seed : seeds) {
    SCOPED_TRACE("HEARTH_SIMULATION_SEED=" + std::to_string(seed));
    for (const Drafting drafting : {Drafting::kOff, Drafting::kOn, Drafting::kAuto}) {
      SCOPED_TRACE("drafting " + std::to_string(static_cast<int>(drafting)));
      Simulation(seed, drafting).Run(10000);
      if (HasFailure()) return;
    }
  }
}

// Nobody is starved: with patient clients every sequence is finished within the steps that its
// tokens and those before it take.
TEST(BatchSimulation, EveryRequestEndsWithinTheFairBound) {
  testing::FakeTokenizer tokenizer;
  testing::FakeEngine engine(kPages, kPageTokens, kMaxBatchTokens);
  SchedulerObserver observer;
  ContinuousBatch batch(
      engine, {.max_sequences = 4, .max_batch_tokens = kMaxBatchTokens, .prefill_chunk = 8},
      observer);
  std::vector<std::shared_ptr<OutputStream>> streams;
  constexpr int kRequests = 40, kOutput = 10;
  for (int i = 0; i < kRequests; ++i) {
    GenerationRequest request;
    request.prompt.assign(1 + static_cast<size_t>(i * 7) % 60, 1 + i % 20);
    request.max_tokens = kOutput;
    streams.push_back(std::make_shared<OutputStream>(nullptr, 1000));
    batch.Add(
        std::make_unique<Sequence>(request, streams.back(), tokenizer, kMaxTotal, Clock::now()));
  }
  int n_steps = 0;
  while (batch.Step(Clock::now())) ++n_steps;
  // One after the other: at most 60 prompt tokens in chunks of 8, then one step a token.
  EXPECT_LE(n_steps, kRequests * (60 / 8 + 1 + kOutput));
  for (const auto& stream : streams) {
    testing::Received got;
    got.TakeAll(*stream);
    EXPECT_TRUE(got.finish.has_value());
  }
}

}  // namespace
}  // namespace hearth::worker
