// CRC-32C (Castagnoli), the checksum of segments: with the SSE 4.2 instruction where there is one,
// else with tables.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace hearth {

// The CRC of all bytes so far followed by `bytes`; start with 0.
uint32_t ExtendCrc32c(uint32_t crc, std::span<const std::byte> bytes);
inline uint32_t Crc32c(std::span<const std::byte> bytes) { return ExtendCrc32c(0, bytes); }

// The version without special instructions, for machines that lack them and as the test's second
// witness.
uint32_t ExtendCrc32cPortable(uint32_t crc, std::span<const std::byte> bytes);

}  // namespace hearth
