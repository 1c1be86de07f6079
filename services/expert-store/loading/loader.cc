#include "services/expert-store/loading/loader.h"

#include <atomic>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "common/base/thread_pool.h"
#include "common/checkpoint/expert_layers.h"
#include "common/experts/packing.h"
#include "services/expert-store/loading/rate_limiter.h"

namespace hearth::store {
namespace {

struct ExpertId {
  int layer;
  int expert;
};

struct OwnedExpert {
  OwnedLinear gate, up, down;
  ExpertRef ref() const { return {gate.ref, up.ref, down.ref}; }
};

std::vector<ExpertId> AllExperts(const Checkpoint& checkpoint) {
  std::vector<ExpertId> ids;
  for (int layer = 0; layer < ExpertLayers(checkpoint); ++layer) {
    if (!LayerHasExperts(checkpoint, layer)) continue;
    for (int e = 0; e < checkpoint.config().n_experts; ++e) ids.push_back({layer, e});
  }
  return ids;
}

absl::StatusOr<OwnedExpert> ReadExpert(const Checkpoint& checkpoint, const ExpertId& id) {
  const std::string module = ExpertModule(checkpoint.config(), id.layer, id.expert);
  OwnedExpert expert;
  HEARTH_ASSIGN_OR_RETURN(expert.gate, checkpoint.Linear(module + ".gate_proj"));
  HEARTH_ASSIGN_OR_RETURN(expert.up, checkpoint.Linear(module + ".up_proj"));
  HEARTH_ASSIGN_OR_RETURN(expert.down, checkpoint.Linear(module + ".down_proj"));
  return expert;
}

absl::StatusOr<ExpertRef> ReadShapes(const Checkpoint& checkpoint, const ExpertId& id) {
  const std::string module = ExpertModule(checkpoint.config(), id.layer, id.expert);
  ExpertRef expert;
  HEARTH_ASSIGN_OR_RETURN(expert.gate, checkpoint.LinearShape(module + ".gate_proj"));
  HEARTH_ASSIGN_OR_RETURN(expert.up, checkpoint.LinearShape(module + ".up_proj"));
  HEARTH_ASSIGN_OR_RETURN(expert.down, checkpoint.LinearShape(module + ".down_proj"));
  return expert;
}

// Keeps the error of the lowest index, so that the same file gives the same message with any number
// of threads.
class FirstError {
 public:
  void Set(int index, absl::Status status) {
    const std::lock_guard lock(mutex_);
    failed_ = true;
    if (index >= index_) return;
    index_ = index;
    status_ = std::move(status);
  }
  bool failed() const { return failed_; }
  absl::Status status() const {
    const std::lock_guard lock(mutex_);
    return status_;
  }

 private:
  mutable std::mutex mutex_;
  std::atomic<bool> failed_{false};
  int index_ = INT32_MAX;
  absl::Status status_;
};

// Runs `body` for every expert until one fails or `stop` is requested.
absl::Status ForEachExpert(const std::vector<ExpertId>& ids, int n_threads, std::stop_token stop,
                           const std::function<absl::Status(const ExpertId&)>& body) {
  FirstError error;
  ThreadPool pool(n_threads);
  pool.ParallelFor(static_cast<int>(ids.size()), [&](int i) {
    if (error.failed() || stop.stop_requested()) return;
    absl::Status status = body(ids[static_cast<size_t>(i)]);
    if (!status.ok()) error.Set(i, std::move(status));
  });
  if (stop.stop_requested()) return absl::CancelledError("stopped while loading");
  return error.status();
}

// Adds up what the threads did, and reports it.
class Progress {
 public:
  Progress(const SegmentWriter& writer, const std::vector<ExpertId>& ids,
           const ProgressCallback& callback)
      : callback_(callback) {
    progress_.experts_total = ids.size();
    for (const ExpertId& id : ids) {
      progress_.bytes_total += writer.payload_bytes(id.layer, id.expert);
    }
    if (callback_) callback_(progress_);
  }
  void Done(uint64_t bytes) {
    const std::lock_guard lock(mutex_);
    ++progress_.experts_done;
    progress_.bytes_done += bytes;
    if (callback_) callback_(progress_);
  }

