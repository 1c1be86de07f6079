#include "bench/ops_cases.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/page_buffer.h"
#include "common/tensor/tiled.h"
#include "services/gpu-worker/ops/fast_ops.h"

namespace hearth::bench {
namespace {

using worker::FastOps;

constexpr int64_t kWidth = 2048, kInner = 512;

// Random bits are valid codes; scales are those of weights near one over the root of the width.
class Arena {
 public:
  explicit Arena(size_t bytes) {
    auto buffer = PageBuffer::Allocate(bytes);
    HEARTH_CHECK(buffer.ok());
    buffer_ = *std::move(buffer);
    std::mt19937_64 random(1);
    auto* words = reinterpret_cast<uint64_t*>(buffer_.data());
    for (size_t i = 0; i < bytes / 8; ++i) words[i] = random();
  }
  LinearRef Take(WeightKind kind, int64_t out, int64_t in) {
    LinearRef ref{.kind = kind, .out = out, .in = in};
    ref.levels = kNf4Levels;
    const LinearBytes bytes = BytesOf(ref);
    ref.data = Next(bytes.data);
    if (bytes.absmax > 0) {
      auto* scales = reinterpret_cast<uint16_t*>(Next(bytes.absmax));
      std::fill_n(scales, bytes.absmax / 2, F32ToF16(0.02f));
      ref.scales = scales;
    } else if (kind == WeightKind::kBF16) {  // random bits hold NaNs
      auto* values = static_cast<uint16_t*>(const_cast<void*>(ref.data));
      std::fill_n(values, out * in, F32ToBF16(0.02f));
    }
    return ref;
  }
  size_t used() const { return used_; }

