#include "common/experts/validate.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/experts/crc32c.h"

namespace hearth {
namespace {

absl::Status Damaged(std::string_view what) {
  return absl::DataLossError(absl::StrCat("segment is damaged: ", ToAbsl(what)));
}

// Copies the plain fields; the state word is not among them.
SegmentInfo Copied(const SegmentHeader& header) {
  SegmentInfo info;
  info.layout_version = header.layout_version;
  info.n_layers = static_cast<int>(header.n_layers);
  info.n_experts = static_cast<int>(header.n_experts);
  info.expert_layout = static_cast<ExpertLayout>(header.expert_layout);
  info.total_bytes = header.total_bytes;
  info.table_offset = header.table_offset;
  info.payload_offset = header.payload_offset;
  const char* end = std::find(std::begin(header.fingerprint), std::end(header.fingerprint), '\0');
  info.fingerprint.assign(header.fingerprint, end);
  return info;
}

bool IsZero(std::span<const uint32_t> words) {
  return std::ranges::all_of(words, [](uint32_t word) { return word == 0; });
}

absl::Status CheckExtent(const SegmentInfo& info, uint64_t file_bytes) {
  if (info.n_layers < 1 || info.n_layers > static_cast<int>(kMaxLayers) || info.n_experts < 0 ||
      info.n_experts > static_cast<int>(kMaxExperts)) {
    return Damaged(absl::StrCat(info.n_layers, " layers of ", info.n_experts, " experts"));
  }
  const uint64_t table_bytes = info.n_entries() * sizeof(ExpertEntry);
  if (info.expert_layout != kPlainExperts && info.expert_layout != kTiledExperts) {
    return Damaged(absl::StrCat("unknown layout ", static_cast<uint32_t>(info.expert_layout)));
  }
  if (info.total_bytes != file_bytes) {
    return Damaged(
        absl::StrCat("the header says ", info.total_bytes, " bytes, the file has ", file_bytes));
  }
  if (info.table_offset < sizeof(SegmentHeader) || info.table_offset % kTensorAlignment != 0 ||
      info.table_offset > file_bytes || table_bytes > file_bytes - info.table_offset) {
    return Damaged("the table lies outside the file");
  }
  if (info.payload_offset < info.table_offset + table_bytes || info.payload_offset > file_bytes ||
      info.payload_offset % kExpertAlignment != 0) {
    return Damaged("the experts lie outside the file");
  }
  return absl::OkStatus();
}

bool IsKnown(uint32_t state) {
  return state == kExpertAbsent || state == kExpertLoading || state == kExpertReady ||
         state == kExpertDamaged;
}

// Empty where the entry is fine. `next_free` is where the expert before it ended.
const char* EntryProblem(const SegmentInfo& info, size_t index, const ExpertEntry& entry,
                         uint64_t next_free) {
  if (entry.entry_crc.load(std::memory_order_acquire) != EntryCrc(index, entry)) {
    return "checksum of the table entry differs";
  }
  const uint32_t state = entry.state.load(std::memory_order_acquire);
  if (!IsKnown(state)) return "unknown state";
  const uint64_t offset = entry.payload_offset, bytes = entry.payload_bytes;
  if (bytes == 0) return state == kExpertAbsent && offset == 0 ? "" : "empty, but not absent";
  if (bytes < sizeof(PackedExpert)) return "payload is too short";
  if (offset % kExpertAlignment != 0) return "payload is not aligned";
  if (offset < next_free) return "payload overlaps the one before";
  if (offset > info.total_bytes || bytes > info.total_bytes - offset) {
    return "payload lies outside the file";
  }
  return "";
}

}  // namespace

const SegmentHeader& HeaderOf(std::span<const std::byte> segment) {
  return *reinterpret_cast<const SegmentHeader*>(segment.data());
}

std::span<const ExpertEntry> TableOf(std::span<const std::byte> segment, const SegmentInfo& info) {
  return {reinterpret_cast<const ExpertEntry*>(segment.data() + info.table_offset),
          info.n_entries()};
}

std::span<const std::byte> PayloadOf(std::span<const std::byte> segment, const ExpertEntry& entry) {
  return segment.subspan(entry.payload_offset, entry.payload_bytes);
}

uint32_t HeaderCrc(const SegmentHeader& header) {
  return Crc32c({reinterpret_cast<const std::byte*>(&header), offsetof(SegmentHeader, header_crc)});
}

uint32_t EntryCrc(size_t index, const ExpertEntry& entry) {
  const uint64_t fields[] = {index, entry.payload_crc.load(std::memory_order_relaxed),
                             entry.payload_offset, entry.payload_bytes, entry.reserved};
  return Crc32c(std::as_bytes(std::span(fields)));
}

bool IsFingerprint(std::string_view text) {
  return !text.empty() && text.size() <= sizeof(SegmentHeader::fingerprint) &&
         text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

absl::StatusOr<SegmentInfo> CheckHeader(std::span<const std::byte> segment) {
  if (segment.size() < sizeof(SegmentHeader)) {
    return Damaged(absl::StrCat(segment.size(), " bytes are too few for a header"));
  }
  const SegmentHeader& header = HeaderOf(segment);
  if (std::memcmp(header.magic, kSegmentMagic, sizeof kSegmentMagic) != 0) {
    return Damaged("no segment begins with these bytes");
  }
  // The version comes before the checksum: other versions may keep it elsewhere.
  if (header.layout_version != kLayoutVersion) {
    return absl::FailedPreconditionError(absl::StrCat("segment has layout version ",
                                                      header.layout_version,
                                                      ", this program needs ", kLayoutVersion));
  }
  if (header.header_crc != HeaderCrc(header) || header.header_bytes != sizeof(SegmentHeader) ||
      !IsZero(header.reserved)) {
    return Damaged("the header's checksum differs");
  }
  SegmentInfo info = Copied(header);
  if (absl::Status extent = CheckExtent(info, segment.size()); !extent.ok()) return extent;
  if (!IsFingerprint(info.fingerprint)) return Damaged("the fingerprint is not hex");
  const uint32_t state = header.state.load(std::memory_order_acquire);
  if (state != kSegmentReady && state != kSegmentLoading) return Damaged("unknown state");
  return info;
}

absl::Status CheckTable(std::span<const std::byte> segment, const SegmentInfo& info) {
  uint64_t next_free = info.payload_offset;
  const auto table = TableOf(segment, info);
  for (size_t i = 0; i < table.size(); ++i) {
    const char* problem = EntryProblem(info, i, table[i], next_free);
    if (*problem != '\0') {
      const size_t n_experts = static_cast<size_t>(info.n_experts);
      return Damaged(
          absl::StrCat("layer ", i / n_experts, " expert ", i % n_experts, ": ", problem));
    }
    if (table[i].payload_bytes > 0) {
      next_free = table[i].payload_offset + table[i].payload_bytes;
    }
  }
  return absl::OkStatus();
}

}  // namespace hearth
