#include "services/gpu-worker/engine/verify_reference.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/safetensors.h"

namespace hearth::worker {
namespace {

std::vector<int32_t> ToIds(const TensorView& tensor) {
  std::vector<int32_t> ids;
  for (size_t i = 0; i < tensor.n_elements(); ++i) {
    if (tensor.dtype == Dtype::kI64) {
      int64_t id;
      std::memcpy(&id, tensor.bytes.data() + i * 8, 8);
      ids.push_back(static_cast<int32_t>(std::clamp<int64_t>(id, -1, INT32_MAX)));
    } else {
      int32_t id;
      std::memcpy(&id, tensor.bytes.data() + i * 4, 4);
      ids.push_back(id);
    }
  }
  return ids;
}

}  // namespace

absl::StatusOr<Reference> ReadReference(const std::filesystem::path& path) {
  HEARTH_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(path));
  Reference reference;
  for (const TensorView& tensor : file.tensors()) {
    const std::string name(tensor.name);
    const bool is_integer = tensor.dtype == Dtype::kI32 || tensor.dtype == Dtype::kI64;
    if (is_integer && name == "input_ids") {
      reference.input_ids = ToIds(tensor);
    } else if (is_integer && name == "decode_ids") {
      reference.decode_ids = ToIds(tensor);
    } else if (is_integer) {
      const auto ids = ToIds(tensor);
      reference.floats[name].assign(ids.begin(), ids.end());
    } else if (tensor.dtype == Dtype::kF32) {
      auto& values = reference.floats[name];
      values.resize(tensor.n_elements());
      std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
    } else {
      reference.skipped.push_back(name);
    }
  }
  if (reference.input_ids.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path.string(), ": no integer tensor input_ids with at least one token in it"));
  }
  return reference;
}

}  // namespace hearth::worker
