// The sampling flags that `generate` and `chat` share.
#pragma once

#include <CLI/App.hpp>
#include <optional>
#include <string>
#include <vector>

#include "hearth/v1/inference.pb.h"

namespace hearth::cli {

// Absent values are the checkpoint's defaults. Bounds are checked by the worker.
struct SamplingFlags {
  std::optional<float> temperature, top_p, min_p;
  std::optional<float> presence_penalty, frequency_penalty, repetition_penalty;
  std::optional<int> top_k, max_tokens;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop;

  void AddTo(CLI::App& command);
  void FillIn(v1::GenerateRequest* request) const;
};

}  // namespace hearth::cli
