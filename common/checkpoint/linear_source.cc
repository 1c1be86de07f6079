#include "common/checkpoint/linear_source.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/quant_state.h"

namespace hearth {
namespace {

constexpr uint64_t kLevels = 16;
constexpr uint64_t kNestedLevels = 256;
constexpr uint64_t kMaxStateBytes = 4096;
// Double quantization rounds to the nearest of 256 levels, 0.9 / 64 apart where they are widest: a
// block of zeros may come back this far below zero, times nested_absmax.
constexpr float kNestedRounding = 0.0142f;

uint64_t CeilDiv(uint64_t a, uint64_t b) { return a / b + (a % b != 0 ? 1 : 0); }

// Config bounds keep this far inside 64 bits: 4096 experts * 2 * 65536 * 65536.
uint64_t Product(const std::vector<uint64_t>& shape) {
  uint64_t product = 1;
  for (const uint64_t dim : shape) product *= dim;
  return product;
}

absl::Status CheckMember(const TensorRef& member, Dtype dtype, uint64_t n_elements) {
  if (member.view->dtype == dtype && member.view->n_elements() == n_elements) {
    return absl::OkStatus();
  }
  return member.Error(absl::StrCat(ToAbsl(DtypeName(member.view->dtype)), " ",
                                   ShapeText(member.view->shape), ", must be ",
                                   ToAbsl(DtypeName(dtype)), " with ", n_elements, " elements"));
}

class GroupFinder {
 public:
  GroupFinder(const TensorFolder& folder, std::string name, std::vector<std::string>& missing,
              std::vector<const TensorView*>& used)
      : folder_(folder), name_(std::move(name)), missing_(missing), used_(used) {}

  TensorRef Optional(const char* suffix) {
    const TensorRef found = folder_.Find(name_ + suffix);
    if (found.view != nullptr) used_.push_back(found.view);
    return found;
  }
  TensorRef Required(const char* suffix) {
    const TensorRef found = Optional(suffix);
    if (found.view == nullptr) missing_.push_back(name_ + suffix);
    return found;
  }

