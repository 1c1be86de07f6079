// Which tensors a model of a given configuration is made of, by name and shape. Used by Checkpoint
// to find and check them, and by the writer of synthetic checkpoints.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/checkpoint/config.h"

namespace hearth {

struct LinearSpec {
  std::string module;  // without ".weight"
  uint64_t out;
  uint64_t in;
};

struct VectorSpec {
  std::string name;  // in full
  std::vector<uint64_t> shape;
};

struct ModelTensors {
  std::vector<LinearSpec> linears;  // all but the experts
  std::vector<VectorSpec> vectors;
  std::vector<std::string>
      experts;  // "model.layers.0.mlp.experts": n_experts times gate, up and down
};

ModelTensors ListModelTensors(const ModelConfig& config);
// The multi-token prediction head; its names all begin with "mtp.".
ModelTensors ListMtpTensors(const ModelConfig& config);

}  // namespace hearth
