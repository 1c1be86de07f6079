#include "common/checkpoint/quant_state.h"

#include <bit>
#include <cmath>
#include <optional>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/json_fields.h"
#include "common/checkpoint/safetensors.h"
#include "common/checkpoint/strict_json.h"

namespace hearth {
namespace {

constexpr int kMinBlock = 32;
constexpr int kMaxBlock = 4096;

absl::StatusOr<int> BlockSize(const JsonFields& fields, std::string_view field) {
  HEARTH_ASSIGN_OR_RETURN(const int64_t size, fields.RequiredInt(field, kMinBlock, kMaxBlock));
  if (!std::has_single_bit(static_cast<uint64_t>(size))) {
    return fields.Error(field, json::value(size),
                        absl::StrCat("a power of two from ", kMinBlock, " to ", kMaxBlock));
  }
  return static_cast<int>(size);
}

absl::StatusOr<std::vector<uint64_t>> Shape(const JsonFields& fields) {
  HEARTH_ASSIGN_OR_RETURN(const json::array* list,
                          fields.Array("shape", SafetensorsFile::kMaxRank));
  if (list == nullptr) return fields.Missing("shape");
  std::vector<uint64_t> shape;
  for (const json::value& dim : *list) {
    if (!dim.is_int64() || dim.get_int64() < 1) {
      return fields.Error("shape", dim, "dimensions from 1");
    }
    shape.push_back(static_cast<uint64_t>(dim.get_int64()));
  }
  return shape;
}

absl::Status ReadNested(const JsonFields& fields, QuantState& state) {
  HEARTH_ASSIGN_OR_RETURN(state.nested_block_size, BlockSize(fields, "nested_blocksize"));
  HEARTH_ASSIGN_OR_RETURN(const auto dtype, fields.String("nested_dtype"));
  if (dtype.value_or("float32") != "float32") {
    return fields.Error("nested_dtype", *fields.Find("nested_dtype"), "\"float32\"");
  }
  HEARTH_ASSIGN_OR_RETURN(const auto offset, fields.Number("nested_offset", -1e30, 1e30));
  if (!offset) return fields.Missing("nested_offset");
  state.nested_offset = static_cast<float>(*offset);
  state.has_nested = true;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<QuantState> ParseQuantState(std::string_view text) {
  HEARTH_ASSIGN_OR_RETURN(const json::object object, ParseStrictObject(text, 4));
  const JsonFields fields(object, "quant_state");
  QuantState state;
  HEARTH_ASSIGN_OR_RETURN(const auto type, fields.String("quant_type"));
  if (!type) return fields.Missing("quant_type");
  if (*type != "nf4" && *type != "fp4") {
    return fields.Error("quant_type", *fields.Find("quant_type"), "\"nf4\" or \"fp4\"");
  }
  state.is_fp4 = *type == "fp4";
  HEARTH_ASSIGN_OR_RETURN(state.block_size, BlockSize(fields, "blocksize"));
  HEARTH_ASSIGN_OR_RETURN(state.shape, Shape(fields));
  // The type that a library would dequantise to; here it is always float32.
  HEARTH_ASSIGN_OR_RETURN(const auto dtype, fields.String("dtype"));
  if (dtype && *dtype != "bfloat16" && *dtype != "float16" && *dtype != "float32") {
    return fields.Error("dtype", *fields.Find("dtype"), "\"bfloat16\", \"float16\" or \"float32\"");
  }
  if (fields.Find("nested_blocksize") != nullptr || fields.Find("nested_offset") != nullptr) {
    HEARTH_RETURN_IF_ERROR(ReadNested(fields, state));
  }
  return state;
}

}  // namespace hearth
