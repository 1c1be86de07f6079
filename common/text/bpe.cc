#include "common/text/bpe.h"

#include <algorithm>
#include <functional>

#include "common/base/check.h"

namespace hearth {
namespace {

constexpr int32_t kNone = -1;
constexpr int32_t kMerged = -1;         // id of a symbol that its left neighbour has swallowed
constexpr int32_t kNoRank = INT32_MAX;  // of neighbours that no merge joins

// Up to here a scan for the best pair after each merge beats the bookkeeping of EncodeLong. Nearly
// all words are shorter.
constexpr size_t kShortPiece = 32;

uint64_t PairKey(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

void PushLowest(std::vector<int32_t>& heap, int32_t value) {
  heap.push_back(value);
  std::push_heap(heap.begin(), heap.end(), std::greater<>());
}

int32_t PopLowest(std::vector<int32_t>& heap) {
  std::pop_heap(heap.begin(), heap.end(), std::greater<>());
  const int32_t lowest = heap.back();
  heap.pop_back();
  return lowest;
}

// The leftmost place of a bucket, or kNone when it is empty.
int32_t TakeLeftmost(Bpe::Scratch::Bucket& bucket) {
  const bool has_in_order = bucket.head < bucket.in_order.size();
  if (!bucket.late.empty() &&
      (!has_in_order || bucket.late.front() < bucket.in_order[bucket.head])) {
    return PopLowest(bucket.late);
  }
  return has_in_order ? bucket.in_order[bucket.head++] : kNone;
}

Bpe::Scratch::Bucket& BucketOf(int32_t rank, Bpe::Scratch& scratch) {
  int32_t& index = scratch.bucket_of_rank[rank];
  if (index == kNone) {
    index = static_cast<int32_t>(scratch.n_buckets++);
    if (scratch.buckets.size() < scratch.n_buckets) scratch.buckets.emplace_back();
    scratch.buckets[index].rank = rank;
  }
  return scratch.buckets[index];
}

void ReleaseBuckets(Bpe::Scratch& scratch) {
  for (size_t i = 0; i < scratch.n_buckets; ++i) {
    Bpe::Scratch::Bucket& bucket = scratch.buckets[i];
    scratch.bucket_of_rank[bucket.rank] = kNone;
    bucket.in_order.clear();
    bucket.head = 0;
  }
  scratch.n_buckets = 0;
}

}  // namespace

Bpe::Bpe(const std::array<int32_t, 256>& byte_ids, std::span<const Merge> merges)
    : byte_ids_(byte_ids), merges_(merges.begin(), merges.end()) {
  rank_of_pair_.reserve(merges.size());
  int32_t rank = 0;
  for (const Merge& merge : merges) {
    // A pair that is listed twice has its last rank, as in Hugging Face tokenizers.
    rank_of_pair_.insert_or_assign(PairKey(merge.left, merge.right), rank++);
  }
}

int32_t Bpe::Rank(int32_t left, int32_t right) const {
  const auto found = rank_of_pair_.find(PairKey(left, right));
  return found == rank_of_pair_.end() ? kNoRank : found->second;
}

void Bpe::Encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const {
  HEARTH_CHECK(piece.size() < size_t{INT32_MAX});
  if (piece.size() <= kShortPiece) return EncodeShort(piece, ids);
  EncodeLong(piece, scratch, ids);
}

void Bpe::EncodeShort(std::string_view piece, std::vector<int32_t>& ids) const {
  int32_t symbols[kShortPiece];
  int32_t ranks[kShortPiece];  // of each symbol with the next
  size_t n = piece.size();
  for (size_t i = 0; i < n; ++i) symbols[i] = byte_ids_[static_cast<uint8_t>(piece[i])];
  const auto rank_at = [&](size_t i) {
    ranks[i] = i + 1 < n ? Rank(symbols[i], symbols[i + 1]) : kNoRank;
  };
  for (size_t i = 0; i < n; ++i) rank_at(i);
  while (n > 1) {
    const size_t best = std::min_element(ranks, ranks + n) - ranks;  // the leftmost of the lowest
    if (ranks[best] == kNoRank) break;
    symbols[best] = merges_[ranks[best]].result;
    std::copy(symbols + best + 2, symbols + n, symbols + best + 1);
    std::copy(ranks + best + 2, ranks + n, ranks + best + 1);
    --n;
    rank_at(best);
    if (best > 0) rank_at(best - 1);
  }
  ids.insert(ids.end(), symbols, symbols + n);
}

// Notes that the symbol and its right neighbour may be merged, if a merge joins them.
void Bpe::Offer(int32_t left_symbol, Scratch& scratch) const {
  const Scratch::Symbol& left = scratch.symbols[left_symbol];
  if (left.next == kNone) return;
  const int32_t rank = Rank(left.id, scratch.symbols[left.next].id);
  if (rank == kNoRank) return;
  Scratch::Bucket& bucket = BucketOf(rank, scratch);
  if (bucket.in_order.empty() || bucket.in_order.back() <= left_symbol) {
    bucket.in_order.push_back(left_symbol);
  } else {
    PushLowest(bucket.late, left_symbol);
  }
  ++scratch.n_steps;
  if (bucket.is_waiting) return;
  bucket.is_waiting = true;
  PushLowest(scratch.ranks, rank);
}

// Merges the symbol with its right neighbour, unless either has changed since that was offered.
void Bpe::MergeAt(int32_t left_symbol, const Merge& merge, Scratch& scratch) const {
  std::vector<Scratch::Symbol>& symbols = scratch.symbols;
  Scratch::Symbol& left = symbols[left_symbol];
  if (left.id != merge.left || left.next == kNone) return;
  Scratch::Symbol& right = symbols[left.next];
  if (right.id != merge.right) return;
  left.id = merge.result;
  left.next = right.next;
  right.id = kMerged;
  if (left.next != kNone) symbols[left.next].previous = left_symbol;
  if (left.previous != kNone) Offer(left.previous, scratch);
  Offer(left_symbol, scratch);
}

// Always the lowest rank first, and among its places the leftmost. A merge may offer pairs of a
// lower rank than its own: then these come next. It never offers pairs of its own rank, for its
// result is longer than either part.
void Bpe::MergeAll(Scratch& scratch) const {
  while (!scratch.ranks.empty()) {
    const int32_t rank = scratch.ranks.front();
    Scratch::Bucket& bucket = BucketOf(rank, scratch);
    const int32_t place = TakeLeftmost(bucket);
    if (place == kNone) {
      bucket.is_waiting = false;
      PopLowest(scratch.ranks);
      continue;
    }
    ++scratch.n_steps;
    MergeAt(place, merges_[rank], scratch);
  }
}

void Bpe::EncodeLong(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const {
  const auto n = static_cast<int32_t>(piece.size());
  scratch.bucket_of_rank.resize(merges_.size(), kNone);
  scratch.symbols.resize(piece.size());
  for (int32_t i = 0; i < n; ++i) {
    scratch.symbols[i] = {byte_ids_[static_cast<uint8_t>(piece[i])], i - 1,
                          i + 1 < n ? i + 1 : kNone};
  }
  for (int32_t i = 0; i < n; ++i) Offer(i, scratch);
  MergeAll(scratch);
  ReleaseBuckets(scratch);
  for (int32_t i = 0; i != kNone; i = scratch.symbols[i].next) ids.push_back(scratch.symbols[i].id);
}

}  // namespace hearth
