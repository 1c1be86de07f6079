#include "cli/doctor/diagnosis.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace hearth::cli {
namespace {

std::string Gib(uint64_t bytes) {
  return absl::StrFormat("%.1f GiB", static_cast<double>(bytes) / (1 << 30));
}

void Line(std::string* text, const char* label, const std::string& value) {
  absl::StrAppendFormat(text, "%-15s %s\n", label, value);
}

std::string Count(int n, const char* one, const char* many) {
  return absl::StrCat(n, " ", n == 1 ? one : many);
}

std::string Kernels(const Diagnosis& d) {
  if (d.kernels.empty()) return "none: the float32 backend";
  std::string text = d.kernels.front();
  if (d.kernels.size() > 1) {
    const std::vector<std::string> others(d.kernels.begin() + 1, d.kernels.end());
    absl::StrAppend(&text, " (also ", absl::StrJoin(others, ", "), ")");
  }
  return text;
}

void AppendSpeed(const MachineSpeed& speed, std::string* text) {
  for (const auto& reading : speed.readings) {
    Line(text, "  read",
         absl::StrFormat("%.1f GB/s with %s", reading.bytes_per_second.median / 1e9,
                         Count(reading.threads, "thread", "threads")));
  }
  for (const ComputeRate& rate : speed.rates) {
    Line(text, "  multiply",
         absl::StrFormat("%.0f G operations/s, %s with %s", rate.operations_per_second.median / 1e9,
                         rate.name, Count(rate.threads, "thread", "threads")));
  }
}

void AppendMemory(const Diagnosis& d, std::string* text) {
  Line(text, "memory",
       absl::StrCat(Gib(d.machine.memory_bytes), ", ", Gib(d.available_bytes), " available",
                    d.limit_bytes
                        ? absl::StrCat(", ", Gib(*d.limit_bytes), " left by the control group")
                        : ""));
  if (d.speed) AppendSpeed(*d.speed, text);
  Line(text, "/dev/shm", absl::StrCat(Gib(d.shm_bytes), ", ", Gib(d.shm_free_bytes), " free"));
  const HugePageState& huge = d.huge_pages;
  Line(text, "huge pages",
       absl::StrCat("anonymous: ", huge.anonymous, "; shared memory: ", huge.shmem, "; reserved: ",
                    Gib(huge.pool_bytes), ", ", Gib(huge.pool_free_bytes), " free"));
  Line(text, "  experts",
       d.segment.is_huge ? "in huge pages, on a tmpfs of its own"
                         : absl::StrCat("in 4 KiB pages: ", d.segment.reason));
}

void AppendLink(const char* label, const LinkRates& link, std::string* text) {
  if (link.alone <= 0) return;
  std::string value = absl::StrFormat("%.1f GB/s from memory", link.alone / 1e9);
  if (link.loaded > 0) {
    absl::StrAppendFormat(&value, ", %.1f while threads read %.1f", link.loaded / 1e9,
                          link.ram_meanwhile / 1e9);
  }
  Line(text, label, value);
}

void AppendGpuSpeed(const GpuRates& gpu, std::string* text) {
  AppendLink("  copy", gpu.copy, text);
  AppendLink("  zero copy", gpu.zero_copy, text);
  if (gpu.memory_bytes_per_second > 0) {
    Line(text, "  read",
         absl::StrFormat("%.0f GB/s of its own", gpu.memory_bytes_per_second / 1e9));
  }
  if (gpu.handshake_seconds > 0) {
    Line(text, "  handshake",
         absl::StrFormat("%.1f us with a CPU thread", gpu.handshake_seconds * 1e6));
  }
}

void AppendGpu(const Diagnosis& d, std::string* text) {
  std::string line = d.gpus.empty() ? "none found" : absl::StrJoin(d.gpus, ", ");
  if (!d.has_cuda) {
    absl::StrAppend(&line, "; built without CUDA");
  } else if (!d.gpu_problem.empty()) {
    absl::StrAppend(&line, "; not measured: ", d.gpu_problem);
  }
  Line(text, "GPU", line);
  if (d.gpu_speed) AppendGpuSpeed(*d.gpu_speed, text);
}

void AppendModel(const Diagnosis& d, std::string* text) {
  if (!d.model) return;
  const ModelCheck& model = *d.model;
  Line(text, "model", model.path);
  if (!model.problem.empty()) return;
  Line(text, "  layers", absl::StrCat(model.n_layers, ", ", model.n_experts, " experts each"));
  Line(text, "  needs",
       absl::StrCat(Gib(model.need()), ": experts ", Gib(model.expert_bytes), ", other weights ",
                    Gib(model.dense_bytes), ", keys and values ", Gib(model.kv_bytes)));
}

json::object ToJson(const ModelCheck& model) {
  json::object object = {{"path", model.path}};
  if (!model.problem.empty()) {
    object["problem"] = model.problem;
    return object;
  }
  object["layers"] = model.n_layers;
  object["experts"] = model.n_experts;
  object["expert_bytes"] = model.expert_bytes;
  object["dense_bytes"] = model.dense_bytes;
  object["kv_bytes"] = model.kv_bytes;
  object["needed_bytes"] = model.need();
  return object;
}

json::array ToArray(const std::vector<std::string>& texts) {
  json::array array;
  for (const std::string& text : texts) array.emplace_back(text);
  return array;
}

json::object Memory(const Diagnosis& d) {
  json::object memory = {{"bytes", d.machine.memory_bytes},
                         {"available_bytes", d.available_bytes},
                         {"shm_bytes", d.shm_bytes},
                         {"shm_free_bytes", d.shm_free_bytes}};
  memory["limit_bytes"] = d.limit_bytes ? json::value(*d.limit_bytes) : json::value(nullptr);
  return memory;
}

}  // namespace

