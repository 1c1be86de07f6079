// What a worker holds once it is loaded, and the steps of getting there.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"
#include "common/text/chat_template.h"
#include "common/text/tokenizer.h"
#include "services/gpu-worker/engine/engine.h"
#include "services/gpu-worker/experts/attached_experts.h"
#include "services/gpu-worker/options.h"
#include "services/gpu-worker/rpc/serving_state.h"
#include "services/gpu-worker/scheduler/scheduler.h"

namespace hearth::worker {

// Members are destroyed from the last to the first: each borrows from those before it.
struct LoadedModel {
  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ChatTemplate> chat_template;  // null: the checkpoint has none
  std::unique_ptr<AttachedExperts> experts;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<Scheduler> scheduler;
  ServedModel served;
};

// Everything but the experts and the scheduler. Progress goes to `state`.
absl::StatusOr<std::unique_ptr<LoadedModel>> LoadModel(const CommandLine& line,
                                                       ServingState& state);

// Once experts are attached: starts the scheduler and produces one token, so that a worker that
// calls itself ready has done the whole way. `observer` is borrowed; `on_lost` as
// SchedulerOptions'.
absl::Status StartServing(const CommandLine& line, LoadedModel& model, SchedulerObserver& observer,
                          std::function<void(const absl::Status&)> on_lost);

}  // namespace hearth::worker
