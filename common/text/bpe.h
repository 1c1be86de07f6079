// Byte-pair encoding: turns the bytes of one piece into token ids by merging the best-ranked
// neighbours again and again.
//
// Used by the tokenizer. Immutable after construction; the scratch space belongs to one thread at a
// time.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace hearth {

class Bpe {
 public:
  struct Merge {
    int32_t left;
    int32_t right;
    int32_t result;
  };

  // Memory that is used again from piece to piece.
  struct Scratch {
    struct Symbol {
      int32_t id;
      int32_t previous;
      int32_t next;
    };
    // Where pairs of one rank may be merged (the index of the left symbol), given out from left to
    // right.
    struct Bucket {
      int32_t rank = 0;
      bool is_waiting = false;  // its rank is in `ranks`
      size_t head = 0;          // of `in_order`: those before are used up
      std::vector<int32_t> in_order;
      std::vector<int32_t> late;  // a heap of the few that came after one further right
    };
    std::vector<Symbol> symbols;
    std::vector<Bucket> buckets;
    size_t n_buckets = 0;                 // in use by the present piece
    std::vector<int32_t> bucket_of_rank;  // kNone or an index into `buckets`
    std::vector<int32_t> ranks;           // a heap: the lowest on top
    int64_t n_steps = 0;  // places put into and taken out of buckets so far: the work, for tests
  };

  // `byte_ids`: the token of each single byte. `merges`: best first; the result's bytes are those
  // of both parts. Ids are not negative.
  Bpe(const std::array<int32_t, 256>& byte_ids, std::span<const Merge> merges);

  // Appends the piece's ids. O(n log n); the piece is shorter than 2^31 bytes.
  void Encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const;

 private:
  int32_t Rank(int32_t left, int32_t right) const;
  void EncodeShort(std::string_view piece, std::vector<int32_t>& ids) const;
  void EncodeLong(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const;
  void Offer(int32_t left_symbol, Scratch& scratch) const;
  void MergeAt(int32_t left_symbol, const Merge& merge, Scratch& scratch) const;
  void MergeAll(Scratch& scratch) const;

  std::array<int32_t, 256> byte_ids_;
  std::vector<Merge> merges_;
  absl::flat_hash_map<uint64_t, int32_t> rank_of_pair_;
};

}  // namespace hearth
