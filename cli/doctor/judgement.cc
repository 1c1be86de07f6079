// What the facts mean: problems and advice.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/doctor/diagnosis.h"

namespace hearth::cli {
namespace {

// Sockets, files of a checkpoint and what libraries open; connections are capped below the limit.
constexpr uint64_t kLeastDescriptors = 256;
constexpr double kGib = 1 << 30;

std::string Gib(uint64_t bytes) {
  return absl::StrFormat("%.1f GiB", static_cast<double>(bytes) / kGib);
}

// For a tmpfs: what the model's experts take and a little more, else two thirds of the memory.
uint64_t SegmentGib(const Diagnosis& d) {
  const uint64_t bytes = d.model && d.model->expert_bytes > 0 ? d.model->expert_bytes * 21 / 20
                                                              : d.machine.memory_bytes * 2 / 3;
  return std::max<uint64_t>(1, (bytes + (uint64_t{1} << 30) - 1) >> 30);
}

void AddHugePageAdvice(const Diagnosis& d, std::vector<std::string>& advice) {
  const uint64_t gib = SegmentGib(d);
  const std::string sudo = d.is_root ? "" : "sudo ";
  if (!d.segment.is_huge) {
    advice.push_back(absl::StrCat(
        "experts would lie in 4 KiB pages (", d.segment.reason, "): they load several times ",
        "slower and are read up to a fifth slower. As an operator: `", sudo,
        "mkdir -p /mnt/hearth && ", sudo, "mount -t tmpfs -o huge=advise,size=", gib,
        "g,mode=0700,uid=$(id -u) tmpfs /mnt/hearth`, then `hearth serve --segment ",
        "/mnt/hearth/experts`. In a container: a volume made by `docker volume create -o ",
        "type=tmpfs -o device=tmpfs -o o=huge=advise,size=", gib, "g hearth-experts`"));
  }
  if (!d.huge_pages.gives_anonymous()) {
    advice.push_back(absl::StrCat(
        "dense weights and activations lie in 4 KiB pages, which halves the speed of prompts: `",
        "echo madvise | ", sudo, "tee /sys/kernel/mm/transparent_hugepage/enabled`"));
  }
}

}  // namespace

uint64_t Diagnosis::room() const {
  return std::min(available_bytes, limit_bytes.value_or(available_bytes));
}

std::vector<std::string> Problems(const Diagnosis& d) {
  std::vector<std::string> problems;
  if (!d.port.problem.empty()) problems.push_back(d.port.problem);
  if (d.descriptors < kLeastDescriptors) {
    problems.push_back(absl::StrCat("a process may open ", d.descriptors, " files, Hearth needs ",
                                    kLeastDescriptors, "; raise the limit: ulimit -Hn 4096"));
  }
  if (!d.model) return problems;
  if (!d.model->problem.empty()) {
    const bool names_path = d.model->problem.find(d.model->path) != std::string::npos;
    problems.push_back(names_path ? d.model->problem
                                  : absl::StrCat(d.model->path, ": ", d.model->problem));
    return problems;
  }
  if (d.model->need() > d.room()) {
    problems.push_back(absl::StrCat(
        "the model needs ", Gib(d.model->need()), " of memory, ", Gib(d.room()), " are free",
        d.limit_bytes && *d.limit_bytes < d.available_bytes ? " under this control group's limit"
                                                            : "",
        "; free memory, lower --kv-tokens, or choose a smaller model"));
  }
  if (!d.segment.is_huge && d.model->expert_bytes > d.shm_free_bytes) {
    problems.push_back(absl::StrCat("the experts need ", Gib(d.model->expert_bytes),
                                    ", /dev/shm has ", Gib(d.shm_free_bytes),
                                    " free; `mount -o remount,size=", SegmentGib(d),
                                    "g /dev/shm`, in a container --shm-size=", SegmentGib(d),
                                    "g, or --segment FILE on a larger tmpfs"));
  }
  return problems;
}

std::vector<std::string> Advice(const Diagnosis& d) {
  std::vector<std::string> advice;
  AddHugePageAdvice(d, advice);
  if (d.kernels.empty()) {
    advice.push_back("this processor has no AVX2: only the float32 backend runs, ten times slower");
  }
  if (!d.gpus.empty() && !d.has_cuda) {
    advice.push_back("a GPU is here, but this program was built without CUDA: the CPU computes");
  }
  return advice;
}

}  // namespace hearth::cli
