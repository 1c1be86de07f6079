#include "services/gpu-worker/state/kv_pool.h"

#include <sys/mman.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status.h"

namespace hearth::worker {

absl::StatusOr<std::unique_ptr<KvPool>> KvPool::Create(const KvPoolShape& shape) {
  auto pool = std::unique_ptr<KvPool>(new KvPool(shape));
  pool->bytes_ =
      static_cast<size_t>(pool->Offset(static_cast<int32_t>(shape.n_pages), 0, 0)) * sizeof(float);
  if (pool->bytes_ > 0) {
    void* data = ::mmap(nullptr, pool->bytes_, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) {
      return ErrnoStatus(errno, absl::StrCat("map ", pool->bytes_, " bytes for the KV cache of ",
                                             shape.n_pages, " pages (lower --kv-tokens)"));
    }
    pool->data_ = static_cast<float*>(data);
  }
  for (int64_t page = shape.n_pages - 1; page >= 0; --page) {
    pool->free_.push_back(static_cast<int32_t>(page));
  }
  return pool;
}

KvPool::~KvPool() {
  if (data_ != nullptr) ::munmap(data_, bytes_);
}

int32_t KvPool::Take() {
  HEARTH_CHECK(!free_.empty());
  const int32_t page = free_.back();
  free_.pop_back();
  return page;
}

void KvPool::Return(int32_t page) { free_.push_back(page); }

}  // namespace hearth::worker
