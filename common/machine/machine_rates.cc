#include "common/machine/machine_rates.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <initializer_list>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/file.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"

namespace hearth {
namespace {

constexpr uint64_t kMaxFileBytes = 4 << 20;

// The value at a path of names; null where one is missing.
const json::value* Find(const json::value& root, std::initializer_list<std::string_view> path) {
  const json::value* value = &root;
  for (const std::string_view name : path) {
    const json::object* object = value->if_object();
    if (object == nullptr) return nullptr;
    value = object->if_contains(json::string_view(name.data(), name.size()));
    if (value == nullptr) return nullptr;
  }
  return value;
}

// Keeps `rate` where there is no positive number.
void Take(const json::value* value, double* rate) {
  if (value == nullptr || !value->is_number()) return;
  const auto number = value->to_number<double>();
  if (std::isfinite(number) && number > 0) *rate = number;
}

}  // namespace

json::object ToJson(const GpuRates& rates) {
  json::object object;
  const auto add = [&object](const std::string& name, double rate) {
    if (rate > 0) object[name] = rate;
  };
  const auto add_link = [&add](const std::string& name, const LinkRates& link) {
    add(name + "_bytes_per_second", link.alone);
    add(name + "_loaded_bytes_per_second", link.loaded);
    add(name + "_ram_meanwhile_bytes_per_second", link.ram_meanwhile);
  };
  add_link("pcie", rates.copy);
  add_link("zero_copy", rates.zero_copy);
  add("memory_bytes_per_second", rates.memory_bytes_per_second);
  add("handshake_seconds", rates.handshake_seconds);
  return object;
}

std::optional<std::filesystem::path> MachineFile() {
  for (const auto& [variable, below] :
       {std::pair{"XDG_CACHE_HOME", "hearth"}, {"HOME", ".cache/hearth"}}) {
    const char* value = std::getenv(variable);
    if (value != nullptr && *value == '/') {
      return std::filesystem::path(value) / below / "machine.json";
    }
  }
  return std::nullopt;
}

absl::StatusOr<MachineRates> ReadMachineRates(const std::filesystem::path& file) {
  HEARTH_ASSIGN_OR_RETURN(const std::string text, ReadFile(file, kMaxFileBytes));
  auto root = ParseJson(text);
  if (!root.ok()) return Annotate(root.status(), file.string());
  if (!root->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(file.string(), ": no JSON object"));
  }
  MachineRates rates;
  rates.source = file.string();
  const json::value* readings = Find(*root, {"speed", "read_bandwidth"});
  double fastest = 0;
  if (readings != nullptr && readings->is_array()) {
    for (const json::value& reading : readings->get_array()) {
      double rate = 0;
      Take(Find(reading, {"bytes_per_second", "median"}), &rate);
      fastest = std::max(fastest, rate);
    }
  }
  if (fastest > 0) rates.ram = fastest;
  Take(Find(*root, {"gpu_speed", "pcie_bytes_per_second"}), &rates.pcie);
  Take(Find(*root, {"gpu_speed", "pcie_loaded_bytes_per_second"}), &rates.pcie);
  rates.zero_copy = rates.pcie;  // the same link
  Take(Find(*root, {"gpu_speed", "zero_copy_bytes_per_second"}), &rates.zero_copy);
  Take(Find(*root, {"gpu_speed", "zero_copy_loaded_bytes_per_second"}), &rates.zero_copy);
  Take(Find(*root, {"gpu_speed", "memory_bytes_per_second"}), &rates.vram);
  Take(Find(*root, {"gpu_speed", "handshake_seconds"}), &rates.handshake_seconds);
  return rates;
}

MachineRates ThisMachinesRates() {
  const auto file = MachineFile();
  if (!file) return {};
  return ReadMachineRates(*file).value_or(MachineRates{});
}

void KeepWhatWasMeasured(const std::filesystem::path& file, json::object* findings) {
  if (findings->contains("gpu_speed")) return;
  const auto text = ReadFile(file, kMaxFileBytes);
  if (!text.ok()) return;
  const auto former = ParseJson(*text);
  if (!former.ok()) return;
  if (const json::value* speed = Find(*former, {"gpu_speed"})) (*findings)["gpu_speed"] = *speed;
}

}  // namespace hearth