std::string ToText(const Diagnosis& d) {
  std::string text;
  Line(&text, "processor", d.machine.cpu_model);
  Line(&text, "  cores",
       absl::StrCat(Count(d.machine.usable_cores, "usable", "usable"), ", ", d.physical_cores,
                    " physical, ", Count(d.memory_nodes, "memory node", "memory nodes")));
  Line(&text, "  has",
       absl::StrJoin(d.machine.features.Names(), " ",
                     [](std::string* out, std::string_view name) { out->append(name); }));
  Line(&text, "  kernels", Kernels(d));
  Line(&text, "system", d.machine.kernel);
  AppendMemory(d, &text);
  Line(&text, "descriptors", absl::StrCat(d.descriptors));
  Line(&text, "port",
       d.port.problem.empty() ? absl::StrCat(d.port.host, ":", d.port.port, " is free")
                              : d.port.problem);
  AppendGpu(d, &text);
  AppendModel(d, &text);
  const auto problems = Problems(d);
  for (const std::string& advice : Advice(d)) absl::StrAppend(&text, "\nFaster: ", advice, "\n");
  for (const std::string& problem : problems) absl::StrAppend(&text, "\nProblem: ", problem, "\n");
  absl::StrAppend(
      &text, problems.empty() ? "\nHearth can serve here.\n" : "\nHearth cannot serve here yet.\n");
  return text;
}

json::object ToJson(const Diagnosis& d) {
  const auto problems = Problems(d);
  json::object object = {
      {"can_serve", problems.empty()},
      {"problems", ToArray(problems)},
      {"advice", ToArray(Advice(d))},
      {"machine", ToJson(d.machine)},
      {"physical_cores", d.physical_cores},
      {"memory_nodes", d.memory_nodes},
      {"kernels", ToArray(d.kernels)},
      {"memory", Memory(d)},
      {"huge_pages",
       {{"anonymous", d.huge_pages.anonymous},
        {"shmem", d.huge_pages.shmem},
        {"pool_bytes", d.huge_pages.pool_bytes},
        {"pool_free_bytes", d.huge_pages.pool_free_bytes},
        {"segment", d.segment.is_huge}}},
      {"descriptors", d.descriptors},
      {"port", {{"host", d.port.host}, {"port", d.port.port}, {"free", d.port.problem.empty()}}},
      {"gpus", ToArray(d.gpus)},
      {"cuda", d.has_cuda}};
  if (d.speed) object["speed"] = ToJson(*d.speed);
  if (d.gpu_speed) object["gpu_speed"] = ToJson(*d.gpu_speed);
  if (!d.gpu_problem.empty()) object["gpu_problem"] = d.gpu_problem;
  if (d.model) object["model"] = ToJson(*d.model);
  return object;
}

}  // namespace hearth::cli
