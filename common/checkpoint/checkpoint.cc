#include "common/checkpoint/checkpoint.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/fingerprint.h"
#include "common/checkpoint/resolver.h"

namespace hearth {
namespace {

// The first mistake that people make, told apart from a damaged checkpoint.
absl::Status CheckFolder(const std::filesystem::path& folder) {
  std::error_code ignored;
  const char* problem = nullptr;
  if (!std::filesystem::exists(folder, ignored)) {
    problem = "there is no such folder";
  } else if (!std::filesystem::is_directory(folder, ignored)) {
    problem = "is not a folder";
  } else if (!std::filesystem::exists(folder / "config.json", ignored)) {
    problem = "has no config.json";
  }
  if (problem == nullptr) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat(
      folder.string(), ": ", problem,
      "; give the folder of a checkpoint, with config.json, tokenizer.json and its .safetensors"));
}

absl::Status MissingError(const std::filesystem::path& folder, const Resolved& resolved) {
  constexpr size_t kMaxNamed = 8;
  const auto& names = resolved.missing;
  const size_t n_named = std::min(kMaxNamed, names.size());
  return absl::NotFoundError(
      absl::StrCat(folder.string(), ": ", resolved.stopped_early ? "at least " : "", names.size(),
                   names.size() == 1 ? " tensor is missing: " : " tensors are missing: ",
                   absl::StrJoin(names.begin(), names.begin() + n_named, ", "),
                   n_named < names.size() ? ", ..." : ""));
}

std::string_view QuantizationOf(const Resolved& resolved) {
  const int n_ways = (resolved.n_nf4 > 0) + (resolved.n_fp4 > 0) + (resolved.n_plain > 0);
  if (n_ways > 1) return "mixed";
  return resolved.n_nf4 > 0 ? "nf4" : resolved.n_fp4 > 0 ? "fp4" : "none";
}

class FileCheckpoint : public Checkpoint {
 public:
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::filesystem::path& folder) {
    auto checkpoint = std::make_unique<FileCheckpoint>();
    checkpoint->folder_ = folder;
    HEARTH_RETURN_IF_ERROR(CheckFolder(folder));
    HEARTH_ASSIGN_OR_RETURN(checkpoint->config_, ReadModelConfig(folder));
    HEARTH_ASSIGN_OR_RETURN(checkpoint->files_, TensorFolder::Open(folder));
    HEARTH_RETURN_IF_ERROR(checkpoint->ResolveAll());
    return checkpoint;
  }

  const ModelConfig& config() const override { return config_; }
  const std::filesystem::path& folder() const override { return folder_; }

  absl::StatusOr<std::vector<float>> Vector(std::string_view name) const override {
    const auto found = tensors_.vectors.find(ToAbsl(name));
    if (found == tensors_.vectors.end()) {
      return absl::NotFoundError(absl::StrCat(folder_.string(), ": no vector ", ToAbsl(name)));
    }
    HEARTH_ASSIGN_OR_RETURN(std::vector<float> values, ToFloats(*found->second.view));
    for (const float value : values) {
      if (!std::isfinite(value)) return found->second.Error("a value is NaN or infinite");
    }
    return values;
  }

  absl::StatusOr<OwnedLinear> Linear(std::string_view module) const override {
    HEARTH_ASSIGN_OR_RETURN(const LinearSource* source, Find(module));
    return ReadLinear(*source);
  }
  absl::StatusOr<LinearRef> LinearShape(std::string_view module) const override {
    HEARTH_ASSIGN_OR_RETURN(const LinearSource* source, Find(module));
    return ReadLinearShape(*source);
  }

  bool Has(std::string_view module) const override {
    return tensors_.linears.contains(ToAbsl(module));
  }
  bool has_mtp() const override { return has_mtp_; }
  const std::vector<std::string>& unknown_tensors() const override { return unknown_; }
  std::string_view quantization() const override { return quantization_; }
  std::string ExpertFingerprint() const override {
    return ComputeExpertFingerprint(config_, files_);
  }
  uint64_t total_bytes() const override {
    uint64_t total = 0;
    for (const auto& shard : files_.shards()) total += shard->data_bytes().size();
    return total;
  }

 private:
  absl::StatusOr<const LinearSource*> Find(std::string_view module) const {
    const auto found = tensors_.linears.find(ToAbsl(module));
    if (found != tensors_.linears.end()) return &found->second;
    return absl::NotFoundError(absl::StrCat(folder_.string(), ": no linear ", ToAbsl(module)));
  }

  absl::Status ResolveAll() {
    HEARTH_ASSIGN_OR_RETURN(tensors_, Resolve(files_, config_, ListModelTensors(config_)));
    if (!tensors_.missing.empty()) return MissingError(folder_, tensors_);
    quantization_ = QuantizationOf(tensors_);
    if (config_.tie_word_embeddings) {
      const LinearSource embedding = tensors_.linears.at("model.embed_tokens");
      tensors_.linears.emplace("lm_head", embedding);
    }
    // A head that is not whole is not used: what there is of it counts as unknown.
    if (files_.Find("mtp.fc.weight").view != nullptr) {
      HEARTH_ASSIGN_OR_RETURN(Resolved mtp, Resolve(files_, config_, ListMtpTensors(config_)));
      if (mtp.missing.empty()) AddMtp(std::move(mtp));
    }
    ListUnknown();
    return absl::OkStatus();
  }

  void AddMtp(Resolved mtp) {
    has_mtp_ = true;
    for (auto& entry : mtp.linears) tensors_.linears.insert(entry);
    for (auto& entry : mtp.vectors) tensors_.vectors.insert(entry);
    tensors_.used.insert(tensors_.used.end(), mtp.used.begin(), mtp.used.end());
  }

  void ListUnknown() {
    const absl::flat_hash_set<const TensorView*> used(tensors_.used.begin(), tensors_.used.end());
    for (const auto& shard : files_.shards()) {
      for (const TensorView& view : shard->tensors()) {
        if (!used.contains(&view)) unknown_.emplace_back(view.name);
      }
    }
    std::sort(unknown_.begin(), unknown_.end());
    tensors_.used = {};
  }

  std::filesystem::path folder_;
  ModelConfig config_;
  TensorFolder files_;
  Resolved tensors_;
  bool has_mtp_ = false;
  std::vector<std::string> unknown_;
  std::string_view quantization_;
};

}  // namespace

absl::StatusOr<LinearRef> Checkpoint::LinearShape(std::string_view module) const {
  HEARTH_ASSIGN_OR_RETURN(OwnedLinear linear, Linear(module));
  linear.ref.data = nullptr;
  linear.ref.absmax = nullptr;
  return linear.ref;
}

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::filesystem::path& folder) {
  return FileCheckpoint::Open(folder);
}

}  // namespace hearth
