// A small deterministic engine and tokenizer for tests of the scheduler and of the service, and the
// oracle: what a request's tokens must be whatever runs beside it.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "common/text/tokenizer.h"
#include "services/gpu-worker/engine/engine.h"
#include "services/gpu-worker/sampling/random.h"
#include "services/gpu-worker/sampling/sampler.h"
#include "services/gpu-worker/sampling/top_logits_testing.h"
#include "services/gpu-worker/scheduler/output_stream.h"
#include "services/gpu-worker/scheduler/request.h"

namespace hearth::worker::testing {

inline constexpr int kVocab = 32;
inline constexpr int32_t kEos = 0;
inline constexpr int32_t kDamaged = 31;  // a prompt that begins with it gets NaN logits

// Token 0 is special; 1 .. 26 are letters, the rest a space.
class FakeTokenizer final : public Tokenizer {
 public:
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              const EncodeOptions&) const override {
    std::vector<int32_t> ids;
    for (const char c : text) ids.push_back(c >= 'a' && c <= 'z' ? c - 'a' + 1 : 27);
    return ids;
  }
  absl::StatusOr<std::string> Decode(std::span<const int32_t> ids, bool) const override {
    std::string text;
    for (const int32_t id : ids) {
      if (id < 0 || id >= kVocab) return absl::InvalidArgumentError("ids: out of range");
      text += TokenBytes(id);
    }
    return text;
  }
  std::string_view TokenBytes(int32_t id) const override {
    if (id < 1 || id >= kVocab) return "";
    return id <= 26 ? kLetters.substr(static_cast<size_t>(id) - 1, 1) : " ";
  }
  bool IsSpecial(int32_t id) const override { return id == kEos; }
  std::optional<int32_t> TokenId(std::string_view) const override { return std::nullopt; }
  int32_t vocab_size() const override { return kVocab; }

 private:
  static constexpr std::string_view kLetters = "abcdefghijklmnopqrstuvwxyz";
};

// Logits that depend on every token before: a lost, doubled or reordered token changes all that
// follow.
inline uint64_t HashTokens(uint64_t hash, std::span<const int32_t> tokens) {
  for (const int32_t token : tokens) hash = MixBits(hash ^ static_cast<uint64_t>(token + 1));
  return hash;
}
inline std::vector<float> LogitsOf(uint64_t hash) {
  std::vector<float> logits(kVocab);
  for (uint64_t i = 0; i < kVocab; ++i) logits[i] = static_cast<float>(6 * UniformAt(hash, i));
  return logits;
}

class FakeEngine final : public Engine {
 public:
  FakeEngine(int64_t pages, int page_tokens, int max_batch_tokens, int max_drafts = 0)
      : pages_total_(pages),
        page_tokens_(page_tokens),
        max_batch_tokens_(max_batch_tokens),
        max_drafts_(max_drafts) {
    config_.vocab_size = kVocab;
  }
  ~FakeEngine() override { EXPECT_EQ(n_states_, 0); }

  const ModelConfig& config() const override { return config_; }
  std::string_view backend() const override { return "fake"; }
  std::unique_ptr<SequenceState> NewSequence() override { return std::make_unique<State>(*this); }
  int64_t PagesNeeded(const SequenceState& state, int64_t n) const override {
    return PagesOf(state.n_tokens() + n) - PagesOf(state.n_tokens());
  }
  int64_t pages_free() const override { return pages_total_ - pages_used_; }
  int64_t pages_total() const override { return pages_total_; }

