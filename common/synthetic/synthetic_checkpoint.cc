#include "common/synthetic/synthetic_checkpoint.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "common/base/thread_pool.h"
#include "common/synthetic/random.h"
#include "common/synthetic/tensors.h"

namespace hearth {
namespace {

constexpr uint64_t kPieceBytes = 4 << 20;
constexpr uint64_t kSharedWork = 64 << 20;  // larger tensors are made by all threads

std::vector<float> FloatsOf(const SyntheticTensor& tensor, uint64_t seed) {
  std::vector<float> values(tensor.n_bytes() / sizeof(float));
  FillTensor(tensor, seed, 0, std::as_writable_bytes(std::span(values)));
  return values;
}

class SyntheticCheckpoint final : public Checkpoint {
 public:
  SyntheticCheckpoint(const SyntheticSpec& spec, ModelConfig config, int n_threads)
      : spec_(spec), config_(std::move(config)), n_threads_(n_threads), name_(SyntheticName(spec)) {
    ModelTensors tensors = ListSyntheticModel(config_, spec.mtp);
    for (LinearSpec& linear : tensors.linears) linears_.emplace(linear.module, linear);
    for (VectorSpec& vector : tensors.vectors) vectors_.emplace(vector.name, vector);
    expert_prefixes_.insert(tensors.experts.begin(), tensors.experts.end());
    for (const SyntheticTensor& tensor : ListSyntheticTensors(config_, spec.mtp)) {
      total_bytes_ += tensor.n_bytes();
    }
  }

  const ModelConfig& config() const override { return config_; }
  const std::filesystem::path& folder() const override { return name_; }

  absl::StatusOr<std::vector<float>> Vector(std::string_view name) const override {
    const auto found = vectors_.find(ToAbsl(name));
    if (found == vectors_.end()) {
      return absl::NotFoundError(absl::StrCat(name_.string(), ": no vector ", ToAbsl(name)));
    }
    const SyntheticTensor tensor = VectorTensor(found->second);
    std::vector<uint16_t> halves(tensor.n_bytes() / sizeof(uint16_t));
    FillTensor(tensor, spec_.seed, 0, std::as_writable_bytes(std::span(halves)));
    std::vector<float> values(halves.size());
    std::ranges::transform(halves, values.begin(), BF16ToF32);
    return values;
  }

  absl::StatusOr<LinearRef> LinearShape(std::string_view module) const override {
    HEARTH_ASSIGN_OR_RETURN(const LinearSpec spec, Find(module));
    return Shape(spec);
  }

  absl::StatusOr<OwnedLinear> Linear(std::string_view module) const override {
    HEARTH_ASSIGN_OR_RETURN(const LinearSpec spec, Find(module));
    const std::vector<SyntheticTensor> group = LinearTensors(spec);
    OwnedLinear linear;
    linear.ref = Shape(spec);
    linear.aligned.resize(group[0].n_bytes());
    Fill(group[0], linear.aligned);
    linear.ref.data = linear.aligned.data();
    if (linear.ref.kind != WeightKind::kBlock4) return linear;
    std::vector<std::byte> codes(group[1].n_bytes());
    FillTensor(group[1], spec_.seed, 0, codes);
    linear.absmax = DecodeScales(codes, FloatsOf(group[2], spec_.seed), NestedOffset(spec));
    linear.ref.absmax = linear.absmax.data();
    return linear;
  }

  bool Has(std::string_view module) const override { return Find(module).ok(); }
  bool has_mtp() const override { return spec_.mtp; }
  const std::vector<std::string>& unknown_tensors() const override { return unknown_; }
  std::string_view quantization() const override { return "nf4"; }
  std::string ExpertFingerprint() const override {
    std::string digits;
    for (uint64_t part = 0; part < 4; ++part) {
      absl::StrAppend(&digits, absl::Hex(StreamOf(part, name_.string()), absl::kZeroPad16));
    }
    return digits;
  }
  uint64_t total_bytes() const override { return total_bytes_; }

