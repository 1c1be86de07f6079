#include "cli/doctor/examine.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cli/supervisor/run_dir.h"
#include "common/base/numa.h"
#include "common/base/status_macros.h"
#include "common/base/thread_pool.h"
#include "common/experts/huge_tmpfs.h"
#include "common/experts/memory_room.h"
#include "common/experts/reservation.h"
#include "common/synthetic/synthetic_checkpoint.h"
#include "services/expert-store/loading/loader.h"
#include "services/gpu-worker/benchmark/traffic.h"
#include "services/gpu-worker/engine/engine.h"
#include "services/gpu-worker/ops/kernels.h"
#include "services/gpu-worker/rates/measure_gpu.h"

namespace hearth::cli {
namespace {

namespace fs = std::filesystem;

int PhysicalCores() {
  std::set<int> cores;
  for (const ProcessorPlace& place : ReadPlaces(AllowedCores())) cores.insert(place.core);
  return static_cast<int>(cores.size());
}

// Makes a small segment and looks at its pages.
SegmentCheck CheckSegment() {
  auto tmpfs = OpenHugeTmpfs();
  if (!tmpfs.ok()) return {false, std::string(tmpfs.status().message())};
  const fs::path path = FdFolder(tmpfs->get()) / "probe";
  SegmentFile file{.fd = UniqueFd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)),
                   .bytes = 2 * kHugePageBytes,
                   .identity = {}};
  if (!file.fd.valid()) return {false, "its own tmpfs takes no file"};
  const auto mapping = ReserveAndMap(file, {});
  if (!mapping.ok()) return {false, std::string(mapping.status().message())};
  if (mapping->Populate().ok() && mapping->HugeBytes() > 0) return {true, ""};
  return {false, "the system gave its own tmpfs no huge page"};
}

absl::Status FillModel(const ExamineOptions& options, ModelCheck* model) {
  HEARTH_ASSIGN_OR_RETURN(const auto checkpoint, OpenModel(options.model, options.n_threads));
  const ModelConfig& config = checkpoint->config();
  HEARTH_ASSIGN_OR_RETURN(const SegmentPlan plan,
                          store::PlanExperts(*checkpoint, options.n_threads, kTiledExperts));
  HEARTH_ASSIGN_OR_RETURN(const worker::Traffic traffic,
                          worker::ComputeTraffic(*checkpoint, false));
  HEARTH_ASSIGN_OR_RETURN(model->dense_bytes, worker::DenseMemory(*checkpoint, false));
  for (const uint64_t bytes : plan.payload_bytes) model->expert_bytes += bytes;
  model->n_layers = config.n_layers;
  model->n_experts = config.n_experts;
  model->kv_bytes =
      static_cast<uint64_t>(traffic.kv_token_bytes * static_cast<double>(options.kv_tokens));
  return absl::OkStatus();
}

ModelCheck CheckModel(const ExamineOptions& options) {
  ModelCheck model;
  model.path = options.model;
  const absl::Status status = FillModel(options, &model);
  if (!status.ok()) model.problem = std::string(status.message());
  return model;
}

void LookAtLimits(Diagnosis* diagnosis) {
  struct statvfs shm {};
  if (::statvfs("/dev/shm", &shm) == 0) {
    diagnosis->shm_bytes = shm.f_blocks * shm.f_frsize;
    diagnosis->shm_free_bytes = shm.f_bavail * shm.f_frsize;
  }
  struct rlimit files {};
  if (::getrlimit(RLIMIT_NOFILE, &files) == 0) diagnosis->descriptors = files.rlim_max;
  if (const auto room = MachineRoom()) diagnosis->available_bytes = room->bytes;
  if (const auto room = CgroupRoom()) diagnosis->limit_bytes = room->bytes;
  diagnosis->is_root = ::geteuid() == 0;
}

// What can't be measured is said, and the CPU serves.
void MeasureTheGpu(const ExamineOptions& options, Diagnosis* diagnosis) {
  const auto rates = worker::MeasureGpu({.n_threads = options.n_threads});
  if (rates.ok()) {
    diagnosis->gpu_speed = *rates;
  } else {
    diagnosis->gpu_problem = std::string(rates.status().message());
  }
}

}  // namespace

std::vector<std::string> FindGpus(const fs::path& driver) {
  std::vector<std::string> gpus;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(driver, error)) {
    std::ifstream in(entry.path() / "information");
    for (std::string line; std::getline(in, line);) {
      if (!line.starts_with("Model:")) continue;
      const size_t name = line.find_first_not_of(" \t", 6);
      if (name != std::string::npos) gpus.push_back(line.substr(name));
    }
  }
  std::ranges::sort(gpus);
  return gpus;
}

absl::StatusOr<Diagnosis> Examine(const ExamineOptions& options) {
  Diagnosis diagnosis;
  diagnosis.machine = ThisMachine();
  for (const worker::Kernels* kernels : worker::UsableKernels()) {
    diagnosis.kernels.emplace_back(kernels->name);
  }
  diagnosis.physical_cores = PhysicalCores();
  diagnosis.memory_nodes = static_cast<int>(MemoryNodes().size());
  LookAtLimits(&diagnosis);
  diagnosis.huge_pages = ReadHugePageState();
  diagnosis.segment = CheckSegment();
  diagnosis.port = {options.host, options.port, ""};
  if (const auto free = CheckPortIsFree(options.host, options.port); !free.ok()) {
    diagnosis.port.problem = std::string(free.message());
  }
  diagnosis.has_cuda = worker::HasCudaBackend();
  diagnosis.gpus = FindGpus();
  if (!options.model.empty()) diagnosis.model = CheckModel(options);
  if (options.measure) {
    SpeedOptions speed{.time = std::chrono::milliseconds(100), .repetitions = 3};
    speed.buffer_bytes = std::clamp<uint64_t>(diagnosis.room() / 4, 64 << 20, speed.buffer_bytes);
    HEARTH_ASSIGN_OR_RETURN(diagnosis.speed, MeasureMachine(options.n_threads, speed));
    if (diagnosis.has_cuda) MeasureTheGpu(options, &diagnosis);
  }
  return diagnosis;
}

}  // namespace hearth::cli
