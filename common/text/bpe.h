// Byte-pair encoding: turns the bytes of one piece into token ids by merging the best-ranked
// neighbours again and again.
//
// Used by the tokenizer. Immutable after construction; the scratch space belongs to one thread at a
// time.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
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
    struct Candidate {
      int32_t rank;
      int32_t left;  // index of the pair's left symbol
      int32_t result;
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
    int64_t n_heap_steps = 0;  // pushes and pops so far: the work, for tests
  };

  // `byte_ids`: the token of each single byte. `merges`: best first. Ids are not negative.
  Bpe(const std::array<int32_t, 256>& byte_ids, std::span<const Merge> merges);

  // Appends the piece's ids. O(n log n); the piece is shorter than 2^31 bytes.
  void Encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const;

 private:
  struct Ranked {
    int32_t rank;
    int32_t result;
  };

  const Ranked* Find(int32_t left, int32_t right) const;
  void Push(int32_t left_symbol, Scratch& scratch) const;
  void MergeAll(Scratch& scratch) const;

  std::array<int32_t, 256> byte_ids_;
  absl::flat_hash_map<uint64_t, Ranked> merges_;
};

}  // namespace hearth
