// Which synthetic model is meant: a named shape, a number of layers and a seed. Used by `hearth
// make-model`, and by everything that takes "synthetic:SHAPE[,layers=N][,seed=S][,mtp=1]" for a
// model.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/json.h"

namespace hearth {

inline constexpr int kMaxSyntheticLayers = 48;

struct SyntheticSpec {
  std::string shape;
  int n_layers = 0;
  uint64_t seed = 1;
  bool mtp = false;  // with a multi-token prediction head
};

std::vector<std::string> SyntheticShapes();

// InvalidArgument names the choices: an unknown shape, layers outside 1 to kMaxSyntheticLayers.
// `n_layers` 0: as many as the shape's model has.
absl::StatusOr<SyntheticSpec> MakeSyntheticSpec(std::string_view shape, int64_t n_layers,
                                                uint64_t seed, bool mtp = false);

bool IsSyntheticName(std::string_view model);  // begins with "synthetic:"
absl::StatusOr<SyntheticSpec> ParseSyntheticName(std::string_view model);
std::string SyntheticName(const SyntheticSpec& spec);  // in full, as ParseSyntheticName reads it

// config.json and generation_config.json in the published style.
json::object SyntheticConfig(const SyntheticSpec& spec);
json::object SyntheticGenerationConfig();

}  // namespace hearth
