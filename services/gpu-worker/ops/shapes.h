// Sizes of the ops that host and device code share: plain, so that .cu files can read it.
#pragma once

namespace hearth::worker {

struct AttentionShape {
  int n_heads = 0;     // H
  int n_kv_heads = 0;  // G, divides H
  int head_dim = 0;    // d
};

struct DeltaShape {
  int key_heads = 0;    // Hk
  int value_heads = 0;  // Hv, a multiple of Hk
  int key_dim = 0;      // dk
  int value_dim = 0;    // dv
  int channels() const { return 2 * key_heads * key_dim + value_heads * value_dim; }
};

}  // namespace hearth::worker
