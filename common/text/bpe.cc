#include "common/text/bpe.h"

#include <algorithm>

#include "common/base/check.h"

namespace hearth {
namespace {

constexpr int32_t kMerged = -1;  // id of a symbol that its left neighbour has swallowed
constexpr int32_t kNone = -1;

uint64_t PairKey(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

// Heap order: the lowest rank on top, and among equals the leftmost.
struct Later {
  bool operator()(const Bpe::Scratch::Candidate& a, const Bpe::Scratch::Candidate& b) const {
    return a.rank != b.rank ? a.rank > b.rank : a.left > b.left;
  }
};

}  // namespace

Bpe::Bpe(const std::array<int32_t, 256>& byte_ids, std::span<const Merge> merges)
    : byte_ids_(byte_ids) {
  merges_.reserve(merges.size());
  int32_t rank = 0;
  for (const Merge& merge : merges) {
    // A pair that is listed twice has its last rank, as in Hugging Face tokenizers.
    merges_.insert_or_assign(PairKey(merge.left, merge.right), Ranked{rank++, merge.result});
  }
}

const Bpe::Ranked* Bpe::Find(int32_t left, int32_t right) const {
  const auto found = merges_.find(PairKey(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

void Bpe::Push(int32_t left_symbol, Scratch& scratch) const {
  const Scratch::Symbol& left = scratch.symbols[left_symbol];
  if (left.next == kNone) return;
  const Ranked* merge = Find(left.id, scratch.symbols[left.next].id);
  if (merge == nullptr) return;
  scratch.heap.push_back({merge->rank, left_symbol, merge->result});
}

void Bpe::MergeAll(Scratch& scratch) const {
  std::vector<Scratch::Symbol>& symbols = scratch.symbols;
  std::vector<Scratch::Candidate>& heap = scratch.heap;
  const auto push_and_sift = [&](int32_t left) {
    const size_t before = heap.size();
    Push(left, scratch);
    if (heap.size() == before) return;
    std::push_heap(heap.begin(), heap.end(), Later());
    ++scratch.n_heap_steps;
  };
  std::make_heap(heap.begin(), heap.end(), Later());
  scratch.n_heap_steps += static_cast<int64_t>(heap.size());
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), Later());
    const Scratch::Candidate best = heap.back();
    heap.pop_back();
    ++scratch.n_heap_steps;
    Scratch::Symbol& left = symbols[best.left];
    if (left.id == kMerged || left.next == kNone) continue;
    // A neighbour may have changed since: only a pair that still makes this token is merged.
    const Ranked* merge = Find(left.id, symbols[left.next].id);
    if (merge == nullptr || merge->result != best.result) continue;
    Scratch::Symbol& right = symbols[left.next];
    left.id = best.result;
    left.next = right.next;
    right.id = kMerged;
    if (left.next != kNone) symbols[left.next].previous = best.left;
    if (left.previous != kNone) push_and_sift(left.previous);
    push_and_sift(best.left);
  }
}

void Bpe::Encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const {
  HEARTH_CHECK(piece.size() < size_t{INT32_MAX});
  if (piece.empty()) return;
  const auto n = static_cast<int32_t>(piece.size());
  scratch.symbols.resize(piece.size());
  scratch.heap.clear();
  for (int32_t i = 0; i < n; ++i) {
    scratch.symbols[i] = {byte_ids_[static_cast<uint8_t>(piece[i])], i - 1,
                          i + 1 < n ? i + 1 : kNone};
  }
  for (int32_t i = 0; i < n; ++i) Push(i, scratch);
  MergeAll(scratch);
  for (int32_t i = 0; i != kNone; i = scratch.symbols[i].next) ids.push_back(scratch.symbols[i].id);
}

}  // namespace hearth
