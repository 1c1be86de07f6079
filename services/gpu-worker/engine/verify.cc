#include "services/gpu-worker/engine/verify.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "services/gpu-worker/engine/verify_reference.h"

namespace hearth::worker {
namespace {

// Errors relative to the largest magnitude of `want`.
VerifyQuantity Compare(std::string name, const std::vector<float>& got,
                       const std::vector<float>& want, double tolerance) {
  VerifyQuantity q{.name = std::move(name), .tolerance = tolerance};
  if (got.size() != want.size()) {
    q.note = absl::StrCat("has ", got.size(), " values, the reference ", want.size());
    q.largest_error = HUGE_VAL;
    return q;
  }
  double scale = 1e-30, sum = 0;
  for (const float value : want) scale = std::max(scale, std::abs(static_cast<double>(value)));
  for (size_t i = 0; i < want.size(); ++i) {
    const double error = std::abs(static_cast<double>(got[i]) - want[i]) / scale;
    q.largest_error = error <= q.largest_error ? q.largest_error : error;  // keeps a NaN
    if (std::isnan(error)) q.largest_error = HUGE_VAL;
    sum += error;
  }
  q.mean_error = sum / static_cast<double>(std::max<size_t>(1, want.size()));
  q.ok = q.largest_error <= tolerance;
  return q;
}

// Router choices must agree wherever the K-th and the next probability differ by more than the
// margin. The reference has only the chosen ones, so the gap is taken from our own logits, which
// the hidden states' tolerance ties to the reference's.
class RouterCheck {
 public:
  RouterCheck(int top_k, double margin) : top_k_(static_cast<size_t>(top_k)), margin_(margin) {}

  void Add(const std::vector<float>& logits, const std::vector<float>& got,
           const std::vector<float>& want) {
    if (got.size() != want.size() || got.empty()) {
      ++n_wrong_, ++n_rows_;
      return;
    }
    const size_t n_rows = got.size() / top_k_, n_experts = logits.size() / n_rows;
    for (size_t t = 0; t < n_rows; ++t) {
      ++n_rows_;
      std::vector<double> p(logits.begin() + static_cast<int64_t>(t * n_experts),
                            logits.begin() + static_cast<int64_t>((t + 1) * n_experts));
      const double largest = *std::ranges::max_element(p);
      double total = 0;
      for (double& value : p) total += value = std::exp(value - largest);
      std::ranges::sort(p, std::greater<>());
      const auto at = static_cast<int64_t>(t * top_k_), end = at + static_cast<int64_t>(top_k_);
      std::set<float> ours(got.begin() + at, got.begin() + end);
      const std::set<float> theirs(want.begin() + at, want.begin() + end);
      const bool clear = top_k_ >= n_experts || (p[top_k_ - 1] - p[top_k_]) / total > margin_;
      if (!clear) ++n_close_;
      if (clear && ours != theirs) ++n_wrong_;
    }
  }

  VerifyQuantity Result() const {
    VerifyQuantity q{.name = "router choices"};
    q.largest_error =
        n_rows_ == 0 ? 0 : static_cast<double>(n_wrong_) / static_cast<double>(n_rows_);
    q.mean_error = q.largest_error;
    q.ok = n_wrong_ == 0;
    q.note = absl::StrCat(n_rows_, " rows, ", n_close_, " too close to call");
    return q;
  }

