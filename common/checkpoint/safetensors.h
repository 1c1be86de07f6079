// A safetensors file, mapped and checked in full before any of it is used: header length, JSON,
// dtypes, shapes, and offsets that cover the data without overlap or hole. Used by Checkpoint for
// every shard, and for reference files.
//
// Thread-safe after Open (all methods const). Errors name the file and the tensor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/file.h"

namespace hearth {

enum class Dtype : uint8_t {
  kF64,
  kF32,
  kF16,
  kBF16,
  kI64,
  kI32,
  kI16,
  kI8,
  kU64,
  kU32,
  kU16,
  kU8,
  kBool,
  kF8E4M3,
  kF8E5M2,
};

// As spelled in headers: "F32", "BF16", ...
std::string_view DtypeName(Dtype dtype);
int64_t DtypeBytes(Dtype dtype);

// Borrows from the SafetensorsFile. `bytes` has exactly the length that dtype and shape ask for, at
// any alignment.
struct TensorView {
  std::string_view name;
  Dtype dtype = Dtype::kU8;
  std::span<const uint64_t> shape;
  std::span<const std::byte> bytes;

  uint64_t n_elements() const { return bytes.size() / static_cast<uint64_t>(DtypeBytes(dtype)); }
};

std::string ShapeText(std::span<const uint64_t> shape);  // "[2, 3]"

class SafetensorsFile {
 public:
  static constexpr uint64_t kMaxHeaderBytes = 100'000'000;
  static constexpr int kMaxRank = 8;

  // Maps and checks. InvalidArgument or DataLoss where the file breaks a rule.
  static absl::StatusOr<SafetensorsFile> Open(const std::filesystem::path& path);
  // The same over borrowed bytes, for tests and fuzzing; `label` stands for the path in errors.
  static absl::StatusOr<SafetensorsFile> Parse(std::span<const std::byte> bytes, std::string label);

  std::span<const TensorView> tensors() const { return tensors_; }  // sorted by name
  const TensorView* Find(std::string_view name) const;              // null where absent
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::string& label() const { return label_; }

  std::span<const std::byte> file_bytes() const { return bytes_; }
  std::span<const std::byte> header_bytes() const { return bytes_.subspan(8, header_size_); }
  std::span<const std::byte> data_bytes() const { return bytes_.subspan(8 + header_size_); }

 private:
  SafetensorsFile() = default;

  std::string label_;
  MappedFile file_;  // empty where Parse borrowed
  std::span<const std::byte> bytes_;
  uint64_t header_size_ = 0;
  std::vector<char> names_;     // all names, one after another; views point into it
  std::vector<uint64_t> dims_;  // all shapes
  std::vector<TensorView> tensors_;
  std::map<std::string, std::string> metadata_;
};

// Values converted from F32, F16 or BF16; another dtype is InvalidArgument.
absl::StatusOr<std::vector<float>> ToFloats(const TensorView& tensor);
// Values of I64, I32, I16, I8, U32, U16 or U8; another dtype is InvalidArgument.
absl::StatusOr<std::vector<int64_t>> ToIntegers(const TensorView& tensor);

}  // namespace hearth
