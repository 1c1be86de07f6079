#include "services/expert-store/segment/adoption.h"

#include <random>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/expert_layers.h"

namespace hearth::store {
namespace {

// The segment is about this checkpoint: fingerprint, and an entry exactly where the model has an
// expert.
absl::Status CheckModel(const SegmentWriter& writer, const Checkpoint& checkpoint,
                        ExpertLayout layout) {
  const SegmentInfo& info = writer.info();
  const int n_layers = ExpertLayers(checkpoint);
  const std::string wanted = checkpoint.ExpertFingerprint();
  if (info.fingerprint != wanted) {
    return absl::FailedPreconditionError(
        absl::StrCat("holds the experts of checkpoint ", info.fingerprint, ", wanted is ", wanted));
  }
  if (info.expert_layout != layout) {
    return absl::FailedPreconditionError("holds the experts in the other layout");
  }
  bool any = false;
  for (int layer = 0; layer < n_layers; ++layer) any |= LayerHasExperts(checkpoint, layer);
  const int n_experts = any ? checkpoint.config().n_experts : 0;
  if (info.n_layers != n_layers || info.n_experts != n_experts) {
    return absl::FailedPreconditionError(absl::StrCat("has ", info.n_layers, " layers of ",
                                                      info.n_experts, " experts, the checkpoint ",
                                                      n_layers, " of ", n_experts));
  }
  for (int layer = 0; layer < info.n_layers; ++layer) {
    for (int e = 0; e < info.n_experts; ++e) {
      if ((writer.payload_bytes(layer, e) > 0) != LayerHasExperts(checkpoint, layer)) {
        return absl::FailedPreconditionError(
            absl::StrCat("differs from the model at layer ", layer, " expert ", e));
      }
    }
  }
  return absl::OkStatus();
}

// Published experts have the model's shapes. Reads one page an expert.
absl::Status CheckShapes(const SegmentWriter& writer, const ModelConfig& config) {
  for (int layer = 0; layer < writer.info().n_layers; ++layer) {
    for (int e = 0; e < writer.info().n_experts; ++e) {
      if (writer.state(layer, e) != kExpertReady) continue;
      HEARTH_ASSIGN_OR_RETURN(const ExpertRef expert, writer.Expert(layer, e));
      if (expert.gate.out != config.expert_intermediate_size ||
          expert.gate.in != config.hidden_size) {
        return absl::DataLossError(absl::StrCat("layer ", layer, " expert ", e, ": shape [",
                                                expert.gate.out, ", ", expert.gate.in, "]"));
      }
    }
  }
  return absl::OkStatus();
}

void Sample(AdoptionResult* result) {
  const SegmentInfo& info = result->writer->info();
  std::vector<std::pair<int, int>> published;
  for (int layer = 0; layer < info.n_layers; ++layer) {
    for (int e = 0; e < info.n_experts; ++e) {
      if (result->writer->payload_bytes(layer, e) > 0) published.emplace_back(layer, e);
    }
  }
  std::vector<std::pair<int, int>> sample;
  std::sample(published.begin(), published.end(), std::back_inserter(sample), kAdoptionSample,
              std::mt19937(std::random_device()()));
  for (const auto& [layer, expert] : sample) {
    ++result->n_sampled;
    if (!result->writer->Verify(layer, expert).ok()) ++result->n_sample_failures;
  }
}

}  // namespace

AdoptionResult ExamineSegment(const std::filesystem::path& path, const Checkpoint& checkpoint,
                              ExpertLayout layout) {
  AdoptionResult result;
  auto writer = SegmentWriter::OpenExisting(path);
  if (!writer.ok()) {
    if (!absl::IsNotFound(writer.status())) result.reason = std::string(writer.status().message());
    return result;
  }
  if (const absl::Status model = CheckModel(**writer, checkpoint, layout); !model.ok()) {
    result.reason = std::string(model.message());
    return result;
  }
  result.writer = *std::move(writer);
  result.adoption = Adoption::kResumable;
  const auto counts = result.writer->CountStates();
  if (!result.writer->is_ready() || counts.ready != counts.total) {
    result.reason = absl::StrCat(counts.ready, " of ", counts.total, " experts were loaded");
    return result;
  }
  if (const absl::Status shapes = CheckShapes(*result.writer, checkpoint.config()); !shapes.ok()) {
    result.reason = std::string(shapes.message());
    return result;
  }
  Sample(&result);
  if (result.n_sample_failures > 0) {
    result.reason = absl::StrCat(result.n_sample_failures, " of ", result.n_sampled,
                                 " sampled checksums differ");
    return result;
  }
  result.adoption = Adoption::kIntact;
  return result;
}

}  // namespace hearth::store
