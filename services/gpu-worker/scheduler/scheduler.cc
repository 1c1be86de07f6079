#include "services/gpu-worker/scheduler/scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace hearth::worker {
namespace {

// The most tokens that a sequence can have when it is alone.
int64_t TokensThatFit(Engine& engine, int64_t context_tokens) {
  const auto sequence = engine.NewSequence();
  int64_t fits = 0, too_many = context_tokens + 1;
  while (too_many - fits > 1) {
    const int64_t middle = fits + (too_many - fits) / 2;
    const bool fit = engine.PagesNeeded(*sequence, middle) <= engine.pages_total();
    (fit ? fits : too_many) = middle;
  }
  return fits;
}

int64_t Milliseconds(Clock::duration duration) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(duration).count();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Scheduler>> Scheduler::Start(Engine& engine,
                                                            const Tokenizer& tokenizer,
                                                            const SchedulerOptions& options,
                                                            SchedulerObserver& observer) {
  const BatchOptions& batch = options.batch;
  // One more than max_sequences: the probe's place.
  if (batch.max_sequences < 1 || batch.max_sequences >= batch.max_batch_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("max-sequences: ", batch.max_sequences,
                                                   " is not in 1 .. ", batch.max_batch_tokens - 1,
                                                   " (tokens that one step computes, less one)"));
  }
  if (batch.prefill_chunk < 1 || options.queue_limit < 0 || options.context_tokens < 2) {
    return absl::InvalidArgumentError(absl::StrCat(
        "prefill-chunk ", batch.prefill_chunk, " (at least 1), queue-limit ", options.queue_limit,
        " (at least 0) or context ", options.context_tokens, " (at least 2) is too small"));
  }
  auto scheduler = std::unique_ptr<Scheduler>(new Scheduler(engine, tokenizer, options, observer));
  if (scheduler->max_request_tokens_ < 2) {
    return absl::InvalidArgumentError(
        "kv-tokens: the KV pages hold less than two tokens; raise --kv-tokens");
  }
  scheduler->thread_ = std::thread([raw = scheduler.get()] { raw->Run(); });
  return scheduler;
}

Scheduler::Scheduler(Engine& engine, const Tokenizer& tokenizer, const SchedulerOptions& options,
                     SchedulerObserver& observer)
    : engine_(engine),
      tokenizer_(tokenizer),
      options_(options),
      observer_(observer),
      max_request_tokens_(TokensThatFit(engine, options.context_tokens)),
      batch_(engine, options.batch, observer) {
  published_.is_running = true;
  published_.pages_total = engine.pages_total();
}

Scheduler::~Scheduler() { Stop(); }

absl::Status Scheduler::Submit(GenerationRequest request,
                               const std::shared_ptr<OutputStream>& output) {
  const auto n_prompt = static_cast<int64_t>(request.prompt.size());
  if (n_prompt + 1 > max_request_tokens_) {
    observer_.OnRefused(absl::StatusCode::kOutOfRange);
    return absl::OutOfRangeError(
        absl::StrCat("prompt: has ", n_prompt, " tokens, but prompt and answer together can have ",
                     max_request_tokens_,
                     "; shorten it, or start the worker with more --context or --kv-tokens"));
  }
  const bool is_probe = request.is_probe;
  auto sequence = std::make_unique<Sequence>(std::move(request), output, tokenizer_,
                                             max_request_tokens_, Clock::now());
  output->SetWake([bell = doorbell_] {
    const std::lock_guard lock(bell->mutex);
    bell->rung = true;
    bell->changed.notify_all();
  });
  absl::Status refused;
  {
    const std::lock_guard lock(doorbell_->mutex);
    const int limit = options_.batch.max_sequences + options_.queue_limit;
    const int n_inside =
        static_cast<int>(inbox_.size()) + published_.n_waiting + published_.n_running;
    if (stopping_ || published_.is_draining || !published_.is_running) {
      refused = absl::UnavailableError("the worker is shutting down; try again in a few seconds");
    } else if (!is_probe && n_inside >= limit) {
      refused = absl::ResourceExhaustedError(absl::StrCat(
          "the queue is full: ", n_inside, " requests are running or waiting, the limit is ", limit,
          "; try again later"));
    } else {
      inbox_.push_back(std::move(sequence));
      doorbell_->rung = true;
      doorbell_->changed.notify_all();
    }
  }
  if (!refused.ok()) observer_.OnRefused(refused.code());
  return refused;
}

