#include "cli/supervisor/readiness.h"

#include <algorithm>
#include <chrono>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/supervisor/http_get.h"
#include "cli/supervisor/run_dir.h"
#include "common/rpc/channel.h"
#include "hearth/v1/expert_store.grpc.pb.h"
#include "hearth/v1/inference.grpc.pb.h"

namespace hearth::cli {
namespace {

constexpr std::chrono::milliseconds kInterval{100};
constexpr std::chrono::milliseconds kTimeout{1000};
// The experts are most of the bytes, and the slowest to come.
constexpr double kStoreShare = 0.8;

std::optional<v1::DescribeResponse> AskStore(const ClusterOptions& options) {
  const auto stub = v1::ExpertStore::NewStub(
      MakeChannel(StoreAddress(options.run_dir), ChannelReuse::kOwnConnection));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kTimeout);
  v1::DescribeResponse answer;
  if (!stub->Describe(&context, {}, &answer).ok()) return std::nullopt;
  return answer;
}

std::unique_ptr<v1::Inference::Stub> WorkerStub(const ClusterOptions& options) {
  return v1::Inference::NewStub(
      MakeChannel(WorkerAddress(options.run_dir), ChannelReuse::kOwnConnection));
}

std::optional<v1::WorkerStatus> AskWorker(const ClusterOptions& options) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kTimeout);
  v1::WorkerStatus answer;
  if (!WorkerStub(options)->GetStatus(&context, {}, &answer).ok()) return std::nullopt;
  return answer;
}

std::optional<v1::ModelInfo> AskModel(const ClusterOptions& options) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kTimeout);
  v1::ModelInfo answer;
  if (!WorkerStub(options)->GetModel(&context, {}, &answer).ok()) return std::nullopt;
  return answer;
}

std::string Bytes(uint64_t bytes) {
  const double mib = static_cast<double>(bytes) / (1 << 20);
  return mib < 1024 ? absl::StrFormat("%.1f MiB", mib) : absl::StrFormat("%.2f GiB", mib / 1024);
}

double Fraction(uint64_t done, uint64_t total) {
  return total == 0 ? 0 : static_cast<double>(done) / static_cast<double>(total);
}

}  // namespace

std::string LoadingText(const v1::LoadingProgress& loading) {
  // Headers are read and memory is reserved before it is known how much there is to load.
  if (loading.bytes_total() == 0) return loading.message();
  return absl::StrCat(loading.adopted() ? "checking experts kept in memory: " : "loading experts: ",
                      Bytes(loading.bytes_done()), " of ", Bytes(loading.bytes_total()));
}

ReadinessWatcher::ReadinessWatcher(const ClusterOptions& options, Console& console)
    : options_(options), console_(console), thread_([this] { Run(); }) {}

ReadinessWatcher::~ReadinessWatcher() {
  {
    const std::lock_guard lock(mutex_);
    is_ending_ = true;
  }
  ended_.notify_all();
  thread_.join();
  if (!is_ready_) console_.EndProgress();
}

void ReadinessWatcher::Run() {
  std::unique_lock lock(mutex_);
  while (!is_ending_) {
    lock.unlock();
    const std::optional<int> port = ReadGatewayPort(options_.run_dir);
    if (port && IsReady(*port)) {
      console_.EndProgress();
      is_ready_ = true;
      AnnounceReady(*port);
      return;
    }
    ShowProgress();
    lock.lock();
    ended_.wait_for(lock, kInterval, [this] { return is_ending_; });
  }
}

bool ReadinessWatcher::IsReady(int port) const {
  const auto answer = HttpGet(ProbeHost(options_.host), port, "/ready", kTimeout);
  return answer.ok() && answer->status == 200;
}

void ReadinessWatcher::ShowProgress() const {
  const auto store = AskStore(options_);
  if (!store) return console_.Progress(0, "waiting for expert-store");
  const v1::LoadingProgress& loading = store->loading();
  if (loading.state() != v1::LOADING_STATE_READY) {
    return console_.Progress(kStoreShare * Fraction(loading.bytes_done(), loading.bytes_total()),
                             LoadingText(loading));
  }
  const auto worker = AskWorker(options_);
  if (!worker) return console_.Progress(kStoreShare, "waiting for gpu-worker");
  console_.Progress(kStoreShare + (1 - kStoreShare) * worker->loading_fraction(),
                    worker->message());
}

void ReadinessWatcher::AnnounceReady(int port) const {
  const std::string url = absl::StrCat("http://", ProbeHost(options_.host), ":", port);
  const auto model = AskModel(options_);
  const auto store = AskStore(options_);
  std::string text = absl::StrCat("\nHearth is ready at ", url, "\n");
  if (model) {
    absl::StrAppend(&text, "  model    ", model->id(), ", ", model->n_layers(), " layers, ",
                    model->n_experts(), " experts a layer, ", model->quantization(), ", backend ",
                    model->backend(), "\n  context  ", model->context_tokens(), " tokens, ",
                    model->max_sequences(), " sequences at once\n");
  }
  if (store) {
    absl::StrAppend(&text, "  memory   experts ", Bytes(store->segment_bytes()), " in RAM (",
                    store->segment_path(), store->loading().adopted() ? ", kept from before" : "",
                    ")\n");
  }
  absl::StrAppend(&text, "  try      curl ", url,
                  "/v1/chat/completions -H 'Content-Type: application/json' -d '{\"messages\": "
                  "[{\"role\": \"user\", \"content\": \"What is a lighthouse?\"}]}'\n\n");
  console_.Announce(text);
  console_.Event(LogLevel::kInfo, "ready", {{"url", url}});
}

}  // namespace hearth::cli
