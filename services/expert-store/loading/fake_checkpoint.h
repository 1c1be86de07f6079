// A checkpoint without files, for tests of loading and of the store: three layers of four experts,
// of which layer 1 has none, with the contents of common/experts/testing.h, and a fourth where it
// has a multi-token prediction head.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/status.h"
#include "common/checkpoint/checkpoint.h"
#include "common/experts/testing.h"

namespace hearth::testing {

class FakeCheckpoint final : public Checkpoint {
 public:
  explicit FakeCheckpoint(std::string fingerprint = "0123abcd")
      : fingerprint_(std::move(fingerprint)) {
    config_.n_layers = 3;
    config_.n_experts = 4;
    config_.experts_per_token = 2;
    config_.hidden_size = 20;
    config_.expert_intermediate_size = 6;
    config_.layers.resize(3);
    config_.layers[1].has_experts = false;
  }

  // Modules that are refused, and what runs before each read. Set before use.
  std::string bad_module;
  std::function<void(int layer, int expert)> before_read = [](int, int) {};
  // Experts are other ones than testing.h's.
  uint32_t seed_offset = 0;
  std::atomic<int> n_reads{0};
  bool with_mtp = false;

  ModelConfig& mutable_config() { return config_; }
  const ModelConfig& config() const override { return config_; }
  const std::filesystem::path& folder() const override { return folder_; }
  absl::StatusOr<std::vector<float>> Vector(std::string_view) const override {
    return absl::NotFoundError("no vectors here");
  }
  absl::StatusOr<OwnedLinear> Linear(std::string_view module) const override {
    // model.layers.L.mlp.experts.E.gate_proj, mtp.layers.0.mlp.experts.E.gate_proj
    const std::vector<std::string> parts = absl::StrSplit(ToAbsl(module), '.');
    if (parts.size() != 7) return absl::NotFoundError(ToAbsl(module));
    const int layer = parts[0] == "mtp" ? config_.n_layers : std::stoi(parts[2]);
    const int expert = std::stoi(parts[5]);
    before_read(layer, expert);
    ++const_cast<FakeCheckpoint*>(this)->n_reads;
    if (module == bad_module) {
      return absl::DataLossError(
          absl::StrCat("fake.safetensors: ", ToAbsl(module), ": NaN absmax"));
    }
    auto made = std::make_shared<FakeExpert>(SeedOf(layer, expert) + seed_offset);
    FakeLinear& linear = parts[6] == "gate_proj" ? made->gate
                         : parts[6] == "up_proj" ? made->up
                                                 : made->down;
    OwnedLinear owned;
    owned.absmax = linear.absmax;
    owned.ref = linear.ref;
    owned.ref.absmax = owned.absmax.data();
    const std::lock_guard lock(mutex_);
    kept_.push_back(std::move(made));  // `data` borrows from the checkpoint
    return owned;
  }
  bool Has(std::string_view) const override { return true; }
  bool has_mtp() const override { return with_mtp; }
  const std::vector<std::string>& unknown_tensors() const override { return unknown_; }
  std::string_view quantization() const override { return "nf4"; }
  std::string ExpertFingerprint() const override { return fingerprint_; }
  uint64_t total_bytes() const override { return 0; }

 private:
  ModelConfig config_;
  std::filesystem::path folder_ = "fake";
  std::vector<std::string> unknown_;
  std::string fingerprint_;
  mutable std::mutex mutex_;
  mutable std::vector<std::shared_ptr<FakeExpert>> kept_;
};

}  // namespace hearth::testing
