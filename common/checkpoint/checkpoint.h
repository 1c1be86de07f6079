// A published checkpoint folder, opened and checked: safetensors (one file or sharded),
// bf16/f16/f32 and bitsandbytes NF4/FP4 decided tensor by tensor. Files stay mapped as long as the
// Checkpoint lives; views borrow from it.
//
// Thread-safe after Open (all methods const).
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/checkpoint/config.h"
#include "common/tensor/linear.h"

namespace hearth {

// A linear in memory of its own (absmax decoded from its double quantization). `data` may still
// point into the mapped checkpoint: keep that alive.
struct OwnedLinear {
  LinearRef ref;
  std::vector<float> absmax;
  std::vector<std::byte>
      aligned;  // a copy of the data, only where the file keeps it at an address odd for its type
};

class Checkpoint {
 public:
  // Opens config, index and every shard; checks every header, offset, shape and quantization group
  // against the config. Missing tensors are NotFound (up to 8 named, and the count); malformed ones
  // are DataLoss or InvalidArgument with file and tensor.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::filesystem::path& folder);
  virtual ~Checkpoint() = default;

  virtual const ModelConfig& config() const = 0;
  virtual const std::filesystem::path& folder() const = 0;

  // A small tensor (norm, A_log, dt_bias, conv1d) converted to float32, flattened. `name` is the
  // checkpoint's full name.
  virtual absl::StatusOr<std::vector<float>> Vector(std::string_view name) const = 0;
  // A linear by its module name: "model.layers.3.self_attn.q_proj", "lm_head" (the embedding where
  // tied), "model.embed_tokens", "model.layers.3.mlp.experts.7.up_proj" (sliced out of a fused
  // tensor where it is one). absmax values that are NaN, infinite or negative are DataLoss.
  virtual absl::StatusOr<OwnedLinear> Linear(std::string_view module) const = 0;
  // Kind, shape, block size and levels of a linear; data and absmax are null. Here: those of
  // Linear; a folder's checkpoint reads neither weights nor scales for it.
  virtual absl::StatusOr<LinearRef> LinearShape(std::string_view module) const;
  virtual bool Has(std::string_view module) const = 0;

  // An MTP head's tensors are there (mtp.*).
  virtual bool has_mtp() const = 0;
  // Tensors that nothing here reads, sorted: listed for people, never an error.
  virtual const std::vector<std::string>& unknown_tensors() const = 0;
  // "nf4", "fp4", "none" or "mixed": what the experts' weights are kept in.
  virtual std::string_view quantization() const = 0;
  // Hex digest over names, dtypes, shapes, file sizes and modification-independent header bytes of
  // everything that the experts are made of, plus the config fields that shape them: changes when
  // the experts could.
  virtual std::string ExpertFingerprint() const = 0;
  // Bytes of the files' data sections.
  virtual uint64_t total_bytes() const = 0;
};

}  // namespace hearth
