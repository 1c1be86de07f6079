#include "services/gpu-worker/rpc/store_client.h"

#include <sys/stat.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/experts/segment.h"
#include "common/rpc/channel.h"
#include "common/rpc/status.h"

namespace hearth::worker {
namespace {

// Clients read the state's message through /ready: reasons, which name paths, go to the log.
constexpr char kNoExperts[] =
    "the expert store has no experts that can be used; the log has the reason";

using namespace std::chrono_literals;

constexpr auto kCallTimeout = 5s;

// What SegmentReader would call the file; asked before mapping 40 GB again.
std::string FileIdentity(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return "";
  return absl::StrCat(info.st_dev, ":", info.st_ino);
}

void SetTimeout(grpc::ClientContext& context) {
  context.set_deadline(std::chrono::system_clock::now() + kCallTimeout);
}

}  // namespace

StoreClient::StoreClient(StoreClientOptions options, ServingState* state, AttachedExperts* experts,
                         std::function<void()> on_attached,
                         std::function<void(const absl::Status&)> on_refused)
    : options_(std::move(options)),
      state_(state),
      experts_(experts),
      on_attached_(std::move(on_attached)),
      on_refused_(std::move(on_refused)),
      stub_(v1::ExpertStore::NewStub(MakeChannel(options_.address, ChannelReuse::kOwnConnection))),
      reported_at_(std::chrono::steady_clock::now()),
      thread_([this] { Run(); }) {}

StoreClient::~StoreClient() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    if (call_ != nullptr) call_->TryCancel();
    changed_.notify_all();
  }
  thread_.join();
}

void StoreClient::Run() {
  bool refused = false;
  std::chrono::milliseconds pause = 0ms;
  while (WaitFor(pause)) {
    const absl::Status status = Visit();
    if (status.ok()) {
      ReportUses();
      FetchProfile();
      pause = options_.probe_interval;
      continue;
    }
    OnLost(status);
    const bool hopeless = absl::IsFailedPrecondition(status) || absl::IsInvalidArgument(status) ||
                          absl::IsDataLoss(status);
    if (hopeless && !experts_->has_segment() && !std::exchange(refused, true)) on_refused_(status);
    pause = std::clamp(2 * pause, 100ms, options_.probe_interval);
  }
}

absl::Status StoreClient::Visit() {
  if (instance_.empty()) return Attach();
  grpc::ClientContext context;
  SetTimeout(context);
  if (!Begin(&context)) return absl::CancelledError("stopping");
  v1::DescribeResponse store;
  const grpc::Status described = stub_->Describe(&context, {}, &store);
  End();
  if (!described.ok()) return FromGrpc(described);
  if (store.store_instance() != instance_) return Attach();
  return absl::OkStatus();
}

absl::Status StoreClient::Attach() {
  v1::AttachRequest request;
  request.set_worker_id(options_.worker_id);
  request.set_expected_fingerprint(options_.fingerprint);
  request.set_layout_version(kLayoutVersion);
  v1::AttachResponse response;
  {
    grpc::ClientContext context;
    SetTimeout(context);
    if (!Begin(&context)) return absl::CancelledError("stopping");
    const grpc::Status attached = stub_->Attach(&context, request, &response);
    End();
    if (attached.error_code() == grpc::StatusCode::UNAVAILABLE) FollowLoading();
    if (!attached.ok()) return FromGrpc(attached);
  }
  HEARTH_RETURN_IF_ERROR(Map(response));
  instance_ = response.store_instance();
  state_->SetStoreConnected(true);
  LogInfo("attached to the expert store",
          {{"instance", instance_}, {"segment_bytes", response.segment_bytes()}});
  FetchProfile();  // there before the first step fills a cache
  on_attached_();
  return absl::OkStatus();
}

absl::Status StoreClient::Map(const v1::AttachResponse& response) {
  const std::string file = FileIdentity(response.segment_path());
  if (!file.empty() && file == mapped_file_) return absl::OkStatus();
  HEARTH_ASSIGN_OR_RETURN(std::shared_ptr<const SegmentReader> reader,
                          SegmentReader::Open(response.segment_path(), options_.fingerprint));
  LogInfo("experts are mapped",
          {{"bytes", reader->bytes()}, {"huge_page_bytes", reader->HugeBytes()}});
  HEARTH_RETURN_IF_ERROR(experts_->Offer(std::move(reader)));
  mapped_file_ = file;
  state_->SetExpertsAttached();
  return absl::OkStatus();
}