 private:
  const TensorFolder& folder_;
  const std::string name_;
  std::vector<std::string>& missing_;
  std::vector<const TensorView*>& used_;
};

absl::Status CheckPlainShape(const TensorRef& weight, const std::vector<uint64_t>& shape) {
  if (std::ranges::equal(weight.view->shape, shape)) return absl::OkStatus();
  return weight.Error(absl::StrCat("shape ", ShapeText(weight.view->shape),
                                   ", the config asks for ", ShapeText(shape)));
}

// Members of a 4-bit group, as far as the headers tell.
absl::Status FindBlock4(GroupFinder& finder, uint64_t n, LinearSource& source) {
  source.kind = WeightKind::kBlock4;
  HEARTH_RETURN_IF_ERROR(CheckMember(source.weight, Dtype::kU8, CeilDiv(n, 2)));
  const TensorRef nf4 = finder.Optional(".quant_state.bitsandbytes__nf4");
  const TensorRef fp4 = finder.Optional(".quant_state.bitsandbytes__fp4");
  if ((nf4.view != nullptr) == (fp4.view != nullptr)) {
    return source.weight.Error(
        "4-bit codes (U8) need one of .quant_state.bitsandbytes__nf4 and "
        ".quant_state.bitsandbytes__fp4");
  }
  source.is_fp4 = fp4.view != nullptr;
  source.state = source.is_fp4 ? fp4 : nf4;
  if (source.state.view->dtype != Dtype::kU8 || source.state.view->bytes.size() > kMaxStateBytes) {
    return source.state.Error(absl::StrCat("must be U8 of at most ", kMaxStateBytes, " bytes"));
  }
  source.levels = finder.Required(".quant_map");
  if (source.levels.view != nullptr) {
    HEARTH_RETURN_IF_ERROR(CheckMember(source.levels, Dtype::kF32, kLevels));
  }
  source.absmax = finder.Required(".absmax");
  if (source.absmax.view == nullptr || source.absmax.view->dtype == Dtype::kF32) {
    return absl::OkStatus();
  }
  if (source.absmax.view->dtype != Dtype::kU8) {
    return source.absmax.Error("must be F32, or U8 with double quantization");
  }
  source.nested_absmax = finder.Required(".nested_absmax");
  source.nested_levels = finder.Required(".nested_quant_map");
  if (source.nested_levels.view == nullptr) return absl::OkStatus();
  return CheckMember(source.nested_levels, Dtype::kF32, kNestedLevels);
}

std::vector<float> FloatsOf(const TensorRef& tensor) {
  return ToFloats(*tensor.view).value();  // F32 was checked when the group was found
}

bool AllFinite(std::span<const float> values) {
  return std::ranges::all_of(values, [](float value) { return std::isfinite(value); });
}

// Scales of `values.size()` blocks from block `first` on.
absl::Status ReadPlainAbsmax(const LinearSource& source, uint64_t first, std::span<float> values) {
  std::memcpy(values.data(), source.absmax.view->bytes.data() + first * sizeof(float),
              values.size_bytes());
  for (size_t i = 0; i < values.size(); ++i) {
    if (!(values[i] >= 0) || std::isinf(values[i])) {
      return source.absmax.Error(absl::StrCat("block ", first + i, " has the scale ", values[i],
                                              ", must be finite and not negative"));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadNestedAbsmax(const LinearSource& source, uint64_t first, std::span<float> values) {
  const std::vector<float> levels = FloatsOf(source.nested_levels);
  if (!AllFinite(levels)) return source.nested_levels.Error("a level is NaN or infinite");
  const auto* codes = reinterpret_cast<const uint8_t*>(source.absmax.view->bytes.data());
  for (size_t i = 0; i < values.size(); ++i) {
    const uint64_t block = first + i;
    float scale;
    std::memcpy(
        &scale,
        source.nested_absmax.view->bytes.data() + block / source.nested_block_size * sizeof(float),
        sizeof(scale));
    if (!(scale >= 0) || std::isinf(scale)) {
      return source.nested_absmax.Error(absl::StrCat("the scale of block ", block, " is ", scale,
                                                     ", must be finite and not negative"));
    }
    values[i] = levels[codes[block]] * scale + source.nested_offset;
    if (!(values[i] >= -kNestedRounding * scale - 1e-6f * std::abs(source.nested_offset)) ||
        std::isinf(values[i])) {
      return source.absmax.Error(absl::StrCat("block ", block, " has the scale ", values[i],
                                              ", must be finite and not negative"));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadBlock4(const LinearSource& source, OwnedLinear& linear) {
  linear.ref.data = source.weight.view->bytes.data() + source.first_element / 2;
  const uint64_t block_size = source.block_size;
  const uint64_t first = source.first_element / block_size;
  linear.absmax.resize(CeilDiv(source.out * source.in, block_size));
  HEARTH_RETURN_IF_ERROR(source.absmax.view->dtype == Dtype::kU8
                             ? ReadNestedAbsmax(source, first, linear.absmax)
                             : ReadPlainAbsmax(source, first, linear.absmax));
  linear.ref.absmax = linear.absmax.data();
  return absl::OkStatus();
}

void ReadPlain(const LinearSource& source, OwnedLinear& linear) {
  const uint64_t element = DtypeBytes(source.weight.view->dtype);
  const auto bytes = source.weight.view->bytes.subspan(source.first_element * element,
                                                       source.out * source.in * element);
  linear.ref.data = bytes.data();
  if (reinterpret_cast<uintptr_t>(bytes.data()) % element == 0) return;
  linear.aligned.assign(bytes.begin(), bytes.end());
  linear.ref.data = linear.aligned.data();
}

}  // namespace

absl::StatusOr<LinearSource> FindGroup(const TensorFolder& folder, const std::string& weight_name,
                                       const std::vector<uint64_t>& shape,
                                       std::vector<std::string>& missing,
                                       std::vector<const TensorView*>& used) {
  LinearSource source;
  GroupFinder finder(folder, weight_name, missing, used);
  source.weight = finder.Required("");
  if (source.weight.view == nullptr) return source;
  switch (source.weight.view->dtype) {
    case Dtype::kF32:
      source.kind = WeightKind::kF32;
      break;
    case Dtype::kF16:
      source.kind = WeightKind::kF16;
      break;
    case Dtype::kBF16:
      source.kind = WeightKind::kBF16;
      break;
    case Dtype::kU8:
      HEARTH_RETURN_IF_ERROR(FindBlock4(finder, Product(shape), source));
      return source;
    default:
      return source.weight.Error(
          absl::StrCat("dtype ", ToAbsl(DtypeName(source.weight.view->dtype)),
                       ", supported are F32, F16, BF16 and 4-bit codes in U8"));
  }
  HEARTH_RETURN_IF_ERROR(CheckPlainShape(source.weight, shape));
  return source;
}

absl::Status FinishGroup(LinearSource& source, const std::vector<uint64_t>& shape) {
  if (source.kind != WeightKind::kBlock4) return absl::OkStatus();
  const auto bytes = source.state.view->bytes;
  const auto state = ParseQuantState({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  if (!state.ok()) return source.state.Error(FromAbsl(state.status().message()));
  if (state->is_fp4 != source.is_fp4)
    return source.state.Error("quant_type is not that of the name");
  if (state->shape != shape) {
    return source.state.Error(absl::StrCat("shape ", ShapeText(state->shape),
                                           ", the config asks for ", ShapeText(shape)));
  }
  const bool has_codes = source.absmax.view->dtype == Dtype::kU8;
  if (state->has_nested != has_codes) {
    return source.state.Error(has_codes ? "nested_blocksize is missing: absmax is U8"
                                        : "nested_blocksize is given, but absmax is F32");
  }
  source.block_size = state->block_size;
  source.nested_block_size = state->nested_block_size;
  source.nested_offset = state->nested_offset;
  const uint64_t n_blocks = CeilDiv(Product(shape), source.block_size);
  HEARTH_RETURN_IF_ERROR(
      CheckMember(source.absmax, has_codes ? Dtype::kU8 : Dtype::kF32, n_blocks));
  if (has_codes) {
    HEARTH_RETURN_IF_ERROR(CheckMember(source.nested_absmax, Dtype::kF32,
                                       CeilDiv(n_blocks, source.nested_block_size)));
  }
  if (source.first_element % source.block_size != 0) {
    return source.weight.Error(absl::StrCat("experts begin inside a block of ", source.block_size,
                                            " elements: slices are read at block boundaries only"));
  }
  return absl::OkStatus();
}

absl::StatusOr<LinearRef> ReadLinearShape(const LinearSource& source) {
  LinearRef shape{.kind = source.kind,
                  .out = static_cast<int64_t>(source.out),
                  .in = static_cast<int64_t>(source.in)};
  if (source.kind != WeightKind::kBlock4) return shape;
  shape.block_size = source.block_size;
  const std::vector<float> levels = FloatsOf(source.levels);
  if (!AllFinite(levels)) return source.levels.Error("a level is NaN or infinite");
  std::ranges::copy(levels, shape.levels.begin());
  return shape;
}

absl::StatusOr<OwnedLinear> ReadLinear(const LinearSource& source) {
  OwnedLinear linear;
  HEARTH_ASSIGN_OR_RETURN(linear.ref, ReadLinearShape(source));
  if (source.kind == WeightKind::kBlock4) {
    HEARTH_RETURN_IF_ERROR(ReadBlock4(source, linear));
  } else {
    ReadPlain(source, linear);
  }
  return linear;
}

}  // namespace hearth