 private:
  const ProgressCallback& callback_;
  std::mutex mutex_;
  LoadProgress progress_;
};

}  // namespace

absl::StatusOr<SegmentPlan> PlanExperts(const Checkpoint& checkpoint, int n_threads,
                                        ExpertLayout layout, std::stop_token stop) {
  const std::vector<ExpertId> ids = AllExperts(checkpoint);
  SegmentPlan plan;
  plan.expert_layout = layout;
  plan.fingerprint = checkpoint.ExpertFingerprint();
  plan.n_layers = ExpertLayers(checkpoint);
  plan.n_experts = ids.empty() ? 0 : checkpoint.config().n_experts;
  plan.payload_bytes.resize(static_cast<size_t>(plan.n_layers) *
                            static_cast<size_t>(plan.n_experts));
  // Every tensor may be of another kind, so every one is asked; each thread writes its own
  // elements.
  const auto plan_one = [&](const ExpertId& id) -> absl::Status {
    HEARTH_ASSIGN_OR_RETURN(const ExpertRef shapes, ReadShapes(checkpoint, id));
    const auto bytes = PackedExpertBytes(shapes, layout);
    if (!bytes.ok()) {
      return Annotate(bytes.status(), ExpertModule(checkpoint.config(), id.layer, id.expert));
    }
    plan.payload_bytes[static_cast<size_t>(id.layer) * static_cast<size_t>(plan.n_experts) +
                       static_cast<size_t>(id.expert)] = *bytes;
    return absl::OkStatus();
  };
  HEARTH_RETURN_IF_ERROR(ForEachExpert(ids, n_threads, std::move(stop), plan_one));
  return plan;
}

absl::Status ReloadExpert(const Checkpoint& checkpoint, SegmentWriter& writer, int layer,
                          int expert) {
  const ExpertId id{layer, expert};
  HEARTH_ASSIGN_OR_RETURN(const OwnedExpert weights, ReadExpert(checkpoint, id));
  return Annotate(writer.Write(layer, expert, weights.ref()),
                  ExpertModule(checkpoint.config(), layer, expert));
}

absl::StatusOr<LoadSummary> LoadExperts(const Checkpoint& checkpoint, SegmentWriter& writer,
                                        const LoadOptions& options,
                                        const ProgressCallback& progress, std::stop_token stop) {
  const std::vector<ExpertId> ids = AllExperts(checkpoint);
  Progress total(writer, ids, progress);
  RateLimiter limiter(options.max_bytes_per_second);
  std::atomic<uint64_t> n_loaded{0}, n_kept{0}, n_damaged{0};
  const auto load_one = [&](const ExpertId& id) -> absl::Status {
    const uint64_t bytes = writer.payload_bytes(id.layer, id.expert);
    const bool is_published = writer.state(id.layer, id.expert) == kExpertReady;
    if (is_published && writer.Verify(id.layer, id.expert).ok()) {
      ++n_kept;
    } else {
      if (is_published) ++n_damaged;
      if (!limiter.Acquire(bytes, stop)) return absl::OkStatus();  // reported by ForEachExpert
      HEARTH_RETURN_IF_ERROR(ReloadExpert(checkpoint, writer, id.layer, id.expert));
      ++n_loaded;
    }
    total.Done(bytes);
    return absl::OkStatus();
  };
  HEARTH_RETURN_IF_ERROR(ForEachExpert(ids, options.n_threads, stop, load_one));
  return LoadSummary{n_loaded, n_kept, n_damaged};
}

absl::StatusOr<std::unique_ptr<SegmentReader>> LoadIntoMemory(const Checkpoint& checkpoint,
                                                              int n_threads, ExpertLayout layout) {
  HEARTH_ASSIGN_OR_RETURN(const SegmentPlan plan, PlanExperts(checkpoint, n_threads, layout));
  HEARTH_ASSIGN_OR_RETURN(const auto writer, SegmentWriter::CreateInMemory(plan));
  HEARTH_RETURN_IF_ERROR(LoadExperts(checkpoint, *writer, {.n_threads = n_threads}).status());
  HEARTH_RETURN_IF_ERROR(writer->MarkReady());
  return writer->OpenReader();
}

}  // namespace hearth::store
