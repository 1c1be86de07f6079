#include "services/gpu-worker/rpc/readiness.h"

#include <atomic>
#include <utility>

#include "common/base/logging.h"

namespace hearth::worker {

struct Readiness::Probe {
  std::atomic<bool> in_flight{false};
  std::atomic<bool> last_ok{false};
};

Readiness::Readiness(const ServingState* state, const Limits& limits)
    : state_(state), limits_(limits), probe_(std::make_shared<Probe>()) {}

bool Readiness::IsAlive() const {
  const ServedModel* model = state_->model();
  if (model == nullptr) return true;
  const SchedulerStatus status = model->scheduler->status();
  if (status.is_draining) return true;
  return status.is_running && status.ms_since_progress <= limits_.stuck.count();
}

bool Readiness::IsReady() {
  const ServedModel* model = state_->model();
  if (model == nullptr || !state_->CheckServing().ok() || !state_->experts_attached()) {
    return false;
  }
  if (!IsAlive()) return false;
  const SchedulerStatus status = model->scheduler->status();
  if (status.is_draining) return false;
  if (status.ms_since_last_token >= 0 && status.ms_since_last_token <= limits_.token_age.count()) {
    probe_->last_ok = true;
    return true;
  }
  if (!probe_->in_flight.exchange(true)) StartProbe(*model);
  return probe_->last_ok;
}

void Readiness::StartProbe(const ServedModel& model) {
  GenerationRequest request;
  request.prompt = {0};
  request.sampling.temperature = 0;
  request.max_tokens = 1;
  request.deadline = Clock::now() + limits_.probe;
  request.is_probe = true;
  // The callback needs the stream, which is made with the callback: through a weak pointer.
  auto holder = std::make_shared<std::weak_ptr<OutputStream>>();
  auto stream = std::make_shared<OutputStream>([holder, probe = probe_] {
    const auto alive = holder->lock();
    while (alive != nullptr) {
      const auto event = alive->Pop();
      if (!event.has_value()) return;
      if (!EndsStream(*event)) continue;
      const auto* error = std::get_if<absl::Status>(&*event);
      probe->last_ok = error == nullptr;
      probe->in_flight = false;
      if (error != nullptr) {
        LogWarning("the probe of one token failed", {{"reason", std::string(error->message())}});
      }
    }
  });
  *holder = stream;
  const absl::Status submitted = model.scheduler->Submit(std::move(request), stream);
  if (submitted.ok()) return;
  probe_->last_ok = false;
  probe_->in_flight = false;
}

}  // namespace hearth::worker
