// The experts of a step on a GPU: hits, misses that the CPU computes, and prompts' streams.
#include "common/base/status_macros.h"
#include "services/gpu-worker/engine/cuda/cuda_backend.h"
#include "services/gpu-worker/ops/cuda/decode_experts.h"
#include "services/gpu-worker/ops/cuda/experts.h"
#include "services/gpu-worker/ops/cuda/norm_cuda.h"
#include "services/gpu-worker/ops/cuda/prefill_experts.h"
#include "services/gpu-worker/ops/cuda/prefill_rows.h"
#include "services/gpu-worker/ops/cuda/router_cuda.h"

namespace hearth::worker {

absl::Status CudaBackend::Experts(const Routing& routing, const SharedExpert& shared, int width,
                                  const float* h, float* out) {
  return is_decode() ? DecodeExperts(routing, shared, width, h, out)
                     : PrefillExperts(routing, shared, width, h, out);
}

DispatchInputs CudaBackend::DispatchOf(const Routing& routing, const float* h) const {
  return {.ids = choice_ids_,
          .weights = choice_weights_,
          .positions = positions_,
          .slots = experts_.Slots(routing.layer),
          .n_experts = routing.n_experts,
          .h = h};
}

int32_t* CudaBackend::ChoicesOf(const Routing& routing) const {
  return pinned_choices_.as<int32_t>() + int64_t{routing.layer} * rows_.total() * routing.top_k;
}

const int32_t* CudaBackend::ImposedOf(const Routing& routing) const {
  if (routing_ == nullptr || routing.layer >= config_.n_layers) return nullptr;
  return imposed_ + int64_t{routing.layer} * rows_.total() * routing.top_k;
}

void CudaBackend::RecordDispatched() {
  if (!is_capturing_) Keep(cudaEventRecord(dispatched_.get(), stream_.get()), "an event");
}

// In a graph the CPU answers while it runs. Outside, the answer is there before the kernel that
// waits for it: a launch that blocks, as under memcheck, would keep this thread from serving.
absl::Status CudaBackend::Await(int width, float* out) {
  HEARTH_RETURN_IF_ERROR(ServeUntilDispatched());
  Keep(AwaitExpertsCuda({0, rows_.total(), config_.experts_per_token, width}, misses_.exchange(),
                        out, stream_.get()),
       "await");
  return error();
}

// Outside a graph: a launch could block on a full queue behind a kernel that waits for us, so
// nothing more is enqueued before the request has been served.
absl::Status CudaBackend::ServeUntilDispatched() {
  HEARTH_RETURN_IF_ERROR(error());
  if (is_capturing_) return absl::OkStatus();
  return misses_.ServeUntil(stream_.get(), [this] {
    return cudaEventQuery(dispatched_.get()) != cudaErrorNotReady && !misses_.has_request();
  });
}

// out += sigmoid(gate) * shared(h).
void CudaBackend::AddShared(const SharedExpert& shared, int width, const float* h, float* out) {
  Mlp(shared.mlp, h, shared_);
  Keep(AddRmsNormCuda(rows_.total(), width, out, {.shared = shared_, .gate = shared.gate}, nullptr,
                      0, nullptr, stream_.get()),
       "the shared expert");
}

absl::Status CudaBackend::DecodeExperts(const Routing& routing, const SharedExpert& shared,
                                        int width, const float* h, float* out) {
  const DispatchShape dispatch{routing.layer, rows_.total(), routing.top_k, width};
  const std::optional<DecodeLevels>& levels = LevelsOf(experts_.layout().shape.levels.values);
  const bool can_cache = experts_.layout().can_cache;
  const bool shares_slot = can_cache && levels.has_value() && weights_->shared_slots.size() > 0;
  const DecodeRouting decode{
      .host_slots = levels.has_value() ? experts_.HostSlots(routing.layer) : nullptr,
      .in_place = in_place_,
      .logits = routing.logits,
      .normalise = routing.normalise,
      .imposed = ImposedOf(routing),
      .shared_slot = shares_slot ? weights_->shared_slots.data() +
                                       static_cast<uint64_t>(routing.layer) * weights_->slot_stride
                                 : nullptr,
      .shared_gate = shared.gate,
      .ids = choice_ids_,
      .weights = choice_weights_};
  Keep(RouteAndDispatchCuda(dispatch, decode, DispatchOf(routing, h), misses_.exchange(), places_,
                            ChoicesOf(routing), stream_.get()),
       "routing");
  RecordDispatched();
  ExpertsShape shape = experts_.layout().shape;
  shape.n_rows = rows_.total();
  if (can_cache && levels.has_value()) {
    shape.top_k += shares_slot ? 1 : 0;
    Keep(DecodeExpertsCuda(shape, *levels, places_, h, RoundedOf(h), act_, out, stream_.get()),
         "experts");
  } else if (can_cache) {
    Keep(ExpertsCuda(shape, places_, h, act_, out, stream_.get()), "experts");
  } else {
    Keep(
        cudaMemsetAsync(out, 0, static_cast<size_t>(rows_.total()) * static_cast<size_t>(width) * 4,
                        stream_.get()),
        "memset");
  }
  if (!shares_slot) AddShared(shared, width, h, out);
  return never_awaits() ? ServeUntilDispatched() : Await(width, out);
}

absl::Status CudaBackend::PrefillExperts(const Routing& routing, const SharedExpert& shared,
                                         int width, const float* h, float* out) {
  const int n = rows_.total();
  const int64_t n_places = int64_t{n} * routing.top_k;
  const bool can_cache = experts_.layout().can_cache, streams = is_streaming() && can_cache;
  Keep(RouteCuda({n, routing.n_experts, routing.top_k}, routing.normalise, routing.logits,
                 choice_ids_, choice_weights_, stream_.get()),
       "router");
  if (const int32_t* imposed = ImposedOf(routing)) {
    Keep(cudaMemcpyAsync(choice_ids_, imposed, static_cast<size_t>(n_places) * 4,
                         cudaMemcpyDeviceToDevice, stream_.get()),
         "imposed routing");
  }
  int n_cpu = 0;  // of the experts that are not in VRAM
  if (streams) {
    HEARTH_ASSIGN_OR_RETURN(n_cpu, PlanStreamed(routing));
  }
  const bool asks = !streams || n_cpu > 0;
  if (asks) {
    DispatchPrompt(routing, width, streams, h);
  } else {
    Keep(BeatCuda(misses_.exchange(), stream_.get()), "heartbeat");
  }
  RunPromptExperts(routing, width, streams, asks, h, out);
  AddShared(shared, width, h, out);
  if (!asks) return error();
  const double before = misses_.counts().seconds;
  HEARTH_RETURN_IF_ERROR(Await(width, out));
  if (streams) experts_.LearnCpu(n, n_cpu, misses_.counts().seconds - before);
  return absl::OkStatus();
}

// The prompt's experts that are in VRAM or streamed to it: their sums to out.
void CudaBackend::RunPromptExperts(const Routing& routing, int width, bool streams, bool asks,
                                   const float* h, float* out) {
  const int n = rows_.total();
  if (!experts_.layout().can_cache) {
    return Keep(cudaMemsetAsync(out, 0, static_cast<size_t>(n) * static_cast<size_t>(width) * 4,
                                stream_.get()),
                "memset");
  }
  ExpertsShape shape = experts_.layout().shape;
  shape.n_rows = n;
  Keep(GroupPlacesCuda(n * routing.top_k, routing.n_experts, choice_ids_, groups_, stream_.get()),
       "grouping");
  Keep(ToHalfRowsCuda(n, width, h, half_rows_, stream_.get()), "rows");
  const PrefillPlaces places{groups_, half_rows_, choice_weights_, expert_act_, products_};
  const auto run = [&](const DeviceExperts::List& list) {
    if (list.n == 0) return cudaSuccess;
    return PrefillExpertsCuda(shape, list.experts, list.n, places, stream_.get());
  };
  Keep(run(experts_.Cached(routing.layer)), "experts of a prefill");
  if (streams) {
    Keep(experts_.ForEachStreamed(routing.layer, stream_.get(), run), "streamed experts");
  }
  Keep(CombinePlacesCuda(n, routing.top_k, width, choice_ids_, asks ? is_here_ : nullptr, products_,
                         out, stream_.get()),
       "combining");
}

// The choices to the host, which waits for them if few experts are expected; how many of those that
// are not in VRAM are the CPU's.
absl::StatusOr<int> CudaBackend::PlanStreamed(const Routing& routing) {
  const auto n_places = static_cast<size_t>(rows_.total()) * static_cast<size_t>(routing.top_k);
  Keep(cudaMemcpyAsync(ChoicesOf(routing), choice_ids_, n_places * 4, cudaMemcpyDeviceToHost,
                       stream_.get()),
       "choices");
  std::span<const int32_t> choices;
  if (experts_.AwaitsChoices(rows_.total())) {
    RecordDispatched();
    HEARTH_RETURN_IF_ERROR(ServeUntilDispatched());
    choices = {ChoicesOf(routing), n_places};
  }
  return experts_.PlanStreamed(routing.layer, rows_.total(), choices, stream_.get());
}

// Asks the CPU for a prompt's experts that are neither here nor on their way.
void CudaBackend::DispatchPrompt(const Routing& routing, int width, bool streams, const float* h) {
  const int n = rows_.total();
  DispatchShape shape{routing.layer, n, routing.top_k, width};
  DispatchInputs inputs = DispatchOf(routing, h);
  if (streams) {
    inputs.slots = experts_.PromptSlots(routing.layer);
    shape.has_rows = true;
    Keep(cudaMemcpyAsync(misses_.exchange().h, h,
                         static_cast<size_t>(n) * static_cast<size_t>(width) * sizeof(float),
                         cudaMemcpyDeviceToHost, stream_.get()),
         "rows for the CPU");
  }
  Keep(DispatchExpertsCuda(shape, inputs, misses_.exchange(), places_, is_here_, ChoicesOf(routing),
                           stream_.get()),
       "dispatch");
  RecordDispatched();
}

}  // namespace hearth::worker
