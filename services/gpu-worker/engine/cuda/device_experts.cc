#include "services/gpu-worker/engine/cuda/device_experts.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/experts/layout.h"
#include "common/machine/machine_rates.h"
#include "services/gpu-worker/experts/admission_cost.h"
#include "services/gpu-worker/ops/cuda/cuda_status.h"

namespace hearth::worker {
namespace {

// How long a decode step is taken to be, for the copies that the link can carry meanwhile.
constexpr double kStepSeconds = 0.004;
// Experts whose copies are awaited together when the slots are filled: 200 MB of the 80B model.
constexpr ptrdiff_t kFilledTogether = 128;

}  // namespace

PolicyOptions PolicyOfThisMachine() {
  return {.admission_cost = AdmissionCost(ThisMachinesRates())};
}

DeviceExperts::DeviceExperts(const ModelConfig& config, const SlotLayout& layout,
                             ExpertSource* experts, bool divides, bool with_mtp)
    : n_model_layers_(config.n_layers),
      n_layers_(config.n_layers + (with_mtp ? 1 : 0)),
      n_experts_(config.n_experts),
      layout_(layout),
      admissions_a_step_(AdmissionsPerStep(ThisMachinesRates(), layout.stride, kStepSeconds)),
      divides_(divides),
      experts_(*experts),
      prompt_division_(ThisMachinesRates(), layout.stride,
                       uint64_t{2} * sizeof(float) * static_cast<uint64_t>(config.hidden_size)) {
  for (const LayerConfig& layer : config.layers) has_experts_.push_back(layer.has_experts);
  has_experts_.resize(static_cast<size_t>(n_layers_), true);
  needed_share_.fill(1);
  n_wanted_ = n_experts_ * std::ranges::count(has_experts_, true);
}

DeviceExperts::~DeviceExperts() {
  Land(true);
  ReleaseSegment();
}

uint64_t DeviceExperts::ExtraBytes(const ModelConfig& config, const SlotLayout& layout,
                                   bool with_mtp) {
  const uint64_t n_keys = static_cast<uint64_t>(config.n_layers + (with_mtp ? 1 : 0)) *
                          static_cast<uint64_t>(config.n_experts);
  return n_keys * (sizeof(PrefillExpert) + 3 * sizeof(void*)) +
         (layout.can_cache ? layout.stride * kGroup * kBuffers : 0);
}

absl::StatusOr<std::unique_ptr<DeviceExperts>> DeviceExperts::Create(
    const ModelConfig& config, const SlotLayout& layout, ExpertSource* experts, int64_t n_slots,
    std::string_view policy, bool divides, bool with_mtp) {
  auto made =
      std::unique_ptr<DeviceExperts>(new DeviceExperts(config, layout, experts, divides, with_mtp));
  const auto n_keys = int64_t{made->n_layers_} * config.n_experts;
  const auto stride = static_cast<int64_t>(layout.stride);
  HEARTH_ASSIGN_OR_RETURN(
      made->cache_, ExpertCache::Create({.n_layers = made->n_layers_,
                                         .n_experts = config.n_experts,
                                         .n_slots = static_cast<int>(n_slots),
                                         .layer_has_experts = made->has_experts_},
                                        policy.empty() ? "lru" : policy, PolicyOfThisMachine()));
  HEARTH_RETURN_IF_ERROR(CudaStatus(made->pool_.Allocate(n_slots * stride),
                                    absl::StrCat("memory for ", n_slots, " experts")));
  if (layout.can_cache) {
    HEARTH_RETURN_IF_ERROR(CudaStatus(made->staging_.Allocate(stride * kGroup * kBuffers),
                                      "memory for streaming experts"));
  }
  HEARTH_RETURN_IF_ERROR(CudaStatus(made->table_.Allocate(n_keys), "the experts' table"));
  HEARTH_RETURN_IF_ERROR(CudaStatus(
      cudaMemset(made->table_.data(), 0, static_cast<size_t>(made->table_.bytes())), "memset"));
  if (divides && layout.can_cache) {
    HEARTH_RETURN_IF_ERROR(
        CudaStatus(made->host_slots_.Allocate(n_keys), "the table of experts in RAM"));
    HEARTH_RETURN_IF_ERROR(made->MapSegment());
  }
  HEARTH_RETURN_IF_ERROR(CudaStatus(made->lists_.Allocate(n_keys), "the experts' lists"));
  made->host_table_.resize(static_cast<size_t>(n_keys));
  made->update_of_.assign(static_cast<size_t>(n_keys), -1);
  made->packed_.resize(static_cast<size_t>(n_keys));
  made->rows_of_.resize(static_cast<size_t>(config.n_experts));
  made->drafted_.resize(static_cast<size_t>(config.n_experts));
  HEARTH_RETURN_IF_ERROR(
      made->pinned_updates_.Allocate(static_cast<uint64_t>(n_keys) * sizeof(SlotUpdate)));
  HEARTH_RETURN_IF_ERROR(
      made->pinned_lists_.Allocate(static_cast<uint64_t>(n_keys) * sizeof(PrefillExpert)));
  HEARTH_RETURN_IF_ERROR(CudaStatus(made->prompt_slots_.Allocate(n_keys), "the experts' places"));
  HEARTH_RETURN_IF_ERROR(
      made->pinned_prompt_slots_.Allocate(static_cast<uint64_t>(n_keys) * sizeof(void*)));
  made->n_cached_.resize(static_cast<size_t>(made->n_layers_));
  made->n_streamed_.resize(static_cast<size_t>(made->n_layers_));
  made->n_listed_.resize(static_cast<size_t>(made->n_layers_));
  HEARTH_RETURN_IF_ERROR(CudaStatus(made->copies_.Create(), "a stream for copies"));
  for (int i = 0; i < kBuffers; ++i) {
    HEARTH_RETURN_IF_ERROR(CudaStatus(made->began_[i].Create(), "an event"));
    HEARTH_RETURN_IF_ERROR(CudaStatus(made->staged_[i].Create(), "an event"));
    HEARTH_RETURN_IF_ERROR(CudaStatus(made->used_[i].Create(), "an event"));
  }
  return made;
}

void DeviceExperts::Update(int layer, int expert, const uint8_t* slot) {
  const auto index = int64_t{layer} * n_experts_ + expert;
  const uint8_t*& here = host_table_[static_cast<size_t>(index)];
  n_here_ += (slot != nullptr ? 1 : 0) - (here != nullptr ? 1 : 0);
  here = slot;
  // Two changes of one entry in one launch would race.
  int32_t& update = update_of_[static_cast<size_t>(index)];
  if (update < 0) {
    update = static_cast<int32_t>(updates_.size());
    updates_.push_back({slot, index});
  } else {
    updates_[static_cast<size_t>(update)].slot = slot;
  }
}

// Nothing reads the segment's memory any more; it may go.
void DeviceExperts::ReleaseSegment() {
  if (copies_.get() != nullptr) cudaStreamSynchronize(copies_.get());
  segment_.Release([this] { ++progress_; });
  held_.reset();
}

absl::Status DeviceExperts::FollowSegment() {
  const uint64_t generation = experts_.generation();
  if (generation == generation_) return absl::OkStatus();
  Land(true);
  cache_->Clear();
  for (size_t i = 0; i < host_table_.size(); ++i) {
    if (host_table_[i] == nullptr) continue;
    Update(static_cast<int>(i) / n_experts_, static_cast<int>(i) % n_experts_, nullptr);
  }
  ReleaseSegment();
  held_ = experts_.Hold();
  generation_ = generation;
  segment_.Register(experts_.Memory(), [this] { ++progress_; });
  HEARTH_RETURN_IF_ERROR(MapSegment());
  Fill();
  return absl::OkStatus();
}

// Where the GPU finds the experts of the segment, if it can read it.
absl::Status DeviceExperts::MapSegment() {
  if (host_slots_.size() == 0) return absl::OkStatus();
  std::vector<const uint8_t*> slots(static_cast<size_t>(host_slots_.size()));
  int same_pointers = 0;
  const bool is_mapped =
      segment_.is_registered() &&
      cudaDeviceGetAttribute(&same_pointers, cudaDevAttrCanUseHostPointerForRegisteredMem, 0) ==
          cudaSuccess &&
      same_pointers != 0;
  for (size_t i = 0; is_mapped && i < slots.size(); ++i) {
    const auto layer = static_cast<int>(i) / n_experts_;
    if (!has_experts_[static_cast<size_t>(layer)]) continue;
    const std::span<const std::byte> packed =
        experts_.Packed(layer, static_cast<int>(i) % n_experts_);
    if (Fits(packed)) slots[i] = reinterpret_cast<const uint8_t*>(packed.data());
    ++progress_;
  }
  return CudaStatus(host_slots_.CopyFrom(slots.data(), host_slots_.size()),
                    "the table of experts in RAM");
}

// An empty slot helps nobody, and use will tell which are worth more.
void DeviceExperts::Fill() {
  if (!layout_.can_cache || experts_.Memory().empty()) return;
  const std::vector<Admission> planned = cache_->PlanFilling(profile_);
  for (auto from = planned.begin(); from != planned.end();) {
    const auto to = from + std::min(kFilledTogether, planned.end() - from);
    Start({from, to});
    from = to;
  }
  Land(true);
}

// False where the expert can't be had now, or the device fails.
bool DeviceExperts::StartCopy(const Admission& admission) {
  const std::span<const std::byte> packed = experts_.Packed(admission.layer, admission.expert);
  if (!Fits(packed) || segment_.Copy(SlotAt(admission.slot), packed.data(), packed.size(),
                                     copies_.get()) != cudaSuccess) {
    return false;
  }
  pcie_bytes_ += packed.size();
  ++progress_;
  return true;
}

void DeviceExperts::Start(std::span<const Admission> admissions) {
  if (admissions.empty()) return;
  Flight flight;
  const bool has_event = flight.done.Create() == cudaSuccess;
  for (const Admission& admission : admissions) {
    if (admission.evicted_layer >= 0) {
      Update(admission.evicted_layer, admission.evicted_expert, nullptr);
    }
    if (has_event && StartCopy(admission)) {
      flight.admissions.push_back(admission);
    } else {
      cache_->Abandon(admission);
    }
  }
  if (flight.admissions.empty()) return;
  if (cudaEventRecord(flight.done.get(), copies_.get()) != cudaSuccess) {
    for (const Admission& admission : flight.admissions) cache_->Abandon(admission);
    return;
  }
  flights_.push_back(std::move(flight));
}

void DeviceExperts::Land(bool wait) {
  while (!flights_.empty()) {
    Flight& flight = flights_.front();
    const cudaError_t error =
        wait ? cudaEventSynchronize(flight.done.get()) : cudaEventQuery(flight.done.get());
    if (error == cudaErrorNotReady) return;
    for (const Admission& admission : flight.admissions) {
      if (error != cudaSuccess) {
        cache_->Abandon(admission);
      } else if (cache_->Publish(admission)) {
        Update(admission.layer, admission.expert, SlotAt(admission.slot));
      }
    }
    flights_.pop_front();
    ++progress_;
  }
}

absl::Status DeviceExperts::BeginStep(cudaStream_t stream) {
  Land(false);
  HEARTH_RETURN_IF_ERROR(FollowSegment());
  if (updates_.empty()) return absl::OkStatus();
  std::ranges::copy(updates_, pinned_updates_.as<SlotUpdate>());
  const cudaError_t error = UpdateSlotsCuda(
      pinned_updates_.as<SlotUpdate>(), static_cast<int>(updates_.size()), table_.data(), stream);
  for (const SlotUpdate& update : updates_) update_of_[static_cast<size_t>(update.index)] = -1;
  updates_.clear();
  return CudaStatus(error, "the experts' table");
}

const std::vector<ExpertUse>& DeviceExperts::UsesOf(std::span<const int32_t> choices, int n_rows,
                                                    int top_k) {
  uses_.clear();
  in_place_.clear();
  const auto n_places = static_cast<size_t>(n_rows) * static_cast<size_t>(top_k);
  for (int layer = 0; layer < n_layers_; ++layer) {
    if (!has_experts_[static_cast<size_t>(layer)]) continue;
    const auto chosen = choices.subspan(static_cast<size_t>(layer) * n_places, n_places);
    for (const int32_t choice : chosen) {
      if (choice >= 0) ++rows_of_[static_cast<size_t>(choice & ~kReadInPlace)];
    }
    for (const int32_t choice : chosen) {
      const int32_t expert = choice < 0 ? choice : choice & ~kReadInPlace;
      if (expert < 0 || rows_of_[static_cast<size_t>(expert)] == 0) continue;
      uses_.push_back({layer, expert, std::exchange(rows_of_[static_cast<size_t>(expert)], 0)});
      if ((choice & kReadInPlace) != 0) in_place_.push_back(uses_.back());
    }
  }
  return uses_;
}

// Those that UsesOf found and the GPU computed; the others were asked for by Get, which counts
// them.
void DeviceExperts::CountOnDevice() {
  for (const ExpertUse& use : uses_) {
    if (cache_->SlotOf(use.layer, use.expert) >= 0) experts_.CountUse(use.layer, use.expert);
  }
  for (const ExpertUse& use : in_place_) experts_.CountUse(use.layer, use.expert);
  in_place_bytes_ += in_place_.size() * layout_.bytes;
}

void DeviceExperts::EndDraft(std::span<const int32_t> choices, int n_rows, int top_k) {
  const std::vector<ExpertUse>& uses = UsesOf(choices, n_rows, top_k);
  CountOnDevice();
  for (const ExpertUse& use : uses) drafted_[static_cast<size_t>(use.expert)] += use.rows;
}

void DeviceExperts::EndDecode(std::span<const int32_t> choices, int n_rows, int top_k) {
  const std::vector<ExpertUse>& uses = UsesOf(choices, n_rows, top_k);
  CountOnDevice();
  for (int expert = 0; expert < n_experts_; ++expert) {
    int32_t& rows = drafted_[static_cast<size_t>(expert)];
    if (rows > 0) uses_.push_back({n_model_layers_, expert, std::exchange(rows, 0)});
  }
  cache_->RecordStep(uses);
  Land(false);
  if (layout_.can_cache) Start(cache_->PlanAdmissions(admissions_a_step_));
}

}  // namespace hearth::worker
