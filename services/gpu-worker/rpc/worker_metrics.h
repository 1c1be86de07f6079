// The worker's Prometheus metrics, under vLLM's names after hearth_; docs/metrics.md lists them.
#pragma once

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "services/gpu-worker/experts/attached_experts.h"
#include "services/gpu-worker/rpc/expert_cache_metrics.h"
#include "services/gpu-worker/rpc/serving_state.h"
#include "services/gpu-worker/scheduler/observer.h"

namespace hearth::worker {

class WorkerMetrics final : public SchedulerObserver {
 public:
  WorkerMetrics();
  const std::shared_ptr<prometheus::Registry>& registry() const { return registry_; }

  void OnRefused(absl::StatusCode code) override;
  void OnFirstToken(Seconds since_submit, int prompt_tokens) override;
  void OnToken(Seconds since_previous) override;
  void OnFinished(FinishReason reason, Seconds since_submit, int tokens) override;
  void OnFailed(absl::StatusCode code, int tokens) override;
  void OnPreempted() override { preemptions_.Increment(); }
  void OnGuesses(int guessed, int right) override;
  void OnStep(Seconds duration, int prefill_tokens, int decode_tokens) override;

  // Before each scrape. `experts` is null before the model is known, `tier` where the backend has
  // no expert cache.
  void Refresh(const ServingState& state, const AttachedExperts* experts,
               const ExpertTier* tier = nullptr);

 private:
  std::shared_ptr<prometheus::Registry> registry_;
  prometheus::Gauge &running_, &waiting_, &kv_usage_, &store_connected_, &experts_bytes_;
  prometheus::Histogram &first_token_, &inter_token_, &end_to_end_, &step_;
  prometheus::Counter &prompt_tokens_, &generation_tokens_, &preemptions_;
  prometheus::Counter &prefill_rows_, &decode_rows_;
  prometheus::Counter &drafted_tokens_, &accepted_tokens_;
  prometheus::Family<prometheus::Counter>&success_, &failure_, &expert_uses_;
  prometheus::Counter &stop_, &length_;
  ExpertCacheMetrics expert_cache_;
};

}  // namespace hearth::worker