 private:
  const size_t top_k_;
  const double margin_;
  int64_t n_rows_ = 0, n_wrong_ = 0, n_close_ = 0;
};

struct Prefilled {
  std::unique_ptr<SequenceState> state;
  std::vector<float> logits;  // [T, V]
};

absl::StatusOr<Prefilled> Prefill(Engine& engine, std::span<const int32_t> ids, size_t chunk) {
  Prefilled result{.state = engine.NewSequence(), .logits = {}};
  for (size_t begin = 0; begin < ids.size(); begin += chunk) {
    const StepItem item{.state = result.state.get(),
                        .tokens = ids.subspan(begin, std::min(chunk, ids.size() - begin)),
                        .logits = LogitsWanted::kAll};
    StepLogits logits;
    HEARTH_RETURN_IF_ERROR(engine.Step({&item, 1}, &logits));
    result.logits.insert(result.logits.end(), logits.values.begin(), logits.values.end());
  }
  return result;
}

// All delta-net layers' states, by the reference's names. The reference keeps one more, older input
// of the convolution.
Tensors DeltaStates(const Engine& engine, const SequenceState& state) {
  Tensors states;
  for (int layer = 0; layer < engine.config().n_layers; ++layer) {
    std::vector<float> conv, recurrent;
    if (!engine.ReadDeltaState(state, layer, &conv, &recurrent).ok()) continue;
    states[absl::StrCat("layers.", layer, ".conv_state")] = std::move(conv);
    states[absl::StrCat("layers.", layer, ".recurrent_state")] = std::move(recurrent);
  }
  return states;
}

std::vector<float> WithoutOldest(const std::vector<float>& values, int width) {
  std::vector<float> kept;
  for (size_t i = 0; i < values.size(); ++i) {
    if (i % static_cast<size_t>(width) != 0) kept.push_back(values[i]);
  }
  return kept;
}

double MeanNll(const std::vector<int32_t>& ids, const std::vector<float>& logits, size_t vocab) {
  double sum = 0;
  for (size_t t = 0; t + 1 < ids.size(); ++t) {
    const float* row = logits.data() + t * vocab;
    const double largest = *std::max_element(row, row + vocab);
    double total = 0;
    for (size_t v = 0; v < vocab; ++v) total += std::exp(row[v] - largest);
    sum += std::log(total) + largest - row[static_cast<size_t>(ids[t + 1])];
  }
  return ids.size() < 2 ? 0 : sum / static_cast<double>(ids.size() - 1);
}

// RMS of the error, relative to the standard deviation of `want`, which has as many values.
double RelativeRms(const std::vector<float>& got, const std::vector<float>& want) {
  double sum = 0, squares = 0, errors = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double value = want[i], error = value - got[i];
    sum += value, squares += value * value, errors += error * error;
  }
  const auto n = static_cast<double>(got.size());
  const double deviation = std::sqrt(std::max(1e-60, squares / n - sum / n * (sum / n)));
  return std::sqrt(errors / n) / deviation;
}

class Verification {
 public:
  Verification(Engine& engine, Reference reference, const VerifyTolerances& tolerances)
      : engine_(engine), reference_(std::move(reference)), tolerances_(tolerances) {}

  absl::StatusOr<VerifyReport> Run() {
    engine_.SetObserver([this](std::string_view name, int rows, int columns, const float* values) {
      // Whoever reads a prompt piece by piece shows the rows of one after those of another.
      std::vector<float>& all = observed_[std::string(name)];
      all.insert(all.end(), values, values + int64_t{rows} * columns);
    });
    auto whole = Prefill(engine_, reference_.input_ids, reference_.input_ids.size());
    engine_.SetObserver(nullptr);
    HEARTH_RETURN_IF_ERROR(Annotate(whole.status(), "prefill"));

    report_.n_tokens = static_cast<int>(reference_.input_ids.size());
    report_.mean_nll = MeanNll(reference_.input_ids, whole->logits,
                               static_cast<size_t>(engine_.config().vocab_size));
    CompareIntermediates();
    const Tensors states = DeltaStates(engine_, *whole->state);
    CompareStates(states);
    CompareTensor("logits", whole->logits, tolerances_.logits);
    HEARTH_RETURN_IF_ERROR(Annotate(CompareDecoding(*whole->state, whole->logits), "decoding"));
    std::vector<float> draft_logits;
    HEARTH_RETURN_IF_ERROR(Annotate(CompareDrafts(&draft_logits), "drafts"));
    if (!tolerances_.exact) {
      for (VerifyQuantity& q : report_.quantities) q.is_judged = false;
      JudgeOutcome(whole->logits, draft_logits);
    }
    for (const size_t chunk : {1, 7, 64}) {
      HEARTH_RETURN_IF_ERROR(
          Annotate(CompareChunked(chunk, whole->logits, states), "chunked prefill"));
    }
    for (const auto& [name, values] : reference_.floats) {
      if (!compared_.contains(name)) reference_.skipped.push_back(name);
    }
    report_.skipped = std::move(reference_.skipped);
    return std::move(report_);
  }

