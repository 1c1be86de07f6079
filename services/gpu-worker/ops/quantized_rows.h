// Activations as int8 in the order of the kernels: groups of up to `group_size` rows, each group
// [n_blocks, rows of the group, 64] with as many scales (kernels.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/base/huge_pages.h"
#include "services/gpu-worker/ops/kernels.h"

namespace hearth::worker {

class QuantizedRows {
 public:
  // Makes room; contents are those of earlier calls. `width` is a multiple of 64.
  void Reshape(int64_t n_rows, int64_t width, int group_size) {
    n_rows_ = n_rows;
    width_ = width;
    group_size_ = group_size;
    const auto n = static_cast<size_t>(n_rows * width);
    if (q_.size() < n) q_.resize(n);
    if (scales_.size() < n / kBlock) scales_.resize(n / kBlock);
  }
  int64_t width() const { return width_; }

  // Rows [first, first + n) as one group: `first` is where a group begins, n its rows.
  RowGroup Group(int64_t first, int n) const {
    return {q_.data() + first * width_, scales_.data() + first * width_ / kBlock, n};
  }
  int8_t* q(int64_t first) { return q_.data() + first * width_; }
  BlockScale* scales(int64_t first) { return scales_.data() + first * width_ / kBlock; }

  // The group of row `row`: its first row and its rows.
  int64_t GroupBegin(int64_t row) const { return row / group_size_ * group_size_; }
  int GroupRows(int64_t first) const {
    return static_cast<int>(std::min<int64_t>(group_size_, n_rows_ - first));
  }

 private:
  int64_t n_rows_ = 0, width_ = 0;
  int group_size_ = 1;
  HugeVector<int8_t> q_;
  HugeVector<BlockScale> scales_;
};

}  // namespace hearth::worker
