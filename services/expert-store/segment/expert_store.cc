#include "services/expert-store/segment/expert_store.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/base/thread_pool.h"
#include "common/checkpoint/expert_layers.h"
#include "services/expert-store/segment/adoption.h"

namespace hearth::store {
namespace {

// Behind a worker that computes, level with nothing else that matters at a start.
constexpr int kLoadingNiceness = 10;

using Clock = std::chrono::steady_clock;
constexpr auto kLogInterval = std::chrono::seconds(2);

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double MegabytesPerSecond(uint64_t bytes, double seconds) {
  return seconds > 0 ? static_cast<double>(bytes) / 1e6 / seconds : 0;
}

}  // namespace

ExpertStore::ExpertStore(StoreOptions options, CheckpointOpener open_checkpoint,
                         std::function<void(const absl::Status&)> on_loaded)
    : options_(std::move(options)),
      open_checkpoint_(std::move(open_checkpoint)),
      on_loaded_(std::move(on_loaded)),
      start_(Clock::now()),
      last_log_(start_) {
  status_.message = "reading the checkpoint's headers";
  status_.segment_path = options_.segment_path;
}

ExpertStore::~ExpertStore() { Stop(); }

void ExpertStore::Start() {
  thread_ = std::jthread([this](std::stop_token stop) { Run(std::move(stop)); });
}

void ExpertStore::Stop() {
  if (!thread_.joinable()) return;
  thread_.request_stop();
  thread_.join();
  const std::lock_guard lock(mutex_);
  if (options_.remove_segment_on_stop && writer_ != nullptr) writer_->Remove();
}

StoreStatus ExpertStore::status() const {
  StoreStatus status;
  std::shared_ptr<SegmentWriter> writer;
  {
    const std::lock_guard lock(mutex_);
    status = status_;
    writer = writer_;
  }
  const bool is_done = status.phase == StorePhase::kReady || status.phase == StorePhase::kFailed;
  if (!is_done) status.seconds = SecondsSince(start_);
  if (writer != nullptr) {
    status.segment_bytes = writer->info().total_bytes;
    status.states = writer->CountStates();
  }
  return status;
}

void ExpertStore::Run(std::stop_token stop) {
  // Also for the threads that it starts: while experts are loaded again, a worker may be generating
  // from those that are there.
  SetThisThreadsNiceness(kLoadingNiceness);
  const absl::Status loaded = Load(stop);
  if (stop.stop_requested()) return;
  if (!loaded.ok()) {
    // A half-filled segment of a model that can't be loaded would only hold memory.
    const std::lock_guard lock(mutex_);
    if (writer_ != nullptr) writer_->Remove();
    status_.phase = StorePhase::kFailed;
    status_.message = std::string(loaded.message());
    status_.seconds = SecondsSince(start_);
  }
  on_loaded_(loaded);
  if (loaded.ok() && options_.verify_bytes_per_second > 0) VerifyForever(stop);
}

absl::Status ExpertStore::Load(std::stop_token stop) {
  HEARTH_RETURN_IF_ERROR(OpenModel());
  HEARTH_ASSIGN_OR_RETURN(const bool is_ready, TryAdopt(stop));
  return is_ready ? absl::OkStatus() : LoadNew(stop);
}

absl::Status ExpertStore::OpenModel() {
  HEARTH_ASSIGN_OR_RETURN(checkpoint_, open_checkpoint_());
  const ModelConfig& config = checkpoint_->config();
  ProfileShape shape{
      checkpoint_->ExpertFingerprint(), config.n_experts, config.experts_per_token, {}};
  for (int layer = 0; layer < ExpertLayers(*checkpoint_); ++layer) {
    shape.layer_has_experts.push_back(LayerHasExperts(*checkpoint_, layer));
  }
  {
    const std::lock_guard lock(mutex_);
    status_.fingerprint = shape.fingerprint;
    status_.n_layers = ExpertLayers(*checkpoint_);
    status_.n_experts = config.n_experts;
  }
  const absl::Status profile = profile_.Open(options_.profile_path, std::move(shape));
  if (!profile.ok()) {
    LogWarning("usage profile starts from zero", {{"reason", std::string(profile.message())}});
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> ExpertStore::TryAdopt(std::stop_token stop) {
  SetPhase(StorePhase::kAdopting, "looking at the existing segment");
  AdoptionResult found =
      ExamineSegment(options_.segment_path, *checkpoint_, options_.expert_layout);
  if (!found.reason.empty()) {
    LogInfo(found.writer != nullptr ? "existing segment is not complete; its good experts are kept"
                                    : "existing segment is replaced",
            {{"segment", options_.segment_path.string()}, {"reason", found.reason}});
  }
  if (found.adoption == Adoption::kNone) return false;
  {
    const std::lock_guard lock(mutex_);
    writer_ = std::move(found.writer);
    status_.n_verified += found.n_sampled - found.n_sample_failures;
  }
  if (found.adoption == Adoption::kIntact) {
    HEARTH_RETURN_IF_ERROR(Finish("adopted the segment of an earlier process", true));
    return true;
  }
  writer_->MarkLoading();
  const absl::Status filled = Fill(stop);
  if (filled.ok() || stop.stop_requested())
    return filled.ok() ? absl::StatusOr<bool>(true) : filled;
  LogWarning("existing segment can't be completed and is replaced",
             {{"reason", std::string(filled.message())}});
  const std::lock_guard lock(mutex_);
  writer_->Remove();
  writer_.reset();
  return false;
}

absl::Status ExpertStore::LoadNew(std::stop_token stop) {
  SetPhase(StorePhase::kReserving, "reserving memory for the experts");
  HEARTH_ASSIGN_OR_RETURN(const SegmentPlan plan, PlanExperts(*checkpoint_, options_.n_threads,
                                                              options_.expert_layout, stop));
  HEARTH_ASSIGN_OR_RETURN(auto writer, SegmentWriter::Create(options_.segment_path, plan, stop));
  {
    const std::lock_guard lock(mutex_);
    writer_ = std::move(writer);
  }
  return Fill(stop);
}

absl::Status ExpertStore::Fill(std::stop_token stop) {
  SetPhase(StorePhase::kLoading, "loading experts");
  const LoadOptions options{.n_threads = options_.n_threads,
                            .max_bytes_per_second = options_.load_bytes_per_second};
  HEARTH_ASSIGN_OR_RETURN(
      const LoadSummary summary,
      LoadExperts(
          *checkpoint_, *writer_, options, [this](const LoadProgress& p) { OnProgress(p); }, stop));
  {
    const std::lock_guard lock(mutex_);
    status_.n_verified += summary.n_kept;
    status_.n_checksum_failures += summary.n_damaged;
  }
  return Finish(absl::StrCat("loaded ", summary.n_loaded, " experts, kept ", summary.n_kept),
                /*is_adopted=*/false);
}

absl::Status ExpertStore::Finish(std::string message, bool is_adopted) {
  HEARTH_RETURN_IF_ERROR(writer_->MarkReady());
  const auto counts = writer_->CountStates();
  const uint64_t huge_page_bytes = CountHugePages();
  const std::lock_guard lock(mutex_);
  status_.phase = StorePhase::kReady;
  status_.message = std::move(message);
  status_.is_adopted = is_adopted;
  status_.seconds = SecondsSince(start_);
  status_.progress.experts_done = status_.progress.experts_total = counts.total;
  status_.progress.bytes_done = status_.progress.bytes_total = writer_->info().total_bytes;
  LogInfo("experts are ready",
          {{"how", status_.message},
           {"experts", counts.total},
           {"bytes", writer_->info().total_bytes},
           {"huge_page_bytes", huge_page_bytes},
           {"seconds", status_.seconds},
           {"mb_per_second",
            is_adopted ? 0 : MegabytesPerSecond(writer_->info().total_bytes, status_.seconds)}});
  return absl::OkStatus();
}

uint64_t ExpertStore::CountHugePages() {
  const uint64_t bytes = writer_->HugeBytes();
  const std::lock_guard lock(mutex_);
  status_.huge_page_bytes = bytes;
  return bytes;
}

void ExpertStore::SetPhase(StorePhase phase, std::string message) {
  const std::lock_guard lock(mutex_);
  status_.phase = phase;
  status_.message = std::move(message);
}

void ExpertStore::OnProgress(const LoadProgress& progress) {
  const std::lock_guard lock(mutex_);
  status_.progress = progress;
  const double seconds = SecondsSince(start_);
  const double rate = MegabytesPerSecond(progress.bytes_done, seconds);
  status_.message = absl::StrFormat("loading experts: %d of %d, %.0f MB/s", progress.experts_done,
                                    progress.experts_total, rate);
  if (Clock::now() - last_log_ < kLogInterval) return;
  last_log_ = Clock::now();
  LogInfo("loading experts", {{"experts_done", progress.experts_done},
                              {"experts_total", progress.experts_total},
                              {"bytes_done", progress.bytes_done},
                              {"bytes_total", progress.bytes_total},
                              {"mb_per_second", rate}});
}

}  // namespace hearth::store
