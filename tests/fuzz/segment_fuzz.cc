// Any bytes as a segment: refused, or every expert that the checks let through can be read to its
// last byte.
//
// The first input byte says whether the checksums are made right before the checks, as a peer with
// a bug would; without that the fuzzer would never get past them.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>

#include "common/experts/packing.h"
#include "common/experts/validate.h"

namespace hearth {
namespace {

constexpr size_t kMaxBytes = 1 << 20;

struct Free {
  void operator()(std::byte* bytes) const { std::free(bytes); }
};

// As mapped: aligned to a page, and not a byte longer than the file.
std::unique_ptr<std::byte, Free> AlignedCopy(std::span<const uint8_t> data) {
  void* memory = nullptr;
  if (::posix_memalign(&memory, kExpertAlignment, data.empty() ? 1 : data.size()) != 0)
    std::abort();
  if (!data.empty()) std::memcpy(memory, data.data(), data.size());
  return std::unique_ptr<std::byte, Free>(static_cast<std::byte*>(memory));
}

void MakeChecksumsRight(std::span<std::byte> segment) {
  if (segment.size() < sizeof(SegmentHeader)) return;
  auto& header = *reinterpret_cast<SegmentHeader*>(segment.data());
  header.header_crc = HeaderCrc(header);
  const auto info = CheckHeader(segment);
  if (!info.ok()) return;
  const auto table = TableOf(segment, *info);
  for (size_t i = 0; i < table.size(); ++i) {
    const_cast<ExpertEntry&>(table[i]).entry_crc = EntryCrc(i, table[i]);
  }
}

// Reads every byte, so that the sanitizer sees a reference that goes too far.
void ReadWhole(const LinearRef& linear) {
  const LinearBytes sizes = BytesOf(linear);
  volatile unsigned sum = 0;
  const auto* data = static_cast<const uint8_t*>(linear.data);
  for (uint64_t i = 0; i < sizes.data; ++i) sum = sum + data[i];
  const auto* absmax = linear.kind == WeightKind::kTiled4
                           ? reinterpret_cast<const uint8_t*>(linear.scales)
                           : reinterpret_cast<const uint8_t*>(linear.absmax);
  for (uint64_t i = 0; i < sizes.absmax; ++i) sum = sum + absmax[i];
}

void ReadSegment(std::span<const std::byte> segment) {
  const auto info = CheckHeader(segment);
  if (!info.ok() || !CheckTable(segment, *info).ok()) return;
  for (const ExpertEntry& entry : TableOf(segment, *info)) {
    if (entry.payload_bytes == 0) continue;
    const auto expert = UnpackExpert(PayloadOf(segment, entry));
    if (!expert.ok()) continue;
    ReadWhole(expert->gate);
    ReadWhole(expert->up);
    ReadWhole(expert->down);
  }
}

}  // namespace
}  // namespace hearth

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1 || size > hearth::kMaxBytes) return 0;
  const auto copy = hearth::AlignedCopy({data + 1, size - 1});
  const std::span<std::byte> segment(copy.get(), size - 1);
  if ((data[0] & 1) != 0) hearth::MakeChecksumsRight(segment);
  hearth::ReadSegment(segment);
  return 0;
}
