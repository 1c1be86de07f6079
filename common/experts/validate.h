// Checks of a segment's bytes: nothing that the other process wrote is believed before it passed
// here. Used by reader and writer (adoption), the dump, and the fuzzer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/experts/layout.h"

namespace hearth {

// What the header says, copied out of the shared bytes.
struct SegmentInfo {
  uint32_t layout_version = 0;
  int n_layers = 0;
  int n_experts = 0;
  ExpertLayout expert_layout = kPlainExperts;
  uint64_t total_bytes = 0;
  uint64_t table_offset = 0;
  uint64_t payload_offset = 0;
  std::string fingerprint;

  size_t n_entries() const {
    return static_cast<size_t>(n_layers) * static_cast<size_t>(n_experts);
  }
  size_t Index(int layer, int expert) const {
    return static_cast<size_t>(layer) * static_cast<size_t>(n_experts) +
           static_cast<size_t>(expert);
  }
};

// FailedPrecondition for another layout version (both are named); DataLoss for anything else that
// doesn't hold: magic, checksum, sizes, offsets, the file's length.
absl::StatusOr<SegmentInfo> CheckHeader(std::span<const std::byte> segment);

// Every entry: checksum, bounds, alignment, no two experts overlapping, a known state. DataLoss
// names layer and expert.
absl::Status CheckTable(std::span<const std::byte> segment, const SegmentInfo& info);

const SegmentHeader& HeaderOf(std::span<const std::byte> segment);
std::span<const ExpertEntry> TableOf(std::span<const std::byte> segment, const SegmentInfo& info);

// The payload of a checked entry.
std::span<const std::byte> PayloadOf(std::span<const std::byte> segment, const ExpertEntry& entry);

uint32_t HeaderCrc(const SegmentHeader& header);
uint32_t EntryCrc(size_t index, const ExpertEntry& entry);

// 1 to 64 lower-case hex digits.
bool IsFingerprint(std::string_view text);

}  // namespace hearth