void Scheduler::Run() {
  while (TakeInbox()) {
    if (options_.before_step) options_.before_step();
    const bool worked = batch_.Step(Clock::now());
    Publish();
    if (const absl::Status lost = engine_.device_error(); !lost.ok()) {
      if (options_.on_lost) options_.on_lost(lost);
      break;
    }
    if (!worked) WaitForWork();
  }
  EndThread();
}

// Nothing is taken in any more, and what is there ends.
void Scheduler::EndThread() {
  {
    const std::lock_guard lock(doorbell_->mutex);
    published_.is_running = false;
  }
  TakeInbox();
  batch_.FailAll(absl::UnavailableError("the worker is shutting down"));
  Publish();
  const std::lock_guard lock(doorbell_->mutex);
  busy_since_.reset();
}

bool Scheduler::TakeInbox() {
  std::vector<std::unique_ptr<Sequence>> arrived;
  bool stopping = false;
  {
    const std::lock_guard lock(doorbell_->mutex);
    arrived.swap(inbox_);
    published_.n_waiting += static_cast<int>(arrived.size());
    doorbell_->rung = false;
    stopping = stopping_;
    if (!busy_since_.has_value()) busy_since_ = Clock::now();
  }
  for (auto& sequence : arrived) batch_.Add(std::move(sequence));
  return !stopping;
}

void Scheduler::Publish() {
  const std::lock_guard lock(doorbell_->mutex);
  published_.n_running = batch_.n_running();
  published_.n_waiting = batch_.n_waiting();
  published_.pages_used = engine_.pages_total() - engine_.pages_free();
  last_token_ = batch_.last_token();
  if (batch_.is_empty() && inbox_.empty()) doorbell_->changed.notify_all();  // for Drain
}

void Scheduler::WaitForWork() {
  const Clock::time_point deadline = batch_.NextDeadline();
  std::unique_lock lock(doorbell_->mutex);
  busy_since_.reset();
  const auto is_rung = [&] { return doorbell_->rung; };
  if (deadline == Clock::time_point::max()) {
    doorbell_->changed.wait(lock, is_rung);
  } else {
    doorbell_->changed.wait_until(lock, deadline, is_rung);
  }
}

SchedulerStatus Scheduler::status() {
  const Clock::time_point now = Clock::now();
  const uint64_t progress = engine_.progress();
  const std::lock_guard lock(doorbell_->mutex);
  SchedulerStatus status = published_;
  status.n_waiting += static_cast<int>(inbox_.size());
  if (last_token_.has_value()) status.ms_since_last_token = Milliseconds(now - *last_token_);
  if (!busy_since_.has_value() || progress != seen_progress_) {
    seen_progress_ = progress;
    progress_at_ = now;
  }
  if (busy_since_.has_value()) {
    status.ms_since_progress = Milliseconds(now - std::max(progress_at_, *busy_since_));
  }
  return status;
}

bool Scheduler::Drain(Clock::time_point deadline) {
  std::unique_lock lock(doorbell_->mutex);
  published_.is_draining = true;
  return doorbell_->changed.wait_until(lock, deadline, [&] {
    return inbox_.empty() && published_.n_running + published_.n_waiting == 0;
  });
}

void Scheduler::Stop() {
  {
    const std::lock_guard lock(doorbell_->mutex);
    stopping_ = true;
    doorbell_->rung = true;
    doorbell_->changed.notify_all();
  }
  engine_.Interrupt();
  if (thread_.joinable()) thread_.join();
}

}  // namespace hearth::worker