void StoreClient::FollowLoading() {
  grpc::ClientContext context;
  if (!Begin(&context)) return;
  const auto stream = stub_->WatchLoading(&context, {});
  v1::LoadingProgress progress;
  while (stream->Read(&progress)) {
    const auto total = static_cast<double>(progress.bytes_total());
    if (progress.state() == v1::LOADING_STATE_FAILED) {
      state_->SetStoreProgress(0, kNoExperts);
      LogWarning("the expert store failed to load", {{"reason", progress.message()}});
      continue;
    }
    const double fraction = total > 0 ? static_cast<double>(progress.bytes_done()) / total : 0;
    state_->SetStoreProgress(fraction, absl::StrCat("the expert store: ", progress.message()));
  }
  stream->Finish();
  End();
}

void StoreClient::ReportUses() {
  const auto now = std::chrono::steady_clock::now();
  if (now - reported_at_ < options_.report_interval) return;
  reported_at_ = now;
  v1::ReportUsageRequest request;
  request.set_worker_id(options_.worker_id);
  // A tier sees all uses, the experts in RAM only those that it doesn't hold.
  const auto all = options_.tier != nullptr ? options_.tier->TakeUses() : experts_->TakeUses();
  for (const ExpertUses& uses : all) {
    v1::ExpertUsage* usage = request.add_usage();
    usage->set_layer(static_cast<uint32_t>(uses.layer));
    usage->set_expert(static_cast<uint32_t>(uses.expert));
    usage->set_count(uses.count);
  }
  if (request.usage_size() == 0) return;
  grpc::ClientContext context;
  SetTimeout(context);
  if (!Begin(&context)) return;
  v1::ReportUsageResponse response;
  // Lost counts only make the profile a little older: the next Describe notices a lost store.
  stub_->ReportUsage(&context, request, &response);
  End();
}

void StoreClient::FetchProfile() {
  const auto now = std::chrono::steady_clock::now();
  if (options_.tier == nullptr || now < profile_at_) return;
  grpc::ClientContext context;
  SetTimeout(context);
  if (!Begin(&context)) return;
  v1::Profile profile;
  const grpc::Status fetched = stub_->GetProfile(&context, {}, &profile);
  End();
  if (!fetched.ok()) return;  // asked for again the next time
  // Until somebody has used experts, as often as uses are reported.
  profile_at_ =
      now + (profile.usage().empty() ? options_.report_interval : options_.profile_interval);
  std::vector<ExpertUses> uses;
  for (const v1::ExpertUsage& usage : profile.usage()) {
    uses.push_back(
        {static_cast<int>(usage.layer()), static_cast<int>(usage.expert()), usage.count()});
  }
  options_.tier->SetProfile(std::move(uses));
}

void StoreClient::OnLost(const absl::Status& why) {
  state_->SetStoreConnected(false);
  if (instance_.empty()) {
    if (!experts_->has_segment() && !absl::IsUnavailable(why)) {
      state_->SetStoreProgress(0, kNoExperts);
      if (std::exchange(trouble_, std::string(why.message())) != why.message()) {
        LogWarning("the expert store's experts can't be used", {{"reason", trouble_}});
      }
    }
    return;
  }
  instance_.clear();
  LogWarning("the expert store is gone; its segment stays in use",
             {{"reason", std::string(why.message())}});
}

bool StoreClient::WaitFor(std::chrono::milliseconds time) {
  std::unique_lock lock(mutex_);
  return !changed_.wait_for(lock, time, [this] { return stopping_; });
}

bool StoreClient::Begin(grpc::ClientContext* context) {
  const std::lock_guard lock(mutex_);
  if (stopping_) return false;
  call_ = context;
  return true;
}

void StoreClient::End() {
  const std::lock_guard lock(mutex_);
  call_ = nullptr;
}

}  // namespace hearth::worker
