// A counter-based random number: a function of (seed, position) alone. What else runs in the batch,
// its order, and a sequence that is dropped and recomputed cannot change a sequence's draws.
#pragma once

#include <cstdint>

namespace hearth::worker {

// The finaliser of splitmix64: every bit of the input reaches every bit of the output.
constexpr uint64_t MixBits(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// Uniform in [0, 1), 53 bits. The seed is mixed first, so that seeds 1 and 2 share no draws.
constexpr double UniformAt(uint64_t seed, uint64_t position) {
  const uint64_t bits = MixBits(MixBits(seed) ^ (position * 0xd1342543de82ef95));
  return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

}  // namespace hearth::worker