  absl::Status Step(std::span<const StepItem> items, StepLogits* logits) override {
    WaitWhileHeld();
    if (interrupted_) return absl::CancelledError("interrupted");
    ++progress_;
    ++n_steps_;
    std::set<const SequenceState*> states;
    int64_t n_tokens = 0, pages = 0;
    for (const StepItem& item : items) {
      EXPECT_TRUE(states.insert(item.state).second);
      EXPECT_FALSE(item.tokens.empty());
      EXPECT_LT(item.n_drafts, static_cast<int>(item.tokens.size()));
      EXPECT_LE(item.n_drafts, max_drafts_);
      n_tokens += static_cast<int64_t>(item.tokens.size());
      pages += PagesNeeded(*item.state, static_cast<int64_t>(item.tokens.size()));
    }
    EXPECT_LE(n_tokens, max_batch_tokens_);
    largest_step_ = std::max(largest_step_, n_tokens);
    if (pages > pages_free()) return absl::ResourceExhaustedError("pages");
    if (!next_error.ok()) return std::exchange(next_error, absl::OkStatus());
    logits->values.clear();
    logits->n_rows = 0;
    row_temperatures_.clear();
    for (const StepItem& item : items) Feed(item, logits);
    KeepRows(logits);
    return absl::OkStatus();
  }
  absl::StatusOr<std::span<const float>> ReadLogits(int row) override {
    ++n_reads_;
    EXPECT_LT(row, kept_.n_rows);
    if (!next_read_error.ok()) return std::exchange(next_read_error, absl::OkStatus());
    const auto values = kept_.Row(row, kVocab);
    read_ = std::vector<float>(values.begin(), values.end());  // what was read before is gone
    return read_;
  }
  absl::Status device_error() const override { return lost; }
  int max_drafts() const override { return max_drafts_; }
  absl::Status Draft(std::span<const DraftItem> items, int depth, StepLogits* logits) override {
    EXPECT_LT(depth, max_drafts_);
    ++n_draft_calls_;
    if (!next_draft_error.ok()) return std::exchange(next_draft_error, absl::OkStatus());
    logits->values.clear();
    logits->n_rows = 0;
    row_temperatures_.clear();
    for (const DraftItem& item : items) {
      auto& state = static_cast<State&>(*item.state);
      EXPECT_GT(state.n, 0);
      EXPECT_EQ(state.guessed.size(), static_cast<size_t>(depth));
      state.guessed.push_back(item.token);
      // What the model will say, or, for every third, something else.
      uint64_t hash = HashTokens(state.hashes.back(), state.guessed);
      if (hash % 3 == 0) hash = MixBits(hash);
      AddRow(LogitsOf(hash), item.temperature, logits);
    }
    KeepRows(logits);
    return absl::OkStatus();
  }
  void Rollback(SequenceState& sequence, int n_tokens) override {
    auto& state = static_cast<State&>(sequence);
    ASSERT_LT(static_cast<size_t>(n_tokens), state.hashes.size());
    state.hashes.resize(state.hashes.size() - static_cast<size_t>(n_tokens));
    pages_used_ -= PagesOf(state.n) - PagesOf(state.n - n_tokens);
    state.n -= n_tokens;
  }
  uint64_t progress() const override { return progress_; }
  void Interrupt() override {
    interrupted_ = true;
    Release();
  }
  void ClearInterrupt() override { interrupted_ = false; }
  absl::Status ReadDeltaState(const SequenceState&, int, std::vector<float>*,
                              std::vector<float>*) const override {
    return absl::UnimplementedError("fake");
  }
  void SetObserver(TensorObserver) override {}

  // Stops the next step before it computes, until Release or so many steps are allowed.
  void Hold() { Allow(0); }
  void Release() { Allow(INT64_MAX); }
  void Allow(int64_t n_steps) {
    const std::lock_guard lock(mutex_);
    allowed_ = n_steps;
    changed_.notify_all();
  }
  void AwaitHeld() {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, std::chrono::seconds(20), [&] { return held_; }));
  }

  absl::Status next_error;        // of the next step
  absl::Status lost;              // once not OK: the device's error
  absl::Status next_draft_error;  // of the next Draft
  absl::Status next_read_error;   // of the next ReadLogits
  int top_of_each = 0;            // largest logits that rows are given by; 0: rows are whole
  int64_t n_reads() const { return n_reads_; }
  int64_t n_draft_calls() const { return n_draft_calls_; }
  int n_states() const { return n_states_; }
  int64_t n_steps() const { return n_steps_; }
  int64_t largest_step() const { return largest_step_; }

 private:
  struct State final : SequenceState {
    explicit State(FakeEngine& owner) : engine(owner) { ++engine.n_states_; }
    ~State() override {
      --engine.n_states_;
      engine.pages_used_ -= engine.PagesOf(n);
    }
    int64_t n_tokens() const override { return n; }
    FakeEngine& engine;
    int64_t n = 0;
    std::vector<uint64_t> hashes = {
        0};                        // after the last token that is no draft, and after each draft
    std::vector<int32_t> guessed;  // since the last step
    bool damaged = false;
  };

  int64_t PagesOf(int64_t n) const { return (n + page_tokens_ - 1) / page_tokens_; }

  void Feed(const StepItem& item, StepLogits* logits) {
    auto& state = static_cast<State&>(*item.state);
    pages_used_ += PagesNeeded(state, static_cast<int64_t>(item.tokens.size()));
    if (state.n == 0) state.damaged = item.tokens.front() == kDamaged;
    state.n += static_cast<int64_t>(item.tokens.size());
    state.guessed.clear();
    uint64_t hash = state.hashes.back();
    state.hashes.clear();
    const size_t n_sure = item.tokens.size() - static_cast<size_t>(item.n_drafts);
    for (size_t i = 0; i < item.tokens.size(); ++i) {
      hash = HashTokens(hash, item.tokens.subspan(i, 1));
      if (i + 1 >= n_sure) state.hashes.push_back(hash);
      const bool is_last = i + 1 == item.tokens.size();
      if (item.logits == LogitsWanted::kNone) continue;
      if (item.logits == LogitsWanted::kLast && !is_last) continue;
      std::vector<float> row = LogitsOf(hash);
      if (state.damaged) row[3] = std::numeric_limits<float>::quiet_NaN();
      AddRow(row, item.temperature, logits);
    }
  }
  void AddRow(const std::vector<float>& row, std::optional<float> temperature, StepLogits* logits) {
    logits->values.insert(logits->values.end(), row.begin(), row.end());
    row_temperatures_.push_back(temperature);
    ++logits->n_rows;
  }
  void KeepRows(StepLogits* logits) {
    logits->top.clear();
    if (top_of_each == 0) return;
    for (size_t i = 0; i < row_temperatures_.size(); ++i) {
      ASSERT_TRUE(row_temperatures_[i].has_value());
      logits->top.push_back(TopOf(logits->Row(static_cast<int>(i), kVocab), *row_temperatures_[i],
                                  /*error=*/0, top_of_each));
    }
    kept_.values = std::exchange(logits->values, {});
    kept_.n_rows = logits->n_rows;
  }

  void WaitWhileHeld() {
    std::unique_lock lock(mutex_);
    held_ = allowed_ == 0;
    changed_.notify_all();
    changed_.wait(lock, [&] { return allowed_ > 0; });
    held_ = false;
    if (allowed_ != INT64_MAX) --allowed_;
  }

  ModelConfig config_;
  const int64_t pages_total_;
  const int page_tokens_;
  const int max_batch_tokens_;
  const int max_drafts_;
  int64_t n_draft_calls_ = 0;
  StepLogits kept_;  // the last rows, where they were given by their largest
  std::vector<std::optional<float>> row_temperatures_;
  std::vector<float> read_;
  int64_t n_reads_ = 0;
  std::atomic<int64_t> pages_used_{0};
  std::atomic<int> n_states_{0};
  std::atomic<int64_t> n_steps_{0};
  int64_t largest_step_ = 0;
  std::atomic<uint64_t> progress_{0};
  std::atomic<bool> interrupted_{false};
  std::mutex mutex_;
  std::condition_variable changed_;
  int64_t allowed_ = INT64_MAX;  // guarded by mutex_
  bool held_ = false;            // guarded by mutex_
};

