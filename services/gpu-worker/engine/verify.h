// Runs an engine on the input of a reference file and says, quantity by quantity, how far it is
// off: `hearth verify`.
//
// Reference files are safetensors with float32 tensors named as in tests/golden: embedding,
// layers.I.hidden, layers.I.router.topk_ids and .topk_weights, layers.I.conv_state [1, channels,
// W], layers.I.recurrent_state [1, Hv, dk, dv], logits, decode_ids, decode_logits, draft_logits
// (where the engine drafts); input_ids is required, any other may be absent. What is there is
// compared.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/json.h"
#include "services/gpu-worker/engine/engine.h"

namespace hearth::worker {

// What is asked of an engine. The float32 backend must agree in every quantity. The fast ones
// round activations to int8, which random weights magnify and which can tip the router's choices:
// they are judged by what comes out, the logits and the likelihood of the text, and the rest is
// reported.
struct VerifyTolerances {
  bool exact = true;
  double hidden =
      1e-3;  // of the largest reference value of the tensor; states and router weights too
  double logits = 2e-3;  // of the largest reference logit
  double router_margin =
      1e-5;  // choices are compared where chosen and refused probabilities differ by more
  double chunked = 1e-3;          // between chunked and whole prefill, of the largest value
  double fast_nll = 5e-3;         // of the reference's mean NLL of input_ids
  double fast_logits_rms = 0.15;  // of the standard deviation of the reference's logits
};

// One line of the report.
struct VerifyQuantity {
  std::string name;
  double largest_error =
      0;  // relative to the largest reference value; for ids the share of wrong ones
  double mean_error = 0;
  double tolerance = 0;
  bool ok = false;
  bool is_judged = true;  // else only reported
  std::string note = {};
};

struct VerifyReport {
  std::string reference;
  std::string backend;
  int n_tokens = 0;
  double mean_nll = 0;  // of input_ids, each given those before it
  std::vector<VerifyQuantity> quantities;
  std::vector<std::string> skipped;  // tensors of the reference that nothing here computes

  bool ok() const;
  std::string ToText() const;
  json::object ToJson() const;
};

// Prefill all at once with every intermediate observed, greedy decoding, then prefill in chunks of
// 1, 7 and 64 against the whole. InvalidArgument if the reference doesn't fit the model.
absl::StatusOr<VerifyReport> Verify(Engine& engine, const std::filesystem::path& reference,
                                    const VerifyTolerances& tolerances = {});

}  // namespace hearth::worker