 private:
  std::byte* Next(uint64_t bytes) {
    HEARTH_CHECK(used_ + bytes <= buffer_.bytes());
    std::byte* at = buffer_.data() + used_;
    used_ += (bytes + 63) / 64 * 64;
    return at;
  }
  PageBuffer buffer_;
  size_t used_ = 0;
};

std::vector<float> Random(int64_t n) {
  std::vector<float> values(static_cast<size_t>(n));
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  for (float& value : values) value = normal(random);
  return values;
}

struct Shared {
  explicit Shared(worker::Parallel& parallel, const worker::Kernels& kernels)
      : ops(&parallel, &kernels), arena(size_t{2200} << 20) {
    for (int i = 0; i < 512; ++i) {
      experts.push_back({arena.Take(WeightKind::kTiled4, kInner, kWidth),
                         arena.Take(WeightKind::kTiled4, kInner, kWidth),
                         arena.Take(WeightKind::kTiled4, kWidth, kInner)});
    }
  }
  FastOps ops;
  Arena arena;
  std::vector<ExpertRef> experts;
  int next = 0;  // expert or matrix, so that caches are left behind
};

double Bytes(const LinearRef& ref) {
  const LinearBytes bytes = BytesOf(ref);
  return static_cast<double>(bytes.data + bytes.absmax);
}

OpCase LinearCase(const std::shared_ptr<Shared>& shared, WeightKind kind, int64_t out, int n_rows) {
  constexpr int kCopies = 8;
  auto matrices = std::make_shared<std::vector<LinearRef>>();
  for (int i = 0; i < kCopies; ++i) matrices->push_back(shared->arena.Take(kind, out, kWidth));
  auto x = std::make_shared<std::vector<float>>(Random(n_rows * kWidth));
  auto y = std::make_shared<std::vector<float>>(static_cast<size_t>(n_rows * out));
  const char* name = kind == WeightKind::kTiled4   ? "linear nf4"
                     : kind == WeightKind::kTiled8 ? "linear 8-bit"
                                                   : "linear bf16";
  return {.op = name,
          .shape = absl::StrCat("[", out, ", ", kWidth, "] x ", n_rows),
          .bytes = Bytes(matrices->front()),
          .products = static_cast<double>(out * kWidth * n_rows),
          .is_integer = kind != WeightKind::kBF16,
          .run = [=] {
            shared->ops.Linear((*matrices)[static_cast<size_t>(shared->next++ % kCopies)], n_rows,
                               x->data(), y->data());
          }};
}

// n_rows tokens that choose top_k experts each, as a router without preferences would.
OpCase ExpertsCase(const std::shared_ptr<Shared>& shared, int n_rows) {
  constexpr int kTopK = 10;
  auto h = std::make_shared<std::vector<float>>(Random(n_rows * kWidth));
  auto out = std::make_shared<std::vector<float>>(h->size());
  auto choice = std::make_shared<worker::RouterChoice>();
  auto random = std::make_shared<std::mt19937>(3);
  const auto run = [=] {
    choice->ids.clear();
    choice->weights.assign(static_cast<size_t>(n_rows) * kTopK, 0.1f);
    std::vector<worker::ExpertWork> work(512);
    for (int32_t place = 0; place < n_rows * kTopK; ++place) {
      const auto id = static_cast<int32_t>((*random)() % 512);
      choice->ids.push_back(id);
      auto& item = work[static_cast<size_t>(id)];
      item.expert = shared->experts[static_cast<size_t>(id)];
      item.rows.push_back(place / kTopK);
      item.places.push_back(place);
    }
    std::erase_if(work, [](const worker::ExpertWork& item) { return item.rows.empty(); });
    shared->ops.Experts(n_rows, kWidth, kTopK, h->data(), work, *choice, out->data());
  };
  const ExpertRef& one = shared->experts.front();
  const double expert = Bytes(one.gate) + Bytes(one.up) + Bytes(one.down);
  double touched = 512;  // 512 (1 - (511/512)^places) distinct ones
  for (int i = 0; i < n_rows * kTopK; ++i) touched *= 511.0 / 512;
  return {.op = "experts nf4",
          .shape = absl::StrCat("10 of 512 x ", n_rows),
          .bytes = (512 - touched) * expert,
          .products = 3.0 * kWidth * kInner * n_rows * kTopK,
          .is_integer = true,
          .run = run};
}

// What a GPU asks for in a decode step: a few experts of one row, and then nothing for a while.
OpCase MissesCase(const std::shared_ptr<Shared>& shared, int n_experts,
                  std::chrono::microseconds pause) {
  auto h = std::make_shared<std::vector<float>>(Random(kWidth));
  auto out = std::make_shared<std::vector<float>>(h->size());
  auto choice = std::make_shared<worker::RouterChoice>();
  auto random = std::make_shared<std::mt19937>(3);
  const auto run = [=] {
    choice->ids.clear();
    choice->weights.assign(static_cast<size_t>(n_experts), 0.1f);
    std::vector<worker::ExpertWork> work(static_cast<size_t>(n_experts));
    for (int32_t place = 0; place < n_experts; ++place) {
      auto& item = work[static_cast<size_t>(place)];
      item.expert = shared->experts[(*random)() % 512];
      item.rows = {0};
      item.places = {place};
      choice->ids.push_back(place);
    }
    shared->ops.Experts(1, kWidth, n_experts, h->data(), work, *choice, out->data());
  };
  const ExpertRef& one = shared->experts.front();
  return {.op = "misses nf4",
          .shape = absl::StrCat(n_experts, " of 512 x 1, after ", pause.count(), " us"),
          .bytes = n_experts * (Bytes(one.gate) + Bytes(one.up) + Bytes(one.down)),
          .products = 3.0 * kWidth * kInner * n_experts,
          .is_integer = true,
          .run = run,
          .prepare = [pause] {
            const auto end = std::chrono::steady_clock::now() + pause;
            while (std::chrono::steady_clock::now() < end) {
            }
          }};
}

OpCase DeltaCase(const std::shared_ptr<Shared>& shared, int n_rows) {
  const worker::DeltaShape shape{
      .key_heads = 16, .value_heads = 32, .key_dim = 128, .value_dim = 128};
  constexpr int kCopies = 32;  // of the state, 2 MB each
  auto mixed = std::make_shared<std::vector<float>>(Random(int64_t{n_rows} * shape.channels()));
  auto ba = std::make_shared<std::vector<float>>(Random(n_rows * 64));
  auto z = std::make_shared<std::vector<float>>(Random(n_rows * 4096));
  auto norm = std::make_shared<std::vector<float>>(Random(128));
  auto rates = std::make_shared<std::vector<float>>(Random(32));
  auto state = std::make_shared<std::vector<float>>(static_cast<size_t>(kCopies) * 32 * 128 * 128);
  auto out = std::make_shared<std::vector<float>>(static_cast<size_t>(n_rows) * 4096);
  return {.op = "delta rule",
          .shape = absl::StrCat("32 heads of 128 x 128 x ", n_rows),
          .bytes = 2 * 4.0 * 32 * 128 * 128,
          .products = 3.5 * 32 * 128 * 128 * n_rows,
          .run = [=] {
            shared->ops.DeltaRule(
                shape, {rates->data(), rates->data(), norm->data(), 1e-6f}, n_rows, mixed->data(),
                ba->data(), z->data(),
                state->data() + int64_t{shared->next++ % kCopies} * 32 * 128 * 128, out->data());
          }};
}

OpCase AttentionCase(const std::shared_ptr<Shared>& shared, int n_rows, int64_t context) {
  const worker::AttentionShape shape{.n_heads = 16, .n_kv_heads = 2, .head_dim = 256};
  constexpr int kPageTokens = 16;
  const int64_t n_pages = (context + n_rows + kPageTokens - 1) / kPageTokens;
  auto memory = std::make_shared<std::vector<float>>(Random(2 * n_pages * kPageTokens * 512));
  auto keys = std::make_shared<std::vector<float*>>();
  auto values = std::make_shared<std::vector<float*>>();
  for (int64_t p = 0; p < n_pages; ++p) {
    keys->push_back(memory->data() + 2 * p * kPageTokens * 512);
    values->push_back(keys->back() + kPageTokens * 512);
  }
  auto q = std::make_shared<std::vector<float>>(Random(n_rows * 4096));
  auto out = std::make_shared<std::vector<float>>(q->size());
  const int64_t kv_bytes = static_cast<int64_t>(memory->size() * sizeof(float));
  return {.op = "attention",
          .shape = absl::StrCat("16 heads of 256, ", n_rows, " rows at ", context),
          .bytes = static_cast<double>(kv_bytes),
          .products = 2.0 * 4096 * n_rows * (static_cast<double>(context) + n_rows / 2.0),
          .run = [=, kept = memory] {
            shared->ops.Attention(shape, n_rows, context, q->data(), q->data(),
                                  {*keys, *values, kPageTokens}, out->data());
          }};
}

OpCase ConvolveCase(const std::shared_ptr<Shared>& shared, int n_rows) {
  constexpr int kChannels = 8192;
  auto kernel = std::make_shared<std::vector<float>>(Random(4 * kChannels));
  auto input = std::make_shared<std::vector<float>>(Random(int64_t{n_rows} * kChannels));
  auto history = std::make_shared<std::vector<float>>(Random(3 * kChannels));
  auto out = std::make_shared<std::vector<float>>(input->size());
  return {.op = "convolution and silu",
          .shape = absl::StrCat("8192 channels x ", n_rows),
          .bytes = 8.0 * kChannels * n_rows,
          .products = 4.0 * kChannels * n_rows,
          .run = [=] {
            shared->ops.Convolve(n_rows, kChannels, 4, kernel->data(), input->data(),
                                 history->data(), out->data());
          }};
}

OpCase NormCase(const std::shared_ptr<Shared>& shared, int n_rows) {
  auto x = std::make_shared<std::vector<float>>(Random(n_rows * kWidth));
  auto weight = std::make_shared<std::vector<float>>(Random(kWidth));
  auto h = std::make_shared<std::vector<float>>(x->size());
  return {.op = "rms norm",
          .shape = absl::StrCat("2048 x ", n_rows),
          .bytes = 8.0 * kWidth * n_rows,
          .products = 3.0 * kWidth * n_rows,
          .run = [=] {
            shared->ops.AddRmsNorm(n_rows, kWidth, x->data(), nullptr, weight->data(), 1e-6f,
                                   h->data());
          }};
}

OpCase RouteCase(const std::shared_ptr<Shared>& shared, int n_rows) {
  auto logits = std::make_shared<std::vector<float>>(Random(n_rows * 512));
  auto choice = std::make_shared<worker::RouterChoice>();
  return {.op = "router choice",
          .shape = absl::StrCat("10 of 512 x ", n_rows),
          .bytes = 4.0 * 512 * n_rows,
          .products = 512.0 * n_rows,
          .run = [=] { shared->ops.Route(n_rows, 512, 10, true, logits->data(), choice.get()); }};
}

}  // namespace

std::vector<OpCase> MakeOpCases(worker::Parallel& parallel, const worker::Kernels& kernels) {
  const auto shared = std::make_shared<Shared>(parallel, kernels);
  std::vector<OpCase> cases;
  for (const int n : {1, 2, 4, 8, 128, 512}) cases.push_back(ExpertsCase(shared, n));
  for (const int n : {1, 2, 3, 4, 8}) {
    for (const int pause : {0, 60}) {
      cases.push_back(MissesCase(shared, n, std::chrono::microseconds(pause)));
    }
  }
  for (const int n : {1, 8, 128, 512}) {
    cases.push_back(LinearCase(shared, WeightKind::kTiled4, 12288, n));
  }
  cases.push_back(LinearCase(shared, WeightKind::kTiled8, 40000, 1));
  for (const int n : {1, 8, 128, 512}) {
    cases.push_back(LinearCase(shared, WeightKind::kBF16, 512, n));
  }
  for (const int n : {1, 128, 512}) cases.push_back(DeltaCase(shared, n));
  cases.push_back(AttentionCase(shared, 1, 2048));
  cases.push_back(AttentionCase(shared, 1, 32768));
  cases.push_back(AttentionCase(shared, 128, 0));
  cases.push_back(AttentionCase(shared, 512, 0));
  for (const int n : {1, 128}) {
    cases.push_back(ConvolveCase(shared, n));
    cases.push_back(NormCase(shared, n));
    cases.push_back(RouteCase(shared, n));
  }
  return cases;
}

}  // namespace hearth::bench
