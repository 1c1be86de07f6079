#include "services/gpu-worker/rpc/worker_metrics.h"

#include <string>

#include "common/metrics/metrics.h"

namespace hearth::worker {
namespace {

using Buckets = prometheus::Histogram::BucketBoundaries;

const Buckets& FirstTokenBuckets() {
  static const Buckets buckets = {0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120};
  return buckets;
}
const Buckets& InterTokenBuckets() {
  static const Buckets buckets = {0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.075,
                                  0.15,  0.3,    0.6,   1,    2,    5};
  return buckets;
}
const Buckets& EndToEndBuckets() {
  static const Buckets buckets = {0.1, 0.3, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640};
  return buckets;
}

prometheus::Family<prometheus::Counter>& AddFamily(prometheus::Registry& registry,
                                                   const std::string& name,
                                                   const std::string& help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry);
}

}  // namespace

WorkerMetrics::WorkerMetrics()
    : registry_(std::make_shared<prometheus::Registry>()),
      running_(AddGauge(*registry_, "hearth_num_requests_running", "Sequences in the batch")),
      waiting_(AddGauge(*registry_, "hearth_num_requests_waiting", "Requests in the queue")),
      kv_usage_(AddGauge(*registry_, "hearth_kv_cache_usage_perc", "Share of KV pages in use")),
      store_connected_(AddGauge(*registry_, "hearth_store_connected", "1 if the store answers")),
      experts_bytes_(AddGauge(*registry_, "hearth_tier_bytes", "Bytes that a tier holds",
                              {{"tier", "ram"}, {"component", "experts"}})),
      first_token_(AddHistogram(*registry_, "hearth_time_to_first_token_seconds",
                                "From a request's arrival to its first token",
                                FirstTokenBuckets())),
      inter_token_(AddHistogram(*registry_, "hearth_inter_token_latency_seconds",
                                "Between two tokens of a sequence", InterTokenBuckets())),
      end_to_end_(AddHistogram(*registry_, "hearth_e2e_request_latency_seconds",
                               "From a request's arrival to its end", EndToEndBuckets())),
      step_(AddHistogram(*registry_, "hearth_engine_step_seconds", "One forward pass of the batch",
                         InterTokenBuckets())),
      prompt_tokens_(AddCounter(*registry_, "hearth_prompt_tokens_total",
                                "Tokens of prompts that were read to the end")),
      generation_tokens_(
          AddCounter(*registry_, "hearth_generation_tokens_total", "Tokens produced for requests")),
      preemptions_(AddCounter(*registry_, "hearth_num_preemptions_total",
                              "Sequences that gave up their pages to be computed again")),
      prefill_rows_(AddCounter(*registry_, "hearth_engine_rows_total", "Rows computed in steps",
                               {{"kind", "prefill"}})),
      decode_rows_(AddCounter(*registry_, "hearth_engine_rows_total", "Rows computed in steps",
                              {{"kind", "decode"}})),
      drafted_tokens_(AddCounter(*registry_, "hearth_spec_decode_num_draft_tokens_total",
                                 "Tokens guessed by multi-token prediction")),
      accepted_tokens_(
          AddCounter(*registry_, "hearth_spec_decode_num_accepted_tokens_total",
                     "Guesses that were right: tokens that took no step of their own")),
      success_(AddFamily(*registry_, "hearth_request_success_total", "Requests that finished")),
      failure_(AddFamily(*registry_, "hearth_request_failure_total",
                         "Requests refused or ended by an error, by gRPC's code")),
      expert_uses_(AddFamily(*registry_, "hearth_expert_uses_total",
                             "Experts looked up, once for each step that used one")),
      stop_(success_.Add({{"finished_reason", "stop"}})),
      length_(success_.Add({{"finished_reason", "length"}})),
      expert_cache_(*registry_) {
  // Rates need the zero before the first event.
  for (const absl::StatusCode code :
       {absl::StatusCode::kCancelled, absl::StatusCode::kDeadlineExceeded,
        absl::StatusCode::kInvalidArgument, absl::StatusCode::kResourceExhausted,
        absl::StatusCode::kUnavailable}) {
    failure_.Add({{"code", absl::StatusCodeToString(code)}});
  }
}

void WorkerMetrics::OnRefused(absl::StatusCode code) { OnFailed(code, 0); }

void WorkerMetrics::OnFirstToken(Seconds since_submit, int prompt_tokens) {
  first_token_.Observe(since_submit.count());
  prompt_tokens_.Increment(prompt_tokens);
  generation_tokens_.Increment();
}

void WorkerMetrics::OnToken(Seconds since_previous) {
  inter_token_.Observe(since_previous.count());
  generation_tokens_.Increment();
}

void WorkerMetrics::OnFinished(FinishReason reason, Seconds since_submit, int /*tokens*/) {
  end_to_end_.Observe(since_submit.count());
  (reason == FinishReason::kStop ? stop_ : length_).Increment();
}

void WorkerMetrics::OnFailed(absl::StatusCode code, int /*tokens*/) {
  failure_.Add({{"code", absl::StatusCodeToString(code)}}).Increment();
}

void WorkerMetrics::OnGuesses(int guessed, int right) {
  drafted_tokens_.Increment(guessed);
  accepted_tokens_.Increment(right);
}

void WorkerMetrics::OnStep(Seconds duration, int prefill_tokens, int decode_tokens) {
  step_.Observe(duration.count());
  prefill_rows_.Increment(prefill_tokens);
  decode_rows_.Increment(decode_tokens);
}

void WorkerMetrics::Refresh(const ServingState& state, const AttachedExperts* experts,
                            const ExpertTier* tier) {
  const v1::WorkerStatus status = state.Status();
  running_.Set(status.n_running());
  waiting_.Set(status.n_waiting());
  const auto used = static_cast<double>(status.kv_pages_used());
  const auto total = static_cast<double>(status.kv_pages_total());
  kv_usage_.Set(total > 0 ? used / total : 0);
  store_connected_.Set(status.store_connected() ? 1 : 0);
  if (experts == nullptr) return;
  experts_bytes_.Set(static_cast<double>(experts->segment_bytes()));
  const std::vector<uint64_t> uses = experts->UsesByLayer();
  for (size_t layer = 0; layer < uses.size(); ++layer) {
    prometheus::Counter& counter = expert_uses_.Add({{"layer", std::to_string(layer)}});
    counter.Increment(static_cast<double>(uses[layer]) - counter.Value());
  }
  expert_cache_.Refresh(tier, *experts);
}

}  // namespace hearth::worker
