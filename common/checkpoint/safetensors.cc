#include "common/checkpoint/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/checked.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/safetensors_header.h"
#include "common/tensor/linear.h"

namespace hearth {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

using Entry = SafetensorsHeader::Entry;

absl::Status TensorError(std::string_view name, std::string_view what) {
  return absl::DataLossError(absl::StrCat("tensor ", ToAbsl(name), ": ", ToAbsl(what)));
}

// Dtype and shape must ask for exactly the bytes that the offsets give, inside the data section.
absl::Status CheckEntry(const SafetensorsHeader& header, const Entry& entry, uint64_t data_size) {
  const std::string_view name = header.NameOf(entry);
  const auto shape = std::span(header.dims).subspan(entry.dims_begin, entry.rank);
  const auto n_elements = CheckedProduct(shape);
  const auto n_bytes = n_elements ? CheckedMul(*n_elements, DtypeBytes(entry.dtype)) : std::nullopt;
  if (!n_bytes) {
    return TensorError(name, absl::StrCat("shape ", ShapeText(shape), " overflows 64 bits"));
  }
  if (entry.begin > entry.end || entry.end > data_size) {
    return TensorError(name, absl::StrCat("data_offsets [", entry.begin, ", ", entry.end,
                                          "] do not lie in the ", data_size, " bytes of data"));
  }
  if (entry.end - entry.begin != *n_bytes) {
    return TensorError(name, absl::StrCat("shape ", ShapeText(shape), " of ",
                                          ToAbsl(DtypeName(entry.dtype)), " takes ", *n_bytes,
                                          " bytes, data_offsets give ", entry.end - entry.begin));
  }
  return absl::OkStatus();
}

// Sorted by offset, each tensor must begin where the one before ended, and the last end at the end
// of the file: then no byte has two meanings, and none has none.
absl::Status CheckCoverage(const SafetensorsHeader& header, uint64_t data_size) {
  std::vector<uint32_t> order(header.entries.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    const Entry& x = header.entries[a];
    const Entry& y = header.entries[b];
    return std::pair(x.begin, x.end) < std::pair(y.begin, y.end);
  });
  uint64_t covered = 0;
  for (const uint32_t i : order) {
    const Entry& entry = header.entries[i];
    if (entry.begin != covered) {
      return TensorError(header.NameOf(entry),
                         absl::StrCat("begins at ", entry.begin, ", the tensor before ends at ",
                                      covered, entry.begin < covered ? ": overlap" : ": hole"));
    }
    covered = entry.end;
  }
  if (covered != data_size) {
    return absl::DataLossError(
        absl::StrCat("tensors cover ", covered, " of ", data_size, " bytes of data"));
  }
  return absl::OkStatus();
}

absl::Status CheckNames(const SafetensorsHeader& header) {
  for (size_t i = 0; i < header.entries.size(); ++i) {
    const std::string_view name = header.NameOf(header.entries[i]);
    if (name.empty()) return absl::InvalidArgumentError("a tensor without a name");
    if (i > 0 && name == header.NameOf(header.entries[i - 1])) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", ToAbsl(name), ": given twice"));
    }
  }
  return absl::OkStatus();
}

// The header's length, compared with the file before anything is made of it.
absl::StatusOr<uint64_t> HeaderSize(std::span<const std::byte> bytes) {
  if (bytes.size() < 8) {
    return absl::DataLossError(absl::StrCat("not a safetensors file: ", bytes.size(), " bytes"));
  }
  uint64_t header_size;
  std::memcpy(&header_size, bytes.data(), 8);
  if (header_size > SafetensorsFile::kMaxHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "header of ", header_size, " bytes, the limit is ", SafetensorsFile::kMaxHeaderBytes));
  }
  if (header_size > bytes.size() - 8) {
    return absl::DataLossError(absl::StrCat("header of ", header_size, " bytes in a file of ",
                                            bytes.size(), ": truncated?"));
  }
  return header_size;
}

absl::StatusOr<SafetensorsHeader> ReadHeader(std::span<const std::byte> bytes,
                                             uint64_t header_size) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + 8, header_size);
  HEARTH_ASSIGN_OR_RETURN(SafetensorsHeader header, ParseSafetensorsHeader(text));
  std::sort(header.entries.begin(), header.entries.end(),
            [&](const Entry& a, const Entry& b) { return header.NameOf(a) < header.NameOf(b); });
  HEARTH_RETURN_IF_ERROR(CheckNames(header));
  const uint64_t data_size = bytes.size() - 8 - header_size;
  for (const Entry& entry : header.entries) {
    HEARTH_RETURN_IF_ERROR(CheckEntry(header, entry, data_size));
  }
  HEARTH_RETURN_IF_ERROR(CheckCoverage(header, data_size));
  return header;
}

