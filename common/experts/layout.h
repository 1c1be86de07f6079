// The bytes of the expert segment, version 2: what expert-store writes and every gpu-worker reads.
//
//   0                    SegmentHeader
//   table_offset         ExpertEntry[n_layers * n_experts], by layer, then by expert
//   payload_offset       the experts, each starting at a multiple of kExpertAlignment:
//                          PackedExpert (three PackedLinear headers: gate, up, down)
//                          then per linear its data and its absmax, each at a multiple of
//                          kTensorAlignment
//
// Offsets, never pointers: each process maps the segment at its own address. Everything is
// little-endian. No lock, queue or reference count: one writer, any number of readers with
// read-only maps. Any change of a field's meaning, place or size raises kLayoutVersion.
//
// Damage of one bit is always noticed: the header and each table entry carry a checksum of their
// own, state words are far apart from each other, and an expert's payload (headers, data, padding
// between them) has a checksum in its entry.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace hearth {

inline constexpr uint32_t kLayoutVersion = 2;
inline constexpr char kSegmentMagic[8] = {'H', 'R', 'T', 'H', 'X', 'P', 'R', 'T'};

// Experts start on pages of their own, so that they can be populated, registered and reloaded one
// by one. Costs at most 4 KiB an expert of 1.55 MiB.
inline constexpr uint64_t kExpertAlignment = 4096;
// Cache lines, and the widest vector load.
inline constexpr uint64_t kTensorAlignment = 64;

// Bounds far above any published model: they keep products of sizes within 64 bits.
inline constexpr uint32_t kMaxLayers = 4096;
inline constexpr uint32_t kMaxExperts = 65536;
inline constexpr int64_t kMaxLinearDim = int64_t{1} << 24;

// State words of the segment as a whole. A reader attaches only to kSegmentReady.
enum SegmentState : uint32_t {
  kSegmentLoading = 0x4c6f6164,
  kSegmentReady = 0x93b1d25a,
};

// State words of one expert: kAbsent -> kLoading -> kReady, and kReady -> kDamaged -> kLoading ->
// kReady when a checksum failed. Stored with release after the payload, loaded with acquire before
// it.
enum ExpertState : uint32_t {
  kExpertAbsent = 0,
  kExpertLoading = 0x1e2d4b87,
  kExpertReady = 0xa5c3960f,
  kExpertDamaged = 0x5a3c69f0,
};

// How experts' 4-bit matrices lie: as the checkpoint has them (the float32 backend reads those), or
// in the kernels' tiles (common/tensor/tiled.h) where their shapes allow it.
enum ExpertLayout : uint32_t {
  kPlainExperts = 0,
  kTiledExperts = 1,
};

struct SegmentHeader {
  char magic[8];
  uint32_t layout_version;
  uint32_t header_bytes;        // sizeof(SegmentHeader)
  uint32_t n_layers;            // with or without experts: common/checkpoint/expert_layers.h
  uint32_t n_experts;           // a layer; 0: the model has none
  uint64_t total_bytes;         // of the file
  uint64_t table_offset;        // from the segment's first byte
  uint64_t payload_offset;      // from the segment's first byte
  char fingerprint[64];         // hex, zero-padded: which checkpoint's experts these are
  uint32_t expert_layout;       // ExpertLayout
  uint32_t header_crc;          // CRC-32C of all bytes before this field
  std::atomic<uint32_t> state;  // SegmentState
  uint32_t reserved[17];        // zero
};
static_assert(sizeof(SegmentHeader) == 192);
static_assert(offsetof(SegmentHeader, layout_version) == 8);
static_assert(offsetof(SegmentHeader, n_layers) == 16);
static_assert(offsetof(SegmentHeader, total_bytes) == 24);
static_assert(offsetof(SegmentHeader, payload_offset) == 40);
static_assert(offsetof(SegmentHeader, fingerprint) == 48);
static_assert(offsetof(SegmentHeader, expert_layout) == 112);
static_assert(offsetof(SegmentHeader, header_crc) == 116);
static_assert(offsetof(SegmentHeader, state) == 120);
static_assert(std::is_standard_layout_v<SegmentHeader>);

// One expert's place. An entry of a layer without experts has payload_bytes 0 and stays
// kExpertAbsent.
struct ExpertEntry {
  std::atomic<uint32_t> state;        // ExpertState
  std::atomic<uint32_t> payload_crc;  // CRC-32C of the payload; 0 until it was first published
  uint64_t payload_offset;  // from the segment's first byte; a multiple of kExpertAlignment
  uint64_t payload_bytes;
  std::atomic<uint32_t>
      entry_crc;      // CRC-32C of (index, payload_crc, payload_offset, payload_bytes)
  uint32_t reserved;  // zero
};
static_assert(sizeof(ExpertEntry) == 32);
static_assert(offsetof(ExpertEntry, payload_offset) == 8);
static_assert(offsetof(ExpertEntry, payload_bytes) == 16);
static_assert(offsetof(ExpertEntry, entry_crc) == 24);
static_assert(std::is_standard_layout_v<ExpertEntry>);
static_assert(std::atomic<uint32_t>::is_always_lock_free);

// One matrix of an expert, as LinearRef describes it. Offsets count from the expert's first byte.
struct PackedLinear {
  uint32_t kind;        // WeightKind
  uint32_t block_size;  // kBlock4, kTiled4: elements that share a scale; else 0
  int64_t out;
  int64_t in;
  float levels[16];  // kBlock4, kTiled4: value of each code; else zeros
  uint64_t data_offset;
  uint64_t absmax_offset;  // kBlock4: float32 values, kTiled4: f16 scales; else 0
  float factor;            // kTiled4: on all scales; else 0
  uint32_t reserved[5];    // zero
};
static_assert(sizeof(PackedLinear) == 128);
static_assert(offsetof(PackedLinear, levels) == 24);
static_assert(offsetof(PackedLinear, data_offset) == 88);
static_assert(std::is_trivially_copyable_v<PackedLinear>);

struct PackedExpert {
  PackedLinear gate;
  PackedLinear up;
  PackedLinear down;
};
static_assert(sizeof(PackedExpert) == 384);

}  // namespace hearth
