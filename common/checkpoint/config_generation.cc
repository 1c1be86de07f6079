#include <limits>

#include "common/base/status_macros.h"
#include "common/checkpoint/config_parts.h"

namespace hearth {
namespace {

constexpr size_t kMaxEndTokens = 64;

absl::StatusOr<int32_t> TokenId(const JsonFields& fields, const char* field,
                                const json::value& value, int vocab_size) {
  if (!value.is_int64() || value.get_int64() < 0 || value.get_int64() >= vocab_size) {
    return fields.Error(field, value, "token ids below vocab_size " + std::to_string(vocab_size));
  }
  return static_cast<int32_t>(value.get_int64());
}

absl::Status ReadEndTokens(const JsonFields& fields, ModelConfig& model) {
  const json::value* value = fields.Find("eos_token_id");
  if (value == nullptr) return absl::OkStatus();
  std::vector<int32_t> ids;
  if (value->is_array()) {
    HEARTH_ASSIGN_OR_RETURN(const json::array* list, fields.Array("eos_token_id", kMaxEndTokens));
    for (const json::value& entry : *list) {
      HEARTH_ASSIGN_OR_RETURN(const int32_t id,
                              TokenId(fields, "eos_token_id", entry, model.vocab_size));
      ids.push_back(id);
    }
  } else {
    HEARTH_ASSIGN_OR_RETURN(const int32_t id,
                            TokenId(fields, "eos_token_id", *value, model.vocab_size));
    ids.push_back(id);
  }
  model.eos_token_ids = std::move(ids);
  return absl::OkStatus();
}

absl::Status ReadDefaults(const JsonFields& fields, ModelConfig::Defaults& defaults) {
  HEARTH_ASSIGN_OR_RETURN(const auto do_sample, fields.Bool("do_sample"));
  HEARTH_ASSIGN_OR_RETURN(const auto temperature, fields.Number("temperature", 0, 100));
  HEARTH_ASSIGN_OR_RETURN(const auto top_p, fields.Number("top_p", 0, 1));
  HEARTH_ASSIGN_OR_RETURN(const auto min_p, fields.Number("min_p", 0, 1));
  HEARTH_ASSIGN_OR_RETURN(const auto penalty, fields.Number("repetition_penalty", 1e-3, 100));
  HEARTH_ASSIGN_OR_RETURN(const auto top_k, fields.Int("top_k", 0, 1 << 30));
  if (do_sample) defaults.do_sample = do_sample;
  if (temperature) defaults.temperature = temperature;
  if (top_p) defaults.top_p = top_p;
  if (min_p) defaults.min_p = min_p;
  if (penalty) defaults.repetition_penalty = penalty;
  if (top_k) defaults.top_k = static_cast<int>(*top_k);
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadGeneration(const JsonFields& fields, ModelConfig& model) {
  HEARTH_RETURN_IF_ERROR(ReadEndTokens(fields, model));
  if (const json::value* bos = fields.Find("bos_token_id"); bos != nullptr) {
    HEARTH_ASSIGN_OR_RETURN(model.bos_token_id,
                            TokenId(fields, "bos_token_id", *bos, model.vocab_size));
  }
  return ReadDefaults(fields, model.defaults);
}

}  // namespace hearth