template <typename T, typename To>
std::vector<To> Convert(const TensorView& tensor, To (*convert)(T)) {
  std::vector<To> values(tensor.n_elements());
  for (size_t i = 0; i < values.size(); ++i) {
    T value;
    std::memcpy(&value, tensor.bytes.data() + i * sizeof(T), sizeof(T));
    values[i] = convert(value);
  }
  return values;
}

template <typename T>
std::vector<int64_t> Widen(const TensorView& tensor) {
  return Convert<T, int64_t>(tensor, [](T value) { return static_cast<int64_t>(value); });
}

}  // namespace

std::string ShapeText(std::span<const uint64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape.begin(), shape.end(), ", "), "]");
}

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::filesystem::path& path) {
  HEARTH_ASSIGN_OR_RETURN(MappedFile file, MappedFile::OpenReadOnly(path));
  HEARTH_ASSIGN_OR_RETURN(SafetensorsFile opened, Parse(file.bytes(), path.string()));
  opened.file_ = std::move(file);
  return opened;
}

absl::StatusOr<SafetensorsFile> SafetensorsFile::Parse(std::span<const std::byte> bytes,
                                                       std::string label) {
  const auto header_size = HeaderSize(bytes);
  if (!header_size.ok()) return Annotate(header_size.status(), label);
  auto header = ReadHeader(bytes, *header_size);
  if (!header.ok()) return Annotate(header.status(), label);

  SafetensorsFile file;
  file.label_ = std::move(label);
  file.bytes_ = bytes;
  file.header_size_ = *header_size;
  file.tensors_.reserve(header->entries.size());
  for (const Entry& entry : header->entries) {  // moving a vector keeps its elements where they are
    file.tensors_.push_back(
        {.name = header->NameOf(entry),
         .dtype = entry.dtype,
         .shape = std::span(header->dims).subspan(entry.dims_begin, entry.rank),
         .bytes = file.data_bytes().subspan(entry.begin, entry.end - entry.begin)});
  }
  file.names_ = std::move(header->names);
  file.dims_ = std::move(header->dims);
  file.metadata_ = std::move(header->metadata);
  return file;
}

const TensorView* SafetensorsFile::Find(std::string_view name) const {
  const auto found = std::lower_bound(
      tensors_.begin(), tensors_.end(), name,
      [](const TensorView& tensor, std::string_view wanted) { return tensor.name < wanted; });
  return found != tensors_.end() && found->name == name ? &*found : nullptr;
}

absl::StatusOr<std::vector<float>> ToFloats(const TensorView& tensor) {
  switch (tensor.dtype) {
    case Dtype::kF32:
      return Convert<float, float>(tensor, [](float value) { return value; });
    case Dtype::kF16:
      return Convert<uint16_t, float>(tensor, F16ToF32);
    case Dtype::kBF16:
      return Convert<uint16_t, float>(tensor, BF16ToF32);
    default:
      return absl::InvalidArgumentError(absl::StrCat("tensor ", ToAbsl(tensor.name), ": dtype ",
                                                     ToAbsl(DtypeName(tensor.dtype)),
                                                     ", allowed are F32, F16 and BF16"));
  }
}

absl::StatusOr<std::vector<int64_t>> ToIntegers(const TensorView& tensor) {
  switch (tensor.dtype) {
    case Dtype::kI64:
      return Widen<int64_t>(tensor);
    case Dtype::kI32:
      return Widen<int32_t>(tensor);
    case Dtype::kI16:
      return Widen<int16_t>(tensor);
    case Dtype::kI8:
      return Widen<int8_t>(tensor);
    case Dtype::kU32:
      return Widen<uint32_t>(tensor);
    case Dtype::kU16:
      return Widen<uint16_t>(tensor);
    case Dtype::kU8:
      return Widen<uint8_t>(tensor);
    default:
      return absl::InvalidArgumentError(absl::StrCat("tensor ", ToAbsl(tensor.name), ": dtype ",
                                                     ToAbsl(DtypeName(tensor.dtype)),
                                                     ", allowed are whole numbers"));
  }
}

}  // namespace hearth
