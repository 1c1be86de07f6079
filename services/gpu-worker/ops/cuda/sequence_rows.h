// How the rows of a launch belong to sequences. Plain: for .cu files too.
#pragma once

namespace hearth::worker {

// S sequences of n rows each: row s * n + t is row t of sequence s. Decode is S sequences of one
// row, prefill one sequence of n, a draft's check S sequences of a few.
struct SequenceRows {
  int n_sequences = 0;  // S
  int n_rows = 0;       // n, of each
  int total() const { return n_sequences * n_rows; }
};

}  // namespace hearth::worker