// The tokens of a request without stop strings, computed alone.
inline std::vector<int32_t> OracleTokens(const GenerationRequest& request, int64_t max_total) {
  Sampler sampler;
  TokenCounts counts;
  counts.AddPrompt(request.prompt);
  std::vector<int32_t> output;
  uint64_t hash = HashTokens(0, request.prompt);
  const auto n_prompt = static_cast<int64_t>(request.prompt.size());
  while (true) {
    const auto n = static_cast<int64_t>(output.size());
    const int32_t id =
        sampler.Sample(request.sampling, counts, static_cast<uint64_t>(n), LogitsOf(hash))->id;
    output.push_back(id);
    counts.AddOutput(id);
    hash = HashTokens(hash, {&id, 1});
    const auto& stops = request.stop_ids;
    if (std::find(stops.begin(), stops.end(), id) != stops.end()) return output;
    if (n + 1 >= request.max_tokens || n_prompt + n + 1 >= max_total) return output;
  }
}

inline std::string OracleText(const GenerationRequest& request, int64_t max_total) {
  return *FakeTokenizer().Decode(OracleTokens(request, max_total), true);
}

// What a client has received so far.
struct Received {
  int n_started = 0, n_ended = 0;
  std::string text;
  std::vector<int32_t> ids;
  std::vector<SampledToken> logprobs;
  std::optional<FinishEvent> finish;
  absl::Status error;

  void Take(GenerationEvent event) {
    EXPECT_EQ(n_ended, 0) << "an event after the end";
    if (std::holds_alternative<StartedEvent>(event)) {
      EXPECT_EQ(n_started++, 0);
    } else if (auto* delta = std::get_if<DeltaEvent>(&event)) {
      EXPECT_EQ(n_started, 1);
      text += delta->text;
      ids.insert(ids.end(), delta->token_ids.begin(), delta->token_ids.end());
      logprobs.insert(logprobs.end(), delta->logprobs.begin(), delta->logprobs.end());
    } else if (auto* end = std::get_if<FinishEvent>(&event)) {
      ++n_ended;
      finish = *end;
    } else {
      ++n_ended;
      error = std::get<absl::Status>(event);
    }
  }
  bool TakeOne(OutputStream& stream) {
    auto event = stream.Pop();
    const bool is_there = event.has_value();
    if (is_there) Take(*std::move(event));
    return is_there;
  }
  void TakeAll(OutputStream& stream) {
    while (TakeOne(stream)) {
    }
  }
};

}  // namespace hearth::worker::testing
