#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/config_parts.h"

namespace hearth {
namespace {

constexpr double kMaxFactor = 4096;

// "rope_type", or "type" as older files spell it; "default" where neither is there.
absl::StatusOr<std::string> RopeType(const JsonFields& fields) {
  HEARTH_ASSIGN_OR_RETURN(auto type, fields.String("rope_type"));
  if (!type) {
    HEARTH_ASSIGN_OR_RETURN(type, fields.String("type"));
  }
  return type.value_or("default");
}

// Spellings of YaRN that would change the result and that no published file of this architecture
// has.
absl::Status RefuseUnknownYarn(const JsonFields& fields) {
  for (const char* field : {"mscale", "mscale_all_dim"}) {
    if (fields.Find(field) != nullptr) {
      return absl::UnimplementedError(
          absl::StrCat(fields.where(), ": ", field, " is not supported; attention_factor is"));
    }
  }
  HEARTH_ASSIGN_OR_RETURN(const auto truncate, fields.Bool("truncate"));
  if (!truncate.value_or(true)) {
    return absl::UnimplementedError(
        absl::StrCat(fields.where(), ": truncate false is not supported"));
  }
  return absl::OkStatus();
}

absl::Status ReadYarn(const JsonFields& fields, const ModelConfig& model, RopeConfig& rope) {
  HEARTH_RETURN_IF_ERROR(RefuseUnknownYarn(fields));
  rope.yarn = true;
  HEARTH_ASSIGN_OR_RETURN(const auto factor, fields.Number("factor", 1, kMaxFactor));
  if (!factor) return fields.Missing("factor");
  rope.factor = *factor;
  HEARTH_ASSIGN_OR_RETURN(const auto original,
                          fields.Int("original_max_position_embeddings", 1, 1 << 30));
  rope.original_max_position_embeddings =
      static_cast<int>(original.value_or(model.max_position_embeddings));
  HEARTH_ASSIGN_OR_RETURN(const auto fast, fields.Number("beta_fast", 1e-3, 1e6));
  HEARTH_ASSIGN_OR_RETURN(const auto slow, fields.Number("beta_slow", 1e-3, 1e6));
  rope.beta_fast = fast.value_or(32);
  rope.beta_slow = slow.value_or(1);
  if (rope.beta_fast < rope.beta_slow) {
    return absl::InvalidArgumentError(absl::StrCat(fields.where(), ": beta_fast ", rope.beta_fast,
                                                   " is below beta_slow ", rope.beta_slow));
  }
  HEARTH_ASSIGN_OR_RETURN(const auto attention, fields.Number("attention_factor", 1e-3, 1e3));
  rope.attention_factor = attention.value_or(0.1 * std::log(rope.factor) + 1);
  return absl::OkStatus();
}

absl::Status ReadRotaryDims(const JsonFields& fields, const ModelConfig& model, RopeConfig& rope) {
  HEARTH_ASSIGN_OR_RETURN(const auto theta, fields.Number("rope_theta", 1.001, 1e15));
  rope.theta = theta.value_or(10'000'000);
  HEARTH_ASSIGN_OR_RETURN(const auto fraction, fields.Number("partial_rotary_factor", 1e-6, 1));
  // Published files: 0.25. The product is exact for every fraction that gives a whole number of
  // pairs.
  rope.rotary_dims = static_cast<int>(model.head_dim * fraction.value_or(0.25));
  if (rope.rotary_dims < 2 || rope.rotary_dims % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(fields.where(), ": partial_rotary_factor ", fraction.value_or(0.25),
                     " of head_dim ", model.head_dim, " rotates ", rope.rotary_dims,
                     " values, allowed: an even number from 2 to ", model.head_dim));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<RopeConfig> ReadRope(const JsonFields& fields, const ModelConfig& model) {
  RopeConfig rope;
  HEARTH_ASSIGN_OR_RETURN(const json::object* newer, fields.Object("rope_parameters"));
  HEARTH_ASSIGN_OR_RETURN(const json::object* scaling, fields.Object("rope_scaling"));
  static const json::object kNone;
  const JsonFields base =
      newer != nullptr ? JsonFields(*newer, absl::StrCat(fields.where(), ": rope_parameters"))
                       : fields;
  HEARTH_RETURN_IF_ERROR(ReadRotaryDims(base, model, rope));
  const JsonFields kind = newer != nullptr
                              ? base
                              : JsonFields(scaling != nullptr ? *scaling : kNone,
                                           absl::StrCat(fields.where(), ": rope_scaling"));
  HEARTH_ASSIGN_OR_RETURN(const std::string type, RopeType(kind));
  if (type == "yarn") {
    HEARTH_RETURN_IF_ERROR(ReadYarn(kind, model, rope));
  } else if (type != "default") {
    return absl::UnimplementedError(absl::StrCat(kind.where(), ": rope_type is \"", type,
                                                 "\", supported are \"default\" and \"yarn\""));
  }
  return rope;
}

}  // namespace hearth