 private:
  static LinearRef Shape(const LinearSpec& spec) {
    LinearRef shape;
    shape.kind = IsQuantised(spec.module) ? WeightKind::kBlock4 : WeightKind::kBF16;
    shape.out = static_cast<int64_t>(spec.out);
    shape.in = static_cast<int64_t>(spec.in);
    shape.block_size = kSyntheticBlock;
    if (shape.kind == WeightKind::kBlock4) shape.levels = kNf4Levels;
    return shape;
  }

  // As the reader of files does, operation by operation.
  static std::vector<float> DecodeScales(std::span<const std::byte> codes,
                                         std::span<const float> nested, float offset) {
    const std::vector<float>& levels = NestedLevels();
    std::vector<float> scales(codes.size());
    for (size_t i = 0; i < codes.size(); ++i) {
      scales[i] = levels[static_cast<uint8_t>(codes[i])] * nested[i / kSyntheticNestedBlock];
      scales[i] = scales[i] + offset;
    }
    return scales;
  }

  void Fill(const SyntheticTensor& tensor, std::span<std::byte> bytes) const {
    if (bytes.size() < kSharedWork) return FillTensor(tensor, spec_.seed, 0, bytes);
    ThreadPool pool(n_threads_);
    const uint64_t n_pieces = (bytes.size() + kPieceBytes - 1) / kPieceBytes;
    pool.ParallelFor(static_cast<int>(n_pieces), [&](int i) {
      const uint64_t begin = static_cast<uint64_t>(i) * kPieceBytes;
      const uint64_t size = std::min(kPieceBytes, bytes.size() - begin);
      FillTensor(tensor, spec_.seed, begin, bytes.subspan(begin, size));
    });
  }

  absl::StatusOr<LinearSpec> Find(std::string_view module) const {
    const auto found = linears_.find(ToAbsl(module));
    if (found != linears_.end()) return found->second;
    // PREFIX.EXPERT.NAME
    const size_t last = module.rfind('.');
    const size_t middle = last == std::string_view::npos || last == 0 ? std::string_view::npos
                                                                      : module.rfind('.', last - 1);
    int expert = -1;
    if (middle != std::string_view::npos &&
        expert_prefixes_.contains(ToAbsl(module.substr(0, middle))) &&
        absl::SimpleAtoi(ToAbsl(module.substr(middle + 1, last - middle - 1)), &expert) &&
        expert >= 0 && expert < config_.n_experts) {
      const auto hidden = static_cast<uint64_t>(config_.hidden_size);
      const auto width = static_cast<uint64_t>(config_.expert_intermediate_size);
      const std::string_view name = module.substr(last + 1);
      if (name == "gate_proj" || name == "up_proj") {
        return LinearSpec{std::string(module), width, hidden};
      }
      if (name == "down_proj") return LinearSpec{std::string(module), hidden, width};
    }
    return absl::NotFoundError(absl::StrCat(name_.string(), ": no linear ", ToAbsl(module)));
  }

  const SyntheticSpec spec_;
  const ModelConfig config_;
  const int n_threads_;
  const std::filesystem::path name_;
  absl::flat_hash_map<std::string, LinearSpec> linears_;
  absl::flat_hash_map<std::string, VectorSpec> vectors_;
  absl::flat_hash_set<std::string> expert_prefixes_;
  const std::vector<std::string> unknown_;
  uint64_t total_bytes_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> OpenSynthetic(const SyntheticSpec& spec,
                                                          int n_threads) {
  HEARTH_ASSIGN_OR_RETURN(ModelConfig config,
                          ParseModelConfig(SerializeJson(SyntheticConfig(spec)),
                                           SerializeJson(SyntheticGenerationConfig())));
  return std::make_unique<SyntheticCheckpoint>(spec, std::move(config), n_threads);
}

absl::StatusOr<std::unique_ptr<Checkpoint>> OpenModel(const std::filesystem::path& model,
                                                      int n_threads) {
  if (!IsSyntheticName(model.string())) return Checkpoint::Open(model);
  HEARTH_ASSIGN_OR_RETURN(const SyntheticSpec spec, ParseSyntheticName(model.string()));
  return OpenSynthetic(spec, n_threads);
}

}  // namespace hearth
