// A served model over the scheduler's small deterministic engine, for tests of this folder.
#pragma once

#include <thread>

#include "common/testing/status_matchers.h"
#include "services/gpu-worker/rpc/serving_state.h"
#include "services/gpu-worker/scheduler/testing.h"

namespace hearth::worker::testing {

inline constexpr int64_t kContext = 200;

class ServedFakeTest : public ::testing::Test {
 protected:
  void Serve(SchedulerOptions options = {}) {
    options.batch.max_sequences = 2;
    options.batch.max_batch_tokens = 32;
    options.context_tokens = kContext;
    ASSERT_OK_AND_ASSIGN(scheduler_, Scheduler::Start(engine_, tokenizer_, options, observer_));
    ASSERT_OK_AND_ASSIGN(
        template_,
        ChatTemplate::Parse("{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
                            "{% if tools %}tools {{ tools | length }}{% endif %}"));
    model_.tokenizer = &tokenizer_;
    model_.chat_template = template_.get();
    model_.scheduler = scheduler_.get();
    model_.observer = &observer_;
    model_.config.vocab_size = kVocab;
    model_.config.eos_token_ids = {kEos};
    model_.info.set_id("fake");
    state_.Publish(&model_);
    state_.Set(v1::WORKER_STATE_READY, "ready", 1);
    state_.SetExpertsAttached();
  }
  template <typename Condition>
  static bool Eventually(Condition condition) {
    return Within(std::chrono::seconds(20), condition);
  }
  // True once `condition` holds.
  template <typename Condition>
  static bool Within(Clock::duration time, Condition condition) {
    const auto deadline = Clock::now() + time;
    while (!condition()) {
      if (Clock::now() > deadline) return false;
      std::this_thread::yield();
    }
    return true;
  }

  FakeTokenizer tokenizer_;
  FakeEngine engine_{64, 4, 32};
  SchedulerObserver observer_;
  std::unique_ptr<ChatTemplate> template_;
  ServedModel model_;
  ServingState state_;
  std::unique_ptr<Scheduler> scheduler_;  // before the engine goes
};

}  // namespace hearth::worker::testing
