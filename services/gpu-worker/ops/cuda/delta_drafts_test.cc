// Rows that may be taken back: the delta net's two kernels give the bits that they give without,
// whichever rows were taken back.
#include <algorithm>
#include <vector>

#include "services/gpu-worker/ops/cuda/cuda_testing.h"
#include "services/gpu-worker/ops/cuda/delta_cuda.h"
#include "services/gpu-worker/ops/cuda/rounded_testing.h"

namespace hearth::worker {
namespace {

using Floats = std::vector<float>;

constexpr int kMostDrafts = 3;
constexpr float kEps = 1e-6f;

// A layer's weights on the device, and some sequences that go through it.
class Net {
 public:
  Net(const DeltaShape& shape, int width, int n_sequences, bool keeps)
      : shape_(shape), width_(width), n_(n_sequences), keeps_(keeps) {
    kernel_ = ToDevice(RandomFloats(int64_t{width} * shape.channels(), 2));
    a_log_ = ToDevice(RandomFloats(shape.value_heads, 3));
    dt_bias_ = ToDevice(RandomFloats(shape.value_heads, 4));
    norm_ = ToDevice(RandomFloats(shape.value_dim, 5));
    const int64_t history = (width - 1 + (keeps ? kMostDrafts : 0)) * int64_t{shape.channels()};
    for (int s = 0; s < n_; ++s) {
      const auto seed = static_cast<uint32_t>(10 + 2 * s);
      Floats past = RandomFloats(int64_t{width - 1} * shape.channels(), seed);
      past.resize(static_cast<size_t>(history));
      histories_.push_back(ToDevice(past));
      states_.push_back(ToDevice(
          RandomFloats(int64_t{shape.value_heads} * shape.key_dim * shape.value_dim, seed + 1)));
      for (auto& half : kept_) half.push_back(Poisoned<float>(kMostDrafts * KeptRowFloats(shape)));
    }
    pending_.assign(static_cast<size_t>(n_), 0);
  }

  // Of rows `tokens` [S][n], the last n_drafts of which may be taken back: outputs [S][n * values].
  std::vector<Floats> Step(const std::vector<std::vector<int>>& tokens, int n_drafts) {
    const SequenceRows rows{n_, static_cast<int>(tokens[0].size())};
    const int64_t values = int64_t{shape_.value_heads} * shape_.value_dim;
    Floats qkvz, ba;
    for (const auto& sequence : tokens) {
      for (const int token : sequence) {
        const auto seed = static_cast<uint32_t>(1000 + 2 * token);
        const Floats x = RandomFloats(shape_.channels() + values, seed);
        const Floats gates = RandomFloats(2 * shape_.value_heads, seed + 1);
        qkvz.insert(qkvz.end(), x.begin(), x.end());
        ba.insert(ba.end(), gates.begin(), gates.end());
      }
    }
    const auto d_qkvz = ToDevice(qkvz), d_ba = ToDevice(ba);
    auto mixed = Poisoned<float>(int64_t{rows.total()} * shape_.channels());
    auto decay = Poisoned<float>(int64_t{rows.total()} * shape_.value_heads);
    auto beta = Poisoned<float>(int64_t{rows.total()} * shape_.value_heads);
    auto out = Poisoned<float>(rows.total() * values);
    const auto n_pending = ToDevice(pending_);
    const auto kept = TableOf(kept_[0]), pending = TableOf(kept_[1]);
    const auto histories = TableOf(histories_), states = TableOf(states_);
    DeltaInputs inputs{mixed.data(), decay.data(), beta.data()};
    if (keeps_) inputs.drafts = {n_drafts, n_pending.data(), pending.data(), kept.data()};
    HEARTH_EXPECT_CUDA(ConvolveCuda(shape_, rows,
                                    {width_, kernel_.data(), a_log_.data(), dt_bias_.data()},
                                    d_qkvz.data(), d_ba.data(), histories.data(), inputs, nullptr));
    HEARTH_EXPECT_CUDA(DeltaRuleCuda(shape_, rows, inputs, d_qkvz.data(), norm_.data(), kEps,
                                     states.data(), out.data(), 0, nullptr));
    const Floats all = ToHost(out);
    std::swap(kept_[0], kept_[1]);
    std::ranges::fill(pending_, n_drafts);
    std::vector<Floats> by_sequence;
    for (int s = 0; s < n_; ++s) {
      const auto from = all.begin() + s * rows.n_rows * values;
      by_sequence.emplace_back(from, from + rows.n_rows * values);
    }
    return by_sequence;
  }
  void TakeBack(int sequence, int n) { pending_[static_cast<size_t>(sequence)] -= n; }

