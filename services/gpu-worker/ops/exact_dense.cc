// Embedding, norms, linears and the MLPs of the float32 backend.
#include <algorithm>
#include <cmath>
#include <vector>

#include "services/gpu-worker/ops/exact_ops.h"
#include "services/gpu-worker/ops/vector_math.h"

namespace hearth::worker {
namespace {

constexpr int kOutputsAPiece = 32;

// One dequantised weight row against many activation rows.
class WeightRow {
 public:
  explicit WeightRow(int64_t in) : values_(static_cast<size_t>(in)) {}
  void Load(const LinearRef& weights, int64_t row) {
    DequantizeRowFast(weights, row, values_.data());
  }
  float Times(const float* x) const {
    return Dot(values_.data(), x, static_cast<int64_t>(values_.size()));
  }

 private:
  std::vector<float> values_;
};

}  // namespace

void ExactOps::Embed(const LinearRef& table, std::span<const int32_t> ids, float* x) {
  for (size_t t = 0; t < ids.size(); ++t) {
    DequantizeRow(table, ids[t],
                  std::span(x + static_cast<int64_t>(t) * table.in, static_cast<size_t>(table.in)));
  }
}

void ExactOps::AddRmsNorm(int n_rows, int width, float* x, const float* delta, const float* weight,
                          float eps, float* h) {
  parallel_.For(n_rows, 8, width * 4, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* row = x + t * width;
      if (delta != nullptr) AddScaled(1, delta + t * width, width, row);
      const float mean = Dot(row, row, width) / static_cast<float>(width);
      const float scale = 1 / std::sqrt(mean + eps);
      for (int i = 0; i < width; ++i) h[t * width + i] = row[i] * scale * (1 + weight[i]);
    }
  });
}

void ExactOps::Linear(const LinearRef& weights, int n_rows, const float* x, float* y) {
  const int64_t work = weights.in * (n_rows + 1);
  parallel_.For(weights.out, kOutputsAPiece, work, [&](int64_t begin, int64_t end) {
    WeightRow row(weights.in);
    for (int64_t r = begin; r < end; ++r) {
      row.Load(weights, r);
      for (int t = 0; t < n_rows; ++t) y[t * weights.out + r] = row.Times(x + t * weights.in);
    }
  });
}

void ExactOps::Mlp(const ExpertRef& mlp, int n_rows, const float* h, float* out) {
  const int64_t inner = mlp.gate.out, width = mlp.gate.in;
  act_.resize(static_cast<size_t>(n_rows * inner));
  parallel_.For(inner, kOutputsAPiece, 2 * width * (n_rows + 1), [&](int64_t begin, int64_t end) {
    WeightRow gate(width), up(width);
    for (int64_t r = begin; r < end; ++r) {
      gate.Load(mlp.gate, r);
      up.Load(mlp.up, r);
      for (int t = 0; t < n_rows; ++t) {
        const float* x = h + t * width;
        act_[static_cast<size_t>(t * inner + r)] = Silu(gate.Times(x)) * up.Times(x);
      }
    }
  });
  Linear(mlp.down, n_rows, act_.data(), out);
}

void ExactOps::Experts(int n_rows, int width, int top_k, const float* h,
                       std::span<const ExpertWork> work, const RouterChoice& choice, float* out) {
  const int64_t inner = work.empty() ? 0 : work.front().expert.gate.out;
  const int64_t n_places = int64_t{n_rows} * top_k;
  act_.resize(static_cast<size_t>(n_places * inner));       // [T, K, F]
  products_.resize(static_cast<size_t>(n_places * width));  // [T, K, D]
  const auto n_work = static_cast<int64_t>(work.size());

  parallel_.For(n_work * inner, inner / 2 + 1, 4 * width, [&](int64_t begin, int64_t end) {
    WeightRow gate(width), up(width);
    for (int64_t i = begin; i < end; ++i) {
      const ExpertWork& item = work[static_cast<size_t>(i / inner)];
      gate.Load(item.expert.gate, i % inner);
      up.Load(item.expert.up, i % inner);
      for (size_t n = 0; n < item.rows.size(); ++n) {
        const float* x = h + int64_t{item.rows[n]} * width;
        act_[static_cast<size_t>(item.places[n] * inner + i % inner)] =
            Silu(gate.Times(x)) * up.Times(x);
      }
    }
  });
  parallel_.For(n_work * width, width / 2 + 1, 2 * inner, [&](int64_t begin, int64_t end) {
    WeightRow down(inner);
    for (int64_t i = begin; i < end; ++i) {
      const ExpertWork& item = work[static_cast<size_t>(i / width)];
      down.Load(item.expert.down, i % width);
      for (const int32_t place : item.places) {
        products_[static_cast<size_t>(place * int64_t{width} + i % width)] =
            down.Times(act_.data() + place * inner);
      }
    }
  });
  std::fill_n(out, int64_t{n_rows} * width, 0.f);
  for (int64_t place = 0; place < n_places; ++place) {
    if (choice.ids[static_cast<size_t>(place)] < 0) continue;
    AddScaled(choice.weights[static_cast<size_t>(place)], products_.data() + place * width, width,
              out + place / top_k * width);
  }
}

void ExactOps::AddGated(int n_rows, int width, const float* shared, const float* gate, float* out) {
  for (int t = 0; t < n_rows; ++t) {
    AddScaled(Sigmoid(gate[t]), shared + int64_t{t} * width, width, out + int64_t{t} * width);
  }
}

}  // namespace hearth::worker
