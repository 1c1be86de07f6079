// The store's background work once the experts are there: verify, quarantine, reload.
#include <condition_variable>

#include "common/base/logging.h"
#include "common/base/thread_pool.h"
#include "services/expert-store/loading/rate_limiter.h"
#include "services/expert-store/segment/expert_store.h"

namespace hearth::store {
namespace {

// Whoever computes goes first. Not SCHED_IDLE, which would let a busy worker keep this thread off
// the processor while it holds the lock that status() needs.
constexpr int kVerifyingNiceness = 19;

// Waits, unless stop is requested: then false.
bool WaitFor(std::chrono::milliseconds interval, const std::stop_token& stop) {
  std::mutex mutex;
  std::condition_variable_any stopped;
  std::unique_lock lock(mutex);
  stopped.wait_for(lock, stop, interval, [] { return false; });
  return !stop.stop_requested();
}

}  // namespace

void ExpertStore::VerifyForever(std::stop_token stop) {
  SetThisThreadsNiceness(kVerifyingNiceness);
  // What was just loaded was just checked; what was adopted was only sampled.
  const bool start_now = status().is_adopted;
  if (!start_now && !WaitFor(options_.verify_interval, stop)) return;
  do {
    VerifyPass(stop);
    CountHugePages();
  } while (WaitFor(options_.verify_interval, stop));
}

void ExpertStore::VerifyPass(std::stop_token stop) {
  RateLimiter limiter(options_.verify_bytes_per_second);
  for (int layer = 0; layer < writer_->info().n_layers; ++layer) {
    for (int e = 0; e < writer_->info().n_experts; ++e) {
      const uint64_t bytes = writer_->payload_bytes(layer, e);
      if (bytes == 0) continue;
      if (!limiter.Acquire(bytes, stop)) return;
      if (writer_->state(layer, e) != kExpertReady) {
        Repair(layer, e);  // its last reload failed
      } else if (writer_->Verify(layer, e).ok()) {
        const std::lock_guard lock(mutex_);
        ++status_.n_verified;
      } else {
        writer_->Quarantine(layer, e);
        {
          const std::lock_guard lock(mutex_);
          ++status_.n_checksum_failures;
          ++status_.n_quarantined;
        }
        LogError("expert is damaged in memory; reloading it", {{"layer", layer}, {"expert", e}});
        Repair(layer, e);
      }
    }
  }
}

void ExpertStore::Repair(int layer, int expert) {
  const absl::Status status = ReloadExpert(*checkpoint_, *writer_, layer, expert);
  if (!status.ok()) {
    writer_->Quarantine(layer, expert);
    LogError("damaged expert could not be reloaded; it stays unavailable",
             {{"layer", layer}, {"expert", expert}, {"reason", std::string(status.message())}});
    return;
  }
  const std::lock_guard lock(mutex_);
  --status_.n_quarantined;
  ++status_.n_verified;
  LogInfo("damaged expert is back", {{"layer", layer}, {"expert", expert}});
}

}  // namespace hearth::store
