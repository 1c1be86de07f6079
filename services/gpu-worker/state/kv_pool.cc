#include "services/gpu-worker/state/kv_pool.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status.h"

namespace hearth::worker {

absl::StatusOr<std::unique_ptr<KvPool>> KvPool::Create(const KvPoolShape& shape) {
  auto pool = std::unique_ptr<KvPool>(new KvPool(shape));
  const auto bytes =
      static_cast<size_t>(pool->Offset(static_cast<int32_t>(shape.n_pages), 0, 0)) * sizeof(float);
  auto memory = PageBuffer::Reserve(bytes);
  if (!memory.ok()) {
    return Annotate(memory.status(),
                    absl::StrCat("KV cache of ", shape.n_pages, " pages (lower --kv-tokens)"));
  }
  pool->memory_ = *std::move(memory);
  pool->data_ = reinterpret_cast<float*>(pool->memory_.data());
  for (int64_t page = shape.n_pages - 1; page >= 0; --page) {
    pool->free_.push_back(static_cast<int32_t>(page));
  }
  return pool;
}

int32_t KvPool::Take() {
  HEARTH_CHECK(!free_.empty());
  const int32_t page = free_.back();
  free_.pop_back();
  return page;
}

void KvPool::Return(int32_t page) { free_.push_back(page); }

}  // namespace hearth::worker
