#include "services/gpu-worker/benchmark/compare.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"

namespace hearth::worker {
namespace {

struct Speed {
  double median = 0, min = 0, max = 0;
};

absl::Status Lacks(const char* which, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(
      "the ", which, " report has no ", what, "; give one that hearth benchmark --json printed"));
}

const json::value* Member(const json::value& value, const char* name) {
  return value.is_object() ? value.get_object().if_contains(name) : nullptr;
}

absl::StatusOr<std::string> TestKey(const json::value& result, const char* which) {
  const json::value* test = Member(result, "test");
  if (test == nullptr || !test->is_string()) return Lacks(which, "results[].test");
  std::string key(test->get_string());
  for (const auto& [name, before] :
       {std::pair("tokens", ":"), std::pair("context", "@"), std::pair("batch", " batch "),
        std::pair("threads", " threads ")}) {
    const json::value* number = Member(result, name);
    if (number == nullptr || !number->is_int64()) {
      return Lacks(which, absl::StrCat("results[].", name));
    }
    absl::StrAppend(&key, before, number->get_int64());
  }
  return key;
}

absl::StatusOr<std::map<std::string, Speed>> Speeds(const json::value& report, const char* which) {
  const json::value* results = Member(report, "results");
  if (results == nullptr || !results->is_array()) return Lacks(which, "list of results");
  std::map<std::string, Speed> speeds;
  for (const json::value& result : results->get_array()) {
    HEARTH_ASSIGN_OR_RETURN(const std::string key, TestKey(result, which));
    const json::value* rate = Member(result, "tokens_per_second");
    Speed speed;
    for (const auto& [name, target] :
         {std::pair("median", &speed.median), std::pair("min", &speed.min),
          std::pair("max", &speed.max)}) {
      const json::value* number = rate == nullptr ? nullptr : Member(*rate, name);
      if (number == nullptr || !number->is_number()) {
        return Lacks(which, absl::StrCat("results[].tokens_per_second.", name));
      }
      *target = number->to_number<double>();
    }
    speeds[key] = speed;
  }
  return speeds;
}

// What makes two reports hard to compare.
std::vector<std::string> Warnings(const json::value& before, const json::value& after) {
  std::vector<std::string> warnings;
  const auto check = [&](const char* outer, const char* inner, const char* what) {
    const json::value* a = Member(before, outer);
    const json::value* b = Member(after, outer);
    if (inner != nullptr) {
      a = a == nullptr ? nullptr : Member(*a, inner);
      b = b == nullptr ? nullptr : Member(*b, inner);
    }
    if (a != nullptr && b != nullptr && *a != *b) {
      warnings.push_back(absl::StrCat("the ", what, " differs: ", SerializeJson(*a), " before, ",
                                      SerializeJson(*b), " now"));
    }
  };
  check("machine", "cpu", "CPU");
  check("machine", "cores", "number of cores");
  check("model", nullptr, "model");
  check("parameters", "kernels", "kind of kernels");
  check("parameters", "routing", "routing");
  check("parameters", "mtp", "multi-token prediction");
  return warnings;
}

}  // namespace

bool Comparison::is_slower() const { return std::ranges::any_of(changes, &TestChange::is_slower); }

absl::StatusOr<Comparison> CompareReports(const json::value& before, const json::value& after,
                                          double threshold) {
  HEARTH_ASSIGN_OR_RETURN(const auto old_speeds, Speeds(before, "old"));
  HEARTH_ASSIGN_OR_RETURN(auto new_speeds, Speeds(after, "new"));
  Comparison comparison;
  comparison.warnings = Warnings(before, after);
  for (const auto& [name, old_speed] : old_speeds) {
    const auto found = new_speeds.find(name);
    if (found == new_speeds.end()) {
      comparison.unmatched.push_back(name + " (before only)");
      continue;
    }
    const Speed& speed = found->second;
    comparison.changes.push_back(
        {name, old_speed.median, speed.median,
         speed.median < old_speed.median * (1 - threshold) && speed.max < old_speed.min});
    new_speeds.erase(found);
  }
  for (const auto& [name, speed] : new_speeds) {
    comparison.unmatched.push_back(name + " (now only)");
  }
  return comparison;
}

json::object ToJson(const Comparison& comparison) {
  json::array changes;
  for (const TestChange& change : comparison.changes) {
    changes.push_back(json::object{{"test", change.name},
                                   {"before", change.before},
                                   {"after", change.after},
                                   {"ratio", change.before > 0 ? change.after / change.before : 0},
                                   {"slower", change.is_slower}});
  }
  return {{"changes", changes},
          {"unmatched", json::array(comparison.unmatched.begin(), comparison.unmatched.end())},
          {"warnings", json::array(comparison.warnings.begin(), comparison.warnings.end())},
          {"slower", comparison.is_slower()}};
}

std::string ToText(const Comparison& comparison) {
  std::string text = "\n";
  for (const std::string& warning : comparison.warnings) {
    absl::StrAppend(&text, "careful: ", warning, "\n");
  }
  for (const TestChange& change : comparison.changes) {
    absl::StrAppendFormat(&text, "%-40s %9.2f -> %9.2f tok/s  %+6.1f %%%s\n", change.name,
                          change.before, change.after,
                          change.before > 0 ? 100 * (change.after / change.before - 1) : 0,
                          change.is_slower ? "  SLOWER" : "");
  }
  for (const std::string& name : comparison.unmatched) absl::StrAppend(&text, name, "\n");
  return text;
}

}  // namespace hearth::worker
