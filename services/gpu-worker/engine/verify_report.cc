// The verify report for people and for programs.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "services/gpu-worker/engine/verify.h"

namespace hearth::worker {

bool VerifyReport::ok() const {
  return std::ranges::any_of(quantities, &VerifyQuantity::is_judged) &&
         std::ranges::all_of(quantities,
                             [](const VerifyQuantity& q) { return q.ok || !q.is_judged; });
}

std::string VerifyReport::ToText() const {
  std::string text = absl::StrFormat("%s: backend %s, %d tokens, mean NLL %.6f\n", reference,
                                     backend, n_tokens, mean_nll);
  absl::StrAppendFormat(&text, "  %-28s %12s %12s %10s\n", "quantity", "largest", "mean",
                        "allowed");
  for (const VerifyQuantity& q : quantities) {
    absl::StrAppendFormat(&text, "  %-28s %12.3g %12.3g %10.2g  %s%s%s\n", q.name, q.largest_error,
                          q.mean_error, q.tolerance,
                          !q.is_judged ? "reported"
                          : q.ok       ? "ok"
                                       : "WRONG",
                          q.note.empty() ? "" : ", ", q.note);
  }
  for (const std::string& name : skipped) absl::StrAppend(&text, "  not compared: ", name, "\n");
  absl::StrAppend(&text, ok() ? "all within tolerance\n" : "NOT within tolerance\n");
  return text;
}

json::object VerifyReport::ToJson() const {
  json::array list;
  for (const VerifyQuantity& q : quantities) {
    list.push_back(json::object{{"name", json::string(q.name)},
                                {"largest_error", q.largest_error},
                                {"mean_error", q.mean_error},
                                {"tolerance", q.tolerance},
                                {"ok", q.ok},
                                {"judged", q.is_judged},
                                {"note", json::string(q.note)}});
  }
  json::array not_compared;
  for (const std::string& name : skipped) not_compared.emplace_back(json::string(name));
  return {{"reference", json::string(reference)},
          {"backend", json::string(backend)},
          {"tokens", n_tokens},
          {"mean_nll", mean_nll},
          {"ok", ok()},
          {"quantities", std::move(list)},
          {"skipped", std::move(not_compared)}};
}

}  // namespace hearth::worker
