// Memory for keys and values: equal pages, each with room for `page_tokens` tokens of all attention
// layers, in huge pages where they can be had. Pages that were never used cost no memory. Used by
// the engine's thread only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/page_buffer.h"

namespace hearth::worker {

struct KvPoolShape {
  int n_layers = 0;  // attention layers
  int page_tokens = 16;
  int64_t token_floats = 0;  // G * d: floats of one token's keys (and of its values) in one layer
  int64_t n_pages = 0;
};

class KvPool {
 public:
  // ResourceExhausted if the address space can't be had.
  static absl::StatusOr<std::unique_ptr<KvPool>> Create(const KvPoolShape& shape);
  KvPool(const KvPool&) = delete;
  KvPool& operator=(const KvPool&) = delete;

  const KvPoolShape& shape() const { return shape_; }
  int64_t pages_free() const { return static_cast<int64_t>(free_.size()); }

  // A page's number; the caller has checked pages_free(). A page's old content is never read: rows
  // are written before attention looks at them.
  int32_t Take();
  void Return(int32_t page);

  // [page_tokens, G * d] of attention layer `layer`, counted among attention layers.
  float* Keys(int32_t page, int layer) const { return data_ + Offset(page, layer, 0); }
  float* Values(int32_t page, int layer) const { return data_ + Offset(page, layer, 1); }

 private:
  explicit KvPool(const KvPoolShape& shape) : shape_(shape) {}
  int64_t Offset(int32_t page, int layer, int which) const {
    return ((int64_t{page} * shape_.n_layers + layer) * 2 + which) * shape_.page_tokens *
           shape_.token_floats;
  }

  KvPoolShape shape_;
  PageBuffer memory_;
  float* data_ = nullptr;
  std::vector<int32_t> free_;  // the last one is taken first
};

}  // namespace hearth::worker
