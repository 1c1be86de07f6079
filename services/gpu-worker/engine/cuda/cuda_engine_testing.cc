#include "services/gpu-worker/engine/cuda/cuda_engine_testing.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/base/status_macros.h"
#include "common/checkpoint/expert_layers.h"
#include "common/experts/layout.h"
#include "common/experts/packing.h"
#include "common/testing/source_dir.h"

namespace hearth::worker {

PackedExperts::PackedExperts(const Checkpoint* checkpoint)
    : checkpoint_(*checkpoint), plain_(checkpoint) {
  PackAll();
}

void PackedExperts::PackAll() {
  const ModelConfig& config = checkpoint_.config();
  memory_ = std::make_shared<std::vector<std::byte>>();
  for (int layer = 0; layer < ExpertLayers(checkpoint_); ++layer) {
    for (int e = 0; e < config.n_experts; ++e) {
      const size_t at = memory_->size();
      if (!LayerHasExperts(checkpoint_, layer)) {
        memory_->resize(at + stride_);
        continue;
      }
      const auto expert = plain_.Get(layer, (e + shift_) % config.n_experts);
      ASSERT_OK(expert);
      const auto bytes = PackedExpertBytes(*expert, kTiledExperts);
      ASSERT_OK(bytes);
      bytes_ = *bytes;
      stride_ = (*bytes + kExpertAlignment - 1) / kExpertAlignment * kExpertAlignment;
      memory_->resize(at + stride_);
      ASSERT_OK(PackExpert(*expert, kTiledExperts, std::span(*memory_).subspan(at, bytes_)));
    }
  }
  ++generation_;
}

void PackedExperts::Replace() {
  ++shift_;
  PackAll();
}

absl::StatusOr<ExpertRef> PackedExperts::Get(int layer, int expert) {
  if (on_get) on_get();
  ++uses_[{layer, expert}];
  const std::span<const std::byte> packed = Find(layer, expert);
  if (packed.empty()) return refusal;
  return UnpackExpert(packed);
}

std::span<const std::byte> PackedExperts::Packed(int layer, int expert) {
  if (on_packed) on_packed();
  return Find(layer, expert);
}

std::span<const std::byte> PackedExperts::Find(int layer, int expert) const {
  if (not_here.contains({layer, expert})) return {};
  const auto key =
      static_cast<size_t>(layer) * static_cast<size_t>(checkpoint_.config().n_experts) +
      static_cast<size_t>(expert);
  return std::span<const std::byte>(*memory_).subspan(key * stride_, bytes_);
}

void CudaEngineTest::Open(const std::string& folder) {
  auto checkpoint = Checkpoint::Open(std::filesystem::path(hearth::testing::SourceDir()) / folder);
  ASSERT_OK(checkpoint);
  experts_.reset();
  checkpoint_ = *std::move(checkpoint);
  experts_ = std::make_unique<PackedExperts>(checkpoint_.get());
}

std::unique_ptr<Engine> CudaEngineTest::Make(EngineOptions options) {
  options.backend = BackendKind::kCuda;
  if (options.n_threads == 1) options.n_threads = 4;
  options.exact = false;
  if (options.vram_bytes == 0) options.vram_bytes = uint64_t{4} << 30;
  auto engine = Engine::Create(*checkpoint_, experts_.get(), options);
  EXPECT_OK(engine);
  return engine.ok() ? *std::move(engine) : nullptr;
}

std::vector<int32_t> CudaEngineTest::Ids(int n, int seed) const {
  std::vector<int32_t> ids;
  for (int i = 0; i < n; ++i) ids.push_back((i * 37 + seed * 101 + i * i) % vocabulary());
  return ids;
}

absl::StatusOr<Logits> Feed(Engine& engine, SequenceState& state, std::span<const int32_t> ids) {
  const StepItem item{.state = &state, .tokens = ids};
  StepLogits logits;
  HEARTH_RETURN_IF_ERROR(engine.Step({&item, 1}, &logits));
  return std::move(logits.values);
}

absl::StatusOr<Answer> Continue(Engine& engine, std::span<const int32_t> prompt, int n_more,
                                size_t chunk, const std::vector<int32_t>& forced) {
  const auto state = engine.NewSequence();
  Logits last;
  for (size_t first = 0; first < prompt.size(); first += chunk) {
    const size_t n = std::min(chunk, prompt.size() - first);
    HEARTH_ASSIGN_OR_RETURN(last, Feed(engine, *state, prompt.subspan(first, n)));
  }
  Answer answer{.tokens = {}, .logits = last};
  for (int i = 0; i < n_more; ++i) {
    const int32_t token = forced.empty() ? Likeliest(last) : forced[static_cast<size_t>(i)];
    HEARTH_ASSIGN_OR_RETURN(last, Feed(engine, *state, {&token, 1}));
    answer.tokens.push_back(token);
    answer.logits.insert(answer.logits.end(), last.begin(), last.end());
  }
  return answer;
}

int32_t Likeliest(std::span<const float> logits) {
  return static_cast<int32_t>(std::ranges::max_element(logits) - logits.begin());
}

double RelativeRms(const Logits& got, const Logits& want) {
  EXPECT_EQ(got.size(), want.size());
  if (got.size() != want.size() || want.empty()) return std::numeric_limits<double>::infinity();
  double sum = 0, squares = 0, errors = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double value = want[i], error = value - got[i];
    sum += value, squares += value * value, errors += error * error;
  }
  const auto n = static_cast<double>(got.size());
  const double rms = std::sqrt(errors / n / std::max(1e-60, squares / n - sum / n * (sum / n)));
  return std::isnan(rms) ? std::numeric_limits<double>::infinity() : rms;
}

}  // namespace hearth::worker
