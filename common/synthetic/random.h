// Random contents by place: any part of a tensor can be made alone, by any thread, and is the same
// each time. Used for synthetic models and for imposed contexts of the benchmark.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace hearth {

// 64 random bits for every counter of a stream: a multiplication of the counter's multiple by
// itself, halves folded (Wang Yi's wyrand, whose state is such a counter).
inline uint64_t RandomWord(uint64_t stream, uint64_t counter) {
  __extension__ using Wide = unsigned __int128;
  const uint64_t state = stream + (counter + 1) * 0xa0761d6478bd642fULL;
  const Wide product = static_cast<Wide>(state) * (state ^ 0xe7037ed1a0b428dbULL);
  return static_cast<uint64_t>(product >> 64) ^ static_cast<uint64_t>(product);
}

// A stream of its own for each name under a seed.
uint64_t StreamOf(uint64_t seed, std::string_view name);

// Bytes `offset` to offset + bytes.size() of a stream; offset is a multiple of 8.
void FillRandomBytes(uint64_t stream, uint64_t offset, std::span<std::byte> bytes);

// Normally distributed values from element `first` (a multiple of 4) on, rounded to bf16. Drawn
// from 4096 quantiles, so none is beyond 3.7 deviations. Any address will do: in a file tensors
// begin where others end.
void FillNormalBf16(uint64_t stream, uint64_t first, float mean, float deviation,
                    std::span<std::byte> bytes);

// Equally distributed values with this deviation and mean 0.
void FillRandomFloats(uint64_t stream, float deviation, std::span<float> values);

}  // namespace hearth
