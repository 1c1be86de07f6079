#include "services/gpu-worker/rpc/worker_metrics.h"

#include "common/metrics/metrics.h"
#include "services/gpu-worker/rpc/testing.h"

namespace hearth::worker {
namespace {

using ::testing::HasSubstr;
using Seconds = SchedulerObserver::Seconds;

class WorkerMetricsTest : public testing::ServedFakeTest {
 protected:
  WorkerMetrics metrics_;
};

TEST_F(WorkerMetricsTest, EventsAreCountedUnderTheDashboardsNames) {
  metrics_.OnFirstToken(Seconds(0.02), 7);
  metrics_.OnToken(Seconds(0.003));
  metrics_.OnToken(Seconds(0.003));
  metrics_.OnFinished(FinishReason::kStop, Seconds(0.2), 3);
  metrics_.OnRefused(absl::StatusCode::kResourceExhausted);
  metrics_.OnPreempted();
  metrics_.OnGuesses(6, 4);
  metrics_.OnStep(Seconds(0.003), 7, 2);
  metrics_.Refresh(state_, nullptr);
  const std::string text = RenderMetrics(*metrics_.registry());
  for (const char* line : {
           "\nhearth_generation_tokens_total 3\n",
           "\nhearth_prompt_tokens_total 7\n",
           "\nhearth_num_requests_running 0\n",
           "\nhearth_num_requests_waiting 0\n",
           "\nhearth_kv_cache_usage_perc 0\n",
           "\nhearth_time_to_first_token_seconds_bucket{le=\"0.01\"} 0\n",
           "\nhearth_time_to_first_token_seconds_bucket{le=\"0.025\"} 1\n",
           "\nhearth_inter_token_latency_seconds_count 2\n",
           "\nhearth_e2e_request_latency_seconds_count 1\n",
           "\nhearth_num_preemptions_total 1\n",
           "hearth_tier_bytes{component=\"experts\",tier=\"ram\"} 0\n",
           "\nhearth_store_connected 0\n",
           "hearth_request_success_total{finished_reason=\"stop\"} 1\n",
           "hearth_request_failure_total{code=\"RESOURCE_EXHAUSTED\"} 1\n",
           "hearth_request_failure_total{code=\"CANCELLED\"} 0\n",
           "hearth_engine_rows_total{kind=\"prefill\"} 7\n",
           "\nhearth_spec_decode_num_draft_tokens_total 6\n",
           "\nhearth_spec_decode_num_accepted_tokens_total 4\n",
       }) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

TEST_F(WorkerMetricsTest, GaugesShowWhatRunsAndHowManyPagesItHas) {
  Serve();
  engine_.Allow(1);
  GenerationRequest request;
  request.prompt.assign(32, 1);  // 8 of 64 pages
  request.max_tokens = 5;
  const auto stream = std::make_shared<OutputStream>(nullptr);
  ASSERT_OK(scheduler_->Submit(std::move(request), stream));
  ASSERT_TRUE(Eventually([&] { return scheduler_->status().pages_used == 8; }));
  state_.SetStoreConnected(true);
  metrics_.Refresh(state_, nullptr);
  const std::string text = RenderMetrics(*metrics_.registry());
  EXPECT_THAT(text, HasSubstr("\nhearth_num_requests_running 1\n"));
  EXPECT_THAT(text, HasSubstr("\nhearth_kv_cache_usage_perc 0.125\n"));
  EXPECT_THAT(text, HasSubstr("\nhearth_store_connected 1\n"));
  scheduler_->Stop();
}

TEST_F(WorkerMetricsTest, ExpertCacheIsCountedByLayer) {
  const CacheShape shape{.n_layers = 2, .n_experts = 4, .n_slots = 3};
  TierBoard board(shape, {}, 1000, {{"vram", "expert cache", 3000}});
  const auto cache = ExpertCache::Create(shape, "lru");
  ASSERT_OK(cache);
  const ExpertUse uses[] = {{1, 2, 1}, {1, 3, 1}};
  (*cache)->RecordStep(uses);
  (*cache)->Publish((*cache)->PlanAdmissions(1)[0]);
  (*cache)->RecordStep(uses);
  const TierWork work = {.pcie_bytes = 1000,
                         .in_place_bytes = 2000,
                         .cpu_bytes = 3000,
                         .cpu_seconds = 0.5,
                         .awaited_seconds = 0.25,
                         .zero_copy_share = 0.125};
  board.Sync(cache->get(), work);
  const AttachedExperts experts(2, 4);
  metrics_.Refresh(state_, &experts, &board);
  ASSERT_OK(board.SetPolicy("prompt"));
  board.Sync(cache->get(), work);
  metrics_.Refresh(state_, &experts, &board);  // counts are not added twice
  const std::string text = RenderMetrics(*metrics_.registry());
  for (const char* line : {
           "hearth_expert_cache_hits_total{layer=\"1\"} 1\n",
           "hearth_expert_cache_misses_total{layer=\"1\"} 3\n",
           "hearth_expert_cache_misses_total{layer=\"0\"} 0\n",
           "hearth_expert_cache_admissions_total{layer=\"1\"} 1\n",
           "hearth_expert_cache_evictions_total{layer=\"1\"} 0\n",
           "hearth_expert_bytes_total{path=\"pcie\"} 1000\n",
           "hearth_expert_bytes_total{path=\"zero_copy\"} 2000\n",
           "hearth_expert_bytes_total{path=\"cpu\"} 3000\n",
           "hearth_expert_cpu_seconds_total{kind=\"computed\"} 0.5\n",
           "hearth_expert_cpu_seconds_total{kind=\"awaited\"} 0.25\n",
           "hearth_expert_cache_slots{state=\"free\"} 2\n",
           "hearth_expert_cache_slots{state=\"resident\"} 1\n",
           "hearth_expert_cache_slots{state=\"loading\"} 0\n",
           "hearth_expert_cache_policy{policy=\"lru\"} 0\n",
           "hearth_expert_cache_policy{policy=\"prompt\"} 1\n",
           "hearth_tier_bytes{component=\"expert cache\",tier=\"vram\"} 3000\n",
           "hearth_tier_bytes{component=\"experts\",tier=\"ram\"} 0\n",
       }) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

TEST_F(WorkerMetricsTest, WithoutExpertCacheItsCountsAreZeros) {
  const AttachedExperts experts(2, 4);
  metrics_.Refresh(state_, &experts);
  const std::string text = RenderMetrics(*metrics_.registry());
  EXPECT_THAT(text, HasSubstr("hearth_expert_cache_hits_total{layer=\"1\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("hearth_expert_cache_policy{policy=\"none\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("hearth_expert_bytes_total{path=\"pcie\"} 0\n"));
}

}  // namespace
}  // namespace hearth::worker
