// From a GenerateRequest of the wire to a GenerationRequest of the scheduler: every field's bounds,
// the checkpoint's defaults, the template and the tokenizer.
#pragma once

#include "absl/status/statusor.h"
#include "hearth/v1/inference.pb.h"
#include "services/gpu-worker/rpc/serving_state.h"
#include "services/gpu-worker/scheduler/request.h"

namespace hearth::worker {

// InvalidArgument "field: reason, limit". May take milliseconds for a long prompt: not for gRPC's
// own threads. The deadline is the caller's to set.
absl::StatusOr<GenerationRequest> ToGenerationRequest(const v1::GenerateRequest& request,
                                                      const ServedModel& model);

// The part of it that needs no text: all of `sampling`.
absl::StatusOr<SamplingParams> ToSamplingParams(const v1::Sampling& sampling,
                                                const ModelConfig& config);

}  // namespace hearth::worker