 private:
  // Of the fast backends: the text's likelihood, and logits as a whole.
  void JudgeOutcome(const std::vector<float>& logits, const std::vector<float>& draft_logits) {
    JudgeRms("logits", logits);
    if (!draft_logits.empty()) JudgeRms("draft_logits", draft_logits);
    const auto want = reference_.floats.find("logits");
    if (want == reference_.floats.end()) return;
    const double nll = MeanNll(reference_.input_ids, want->second,
                               static_cast<size_t>(engine_.config().vocab_size));
    if (nll <= 0) return;  // a single token has none
    Judge("mean NLL", std::abs(report_.mean_nll - nll) / nll, tolerances_.fast_nll,
          absl::StrCat("the reference's is ", nll));
  }

  void JudgeRms(const std::string& name, const std::vector<float>& got) {
    const auto want = reference_.floats.find(name);
    if (want == reference_.floats.end() || want->second.size() != got.size()) {
      report_.quantities.push_back(
          {.name = name + " RMS", .note = "the reference has none of this shape"});
      return;
    }
    Judge(name + " RMS", RelativeRms(got, want->second), tolerances_.fast_logits_rms,
          "of the reference's standard deviation");
  }

  void Judge(std::string name, double error, double tolerance, std::string note) {
    report_.quantities.push_back({.name = std::move(name),
                                  .largest_error = error,
                                  .mean_error = error,
                                  .tolerance = tolerance,
                                  .ok = error <= tolerance,
                                  .note = std::move(note)});
  }

  void CompareTensor(const std::string& name, const std::vector<float>& got, double tolerance) {
    const auto want = reference_.floats.find(name);
    if (want == reference_.floats.end()) return;
    compared_.insert(name);
    report_.quantities.push_back(Compare(name, got, want->second, tolerance));
  }

  void CompareIntermediates() {
    RouterCheck router(engine_.config().experts_per_token, tolerances_.router_margin);
    bool has_router = false;
    for (const auto& [name, want] : reference_.floats) {
      if (absl::EndsWith(name, ".router.topk_ids")) {
        const std::string prefix(absl::StripSuffix(name, "topk_ids"));
        router.Add(observed_[prefix + "logits"], observed_[name], want);
        compared_.insert(name);
        has_router = true;
      } else if (observed_.contains(name)) {
        CompareTensor(name, observed_[name], tolerances_.hidden);
      }
    }
    if (has_router) report_.quantities.push_back(router.Result());
  }

  void CompareStates(const Tensors& states) {
    for (const auto& [name, values] : states) {
      const auto want = reference_.floats.find(name);
      if (want == reference_.floats.end()) continue;
      compared_.insert(name);
      const bool is_conv = absl::EndsWith(name, ".conv_state");
      report_.quantities.push_back(
          Compare(name, values,
                  is_conv ? WithoutOldest(want->second, engine_.config().conv_width) : want->second,
                  tolerances_.hidden));
    }
  }

  absl::Status CompareDecoding(SequenceState& state, const std::vector<float>& prefill_logits) {
    if (reference_.decode_ids.empty()) return absl::OkStatus();
    const auto vocab = static_cast<size_t>(engine_.config().vocab_size);
    std::vector<float> last(prefill_logits.end() - static_cast<int64_t>(vocab),
                            prefill_logits.end());
    std::vector<float> all;
    size_t n_wrong = 0;
    for (const int32_t want : reference_.decode_ids) {
      const auto got = static_cast<int32_t>(std::ranges::max_element(last) - last.begin());
      if (got != want) ++n_wrong;
      const StepItem item{.state = &state, .tokens = {&want, 1}, .logits = LogitsWanted::kLast};
      StepLogits logits;
      HEARTH_RETURN_IF_ERROR(engine_.Step({&item, 1}, &logits));
      last = std::move(logits.values);
      all.insert(all.end(), last.begin(), last.end());
    }
    VerifyQuantity ids{.name = "greedy tokens"};
    ids.largest_error = ids.mean_error =
        static_cast<double>(n_wrong) / static_cast<double>(reference_.decode_ids.size());
    ids.ok = n_wrong == 0;
    ids.note = absl::StrCat(reference_.decode_ids.size(), " tokens");
    report_.quantities.push_back(std::move(ids));
    CompareTensor("decode_logits", all, tolerances_.logits);
    return absl::OkStatus();
  }