  // The inputs before the next row, and the state after the last one.
  Floats History(int sequence) const {
    const Floats all = ToHost(histories_[static_cast<size_t>(sequence)]);
    const auto from = all.begin() + pending_[static_cast<size_t>(sequence)] * shape_.channels();
    return {from, from + (width_ - 1) * shape_.channels()};
  }
  std::vector<Floats> States() {
    if (keeps_) {
      const auto n_pending = ToDevice(pending_);
      const auto pending = TableOf(kept_[1]), states = TableOf(states_);
      DeltaInputs inputs;
      inputs.drafts = {.n_pending = n_pending.data(), .pending = pending.data()};
      HEARTH_EXPECT_CUDA(DeltaRuleCuda(shape_, {n_, 0}, inputs, nullptr, norm_.data(), kEps,
                                       states.data(), nullptr, 0, nullptr));
      std::ranges::fill(pending_, 0);
    }
    std::vector<Floats> all;
    for (const auto& state : states_) all.push_back(ToHost(state));
    return all;
  }

 private:
  static DeviceBuffer<float*> TableOf(std::vector<DeviceBuffer<float>>& buffers) {
    std::vector<float*> table;
    for (auto& buffer : buffers) table.push_back(buffer.data());
    return ToDevice(table);
  }

  const DeltaShape shape_;
  const int width_, n_;
  const bool keeps_;
  DeviceBuffer<float> kernel_, a_log_, dt_bias_, norm_;
  std::vector<DeviceBuffer<float>> histories_, states_, kept_[2];
  std::vector<int32_t> pending_;
};

using DeltaDraftsTest = CudaTest;

// Steps of 1 to 4 rows, of which each sequence takes back its own number.
void ExpectSameAsWithout(const DeltaShape& shape, int width, int n_sequences) {
  Net with(shape, width, n_sequences, true);
  std::vector<Net> without;  // one a sequence, a row a step
  for (int s = 0; s < n_sequences; ++s) without.emplace_back(shape, width, n_sequences, false);
  const auto values = static_cast<size_t>(shape.value_heads * shape.value_dim);
  int next_token = 0;
  for (const int n_drafts : {2, 0, 3, 1, 3, 3, 0, 0, 2}) {
    std::vector<std::vector<int>> tokens(static_cast<size_t>(n_sequences));
    for (auto& sequence : tokens) {
      for (int t = 0; t <= n_drafts; ++t) sequence.push_back(next_token++);
    }
    const std::vector<Floats> got = with.Step(tokens, n_drafts);
    for (int s = 0; s < n_sequences; ++s) {
      const auto at = static_cast<size_t>(s);
      const int n_taken_back = (next_token + s) % (n_drafts + 1);
      for (int t = 0; t <= n_drafts - n_taken_back; ++t) {
        // The others go along unseen.
        const std::vector<std::vector<int>> one(static_cast<size_t>(n_sequences),
                                                {tokens[at][static_cast<size_t>(t)]});
        const Floats want = without[at].Step(one, 0)[at];
        const auto from = got[at].begin() + static_cast<int64_t>(static_cast<size_t>(t) * values);
        EXPECT_EQ(Floats(from, from + static_cast<int64_t>(values)), want)
            << "sequence " << s << ", row " << t << " of " << n_drafts + 1;
      }
      with.TakeBack(s, n_taken_back);
      EXPECT_EQ(with.History(s), without[at].History(s));
    }
  }
  const std::vector<Floats> states = with.States();
  for (size_t s = 0; s < states.size(); ++s) EXPECT_EQ(states[s], without[s].States()[s]) << s;
}

TEST_F(DeltaDraftsTest, WhatIsTakenBackWasNeverSeen) {
  for (const DeltaShape& shape :
       {DeltaShape{1, 2, 16, 16}, DeltaShape{2, 4, 64, 32}, DeltaShape{16, 32, 128, 128}}) {
    SCOPED_TRACE(shape.value_heads);
    ExpectSameAsWithout(shape, 4, 1);
    ExpectSameAsWithout(shape, 4, 2);
  }
  ExpectSameAsWithout({1, 3, 48, 20}, 2, 3);
  ExpectSameAsWithout({1, 2, 16, 64}, 3, 2);
}

TEST_F(DeltaDraftsTest, NotAllRowsCanBeTakenBack) {
  DeltaInputs inputs;
  inputs.drafts.n = 2;
  const DeltaShape shape{1, 2, 16, 16};
  EXPECT_EQ(ConvolveCuda(shape, {1, 2}, {.width = 4}, nullptr, nullptr, nullptr, inputs, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(DeltaRuleCuda(shape, {1, 2}, inputs, nullptr, nullptr, 0, nullptr, nullptr, 0, nullptr),
            cudaErrorInvalidValue);
}

}  // namespace
}  // namespace hearth::worker
