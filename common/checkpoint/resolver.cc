#include "common/checkpoint/resolver.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace hearth {
namespace {

// A small file can claim a thousand layers of 4096 experts: looking stops here.
constexpr size_t kMaxMissing = 4096;

class Resolver {
 public:
  Resolver(const TensorFolder& folder, const ModelConfig& config)
      : folder_(folder), config_(config) {}

  absl::StatusOr<Resolved> Run(const ModelTensors& tensors) {
    for (const LinearSpec& spec : tensors.linears) {
      HEARTH_RETURN_IF_ERROR(AddLinear(spec));
    }
    for (const VectorSpec& spec : tensors.vectors) {
      HEARTH_RETURN_IF_ERROR(AddVector(spec));
    }
    for (const std::string& prefix : tensors.experts) {
      HEARTH_RETURN_IF_ERROR(AddExperts(prefix));
    }
    if (!found_.missing.empty()) return std::move(found_);
    ReadAheadStates();
    for (auto& [module, source] : found_.linears) {
      const auto fused = fused_shapes_.find(source.weight.view);
      const std::vector<uint64_t> whole = {source.out, source.in};
      HEARTH_RETURN_IF_ERROR(
          FinishGroup(source, fused == fused_shapes_.end() ? whole : fused->second));
    }
    return std::move(found_);
  }

 private:
  bool IsHopeless() {
    found_.stopped_early = found_.missing.size() >= kMaxMissing;
    return found_.stopped_early;
  }

  absl::Status AddLinear(const LinearSpec& spec) {
    HEARTH_ASSIGN_OR_RETURN(LinearSource source,
                            FindGroup(folder_, spec.module + ".weight", {spec.out, spec.in},
                                      found_.missing, found_.used));
    if (source.weight.view == nullptr) return absl::OkStatus();
    source.out = spec.out;
    source.in = spec.in;
    found_.linears.emplace(spec.module, source);
    return absl::OkStatus();
  }

  absl::Status AddVector(const VectorSpec& spec) {
    const TensorRef found = folder_.Find(spec.name);
    if (found.view == nullptr) {
      found_.missing.push_back(spec.name);
      return absl::OkStatus();
    }
    found_.used.push_back(found.view);
    const Dtype dtype = found.view->dtype;
    if (dtype != Dtype::kF32 && dtype != Dtype::kF16 && dtype != Dtype::kBF16) {
      return found.Error("must be F32, F16 or BF16");
    }
    if (!std::ranges::equal(found.view->shape, spec.shape)) {
      return found.Error(absl::StrCat("shape ", ShapeText(found.view->shape),
                                      ", the config asks for ", ShapeText(spec.shape)));
    }
    found_.vectors.emplace(spec.name, found);
    return absl::OkStatus();
  }

  absl::Status AddExperts(const std::string& prefix) {
    for (const char* suffix : {"", ".weight"}) {
      if (folder_.Find(absl::StrCat(prefix, ".gate_up_proj", suffix)).view != nullptr) {
        return AddFused(prefix, suffix);
      }
    }
    const uint64_t hidden = config_.hidden_size, width = config_.expert_intermediate_size;
    for (int e = 0; e < config_.n_experts && !IsHopeless(); ++e) {
      const std::string expert = absl::StrCat(prefix, ".", e);
      for (const LinearSpec& spec : {LinearSpec{expert + ".gate_proj", width, hidden},
                                     LinearSpec{expert + ".up_proj", width, hidden},
                                     LinearSpec{expert + ".down_proj", hidden, width}}) {
        HEARTH_RETURN_IF_ERROR(AddLinear(spec));
        const auto added = found_.linears.find(spec.module);
        if (added != found_.linears.end()) Count(added->second, 1);
      }
    }
    return absl::OkStatus();
  }

  // gate_up_proj [E, 2F, D], gate first; down_proj [E, D, F].
  absl::Status AddFused(const std::string& prefix, const char* suffix) {
    const uint64_t n = config_.n_experts, hidden = config_.hidden_size;
    const uint64_t width = config_.expert_intermediate_size;
    HEARTH_ASSIGN_OR_RETURN(
        const LinearSource gate_up,
        FindFused(absl::StrCat(prefix, ".gate_up_proj", suffix), {n, 2 * width, hidden}));
    HEARTH_ASSIGN_OR_RETURN(
        const LinearSource down,
        FindFused(absl::StrCat(prefix, ".down_proj", suffix), {n, hidden, width}));
    if (gate_up.weight.view == nullptr || down.weight.view == nullptr) return absl::OkStatus();
    const uint64_t size = width * hidden;
    for (uint64_t e = 0; e < n; ++e) {
      const std::string expert = absl::StrCat(prefix, ".", e);
      AddSlice(expert + ".gate_proj", gate_up, width, hidden, 2 * e * size);
      AddSlice(expert + ".up_proj", gate_up, width, hidden, (2 * e + 1) * size);
      AddSlice(expert + ".down_proj", down, hidden, width, e * size);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<LinearSource> FindFused(const std::string& name, std::vector<uint64_t> shape) {
    HEARTH_ASSIGN_OR_RETURN(LinearSource source,
                            FindGroup(folder_, name, shape, found_.missing, found_.used));
    if (source.weight.view != nullptr) fused_shapes_.emplace(source.weight.view, std::move(shape));
    return source;
  }

  void AddSlice(std::string module, LinearSource source, uint64_t out, uint64_t in,
                uint64_t first_element) {
    source.out = out;
    source.in = in;
    source.first_element = first_element;
    Count(source, 1);
    found_.linears.emplace(std::move(module), source);
  }

  void Count(const LinearSource& source, int64_t n) {
    if (source.kind != WeightKind::kBlock4) {
      found_.n_plain += n;
    } else {
      (source.is_fp4 ? found_.n_fp4 : found_.n_nf4) += n;
    }
  }

  // Quantization states are small texts all over the files: asking for their pages together lets a
  // cold disk serve them side by side instead of one fault after another.
  void ReadAheadStates() const {
    const uintptr_t page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
    for (const auto& [module, source] : found_.linears) {
      if (source.state.view == nullptr) continue;
      const auto bytes = source.state.view->bytes;
      const uintptr_t begin = reinterpret_cast<uintptr_t>(bytes.data()) / page * page;
      const uintptr_t end = reinterpret_cast<uintptr_t>(bytes.data() + bytes.size());
      ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_WILLNEED);  // advice only
    }
  }

  const TensorFolder& folder_;
  const ModelConfig& config_;
  Resolved found_;
  absl::flat_hash_map<const TensorView*, std::vector<uint64_t>> fused_shapes_;
};

}  // namespace

absl::StatusOr<Resolved> Resolve(const TensorFolder& folder, const ModelConfig& config,
                                 const ModelTensors& tensors) {
  return Resolver(folder, config).Run(tensors);
}

}  // namespace hearth