  // Each token of the input is guessed from the hidden state two before it and the token before it.
  absl::Status CompareDrafts(std::vector<float>* all) {
    const auto want = reference_.floats.find("draft_logits");
    if (want == reference_.floats.end() || engine_.max_drafts() == 0) return absl::OkStatus();
    const auto state = engine_.NewSequence();
    const std::vector<int32_t>& ids = reference_.input_ids;
    for (size_t t = 0; t + 1 < ids.size(); ++t) {
      const StepItem step{
          .state = state.get(), .tokens = {&ids[t], 1}, .logits = LogitsWanted::kNone};
      StepLogits logits;
      HEARTH_RETURN_IF_ERROR(engine_.Step({&step, 1}, &logits));
      const DraftItem draft{.state = state.get(), .token = ids[t + 1]};
      HEARTH_RETURN_IF_ERROR(engine_.Draft({&draft, 1}, 0, &logits));
      all->insert(all->end(), logits.values.begin(), logits.values.end());
    }
    CompareTensor("draft_logits", *all, tolerances_.logits);
    report_.quantities.back().note = absl::StrCat(AgreeingRows(*all, want->second), " of ",
                                                  ids.size() - 1, " guesses are the reference's");
    return absl::OkStatus();
  }

  // Rows whose largest value stands in the same place.
  size_t AgreeingRows(const std::vector<float>& got, const std::vector<float>& want) const {
    const auto width = static_cast<size_t>(engine_.config().vocab_size);
    const auto best = [width](const std::vector<float>& values, size_t row) {
      const auto begin = values.begin() + static_cast<int64_t>(row * width);
      return std::max_element(begin, begin + static_cast<int64_t>(width)) - begin;
    };
    size_t n = 0;
    for (size_t row = 0; (row + 1) * width <= std::min(got.size(), want.size()); ++row) {
      if (best(got, row) == best(want, row)) ++n;
    }
    return n;
  }

  absl::Status CompareChunked(size_t chunk, const std::vector<float>& logits,
                              const Tensors& states) {
    HEARTH_ASSIGN_OR_RETURN(const Prefilled chunked, Prefill(engine_, reference_.input_ids, chunk));
    const std::string name = absl::StrCat("prefill in chunks of ", chunk);
    if (!engine_.rows_are_independent()) {
      const double rms = RelativeRms(chunked.logits, logits);
      Judge(name, rms, tolerances_.fast_logits_rms, "of the standard deviation of the whole's");
      return absl::OkStatus();
    }
    VerifyQuantity worst = Compare(name, chunked.logits, logits, tolerances_.chunked);
    for (const auto& [tensor, values] : DeltaStates(engine_, *chunked.state)) {
      const VerifyQuantity q = Compare(tensor, values, states.at(tensor), tolerances_.chunked);
      worst.largest_error = std::max(worst.largest_error, q.largest_error);
      worst.ok = worst.ok && q.ok;
    }
    report_.quantities.push_back(std::move(worst));
    return absl::OkStatus();
  }

  Engine& engine_;
  Reference reference_;
  const VerifyTolerances tolerances_;
  Tensors observed_;
  std::set<std::string> compared_;
  VerifyReport report_;
};

}  // namespace

absl::StatusOr<VerifyReport> Verify(Engine& engine, const std::filesystem::path& reference,
                                    const VerifyTolerances& tolerances) {
  HEARTH_ASSIGN_OR_RETURN(Reference values, ReadReference(reference));
  HEARTH_ASSIGN_OR_RETURN(VerifyReport report,
                          Verification(engine, std::move(values), tolerances).Run());
  report.reference = reference.string();
  report.backend = std::string(engine.backend());
  return report;
}

}  // namespace hearth::worker
