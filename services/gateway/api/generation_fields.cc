// Fields that chat and completion share.
#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "services/gateway/api/fields.h"
#include "services/gateway/api/request.h"

namespace hearth::gateway {
namespace {

constexpr size_t kMaxStopBytes = 1024;
constexpr double kMaxBias = 100;

template <typename Set>
void ReadFloat(const json::object& body, std::string_view name, Set set) {
  if (const json::value* value = FindField(body, name)) {
    set(static_cast<float>(value->to_number<double>()));
  }
}

absl::Status ReadLogitBias(const json::object& body, v1::Sampling* sampling) {
  const json::value* value = FindField(body, "logit_bias");
  if (value == nullptr) return absl::OkStatus();
  for (const auto& member : value->get_object()) {
    const std::string_view key{member.key().data(), member.key().size()};
    int32_t id = 0;
    if (!absl::SimpleAtoi(ToAbsl(key), &id) || id < 0) {
      return absl::InvalidArgumentError(
          "logit_bias: a name is no token id, must be an integer from 0 on in quotes");
    }
    const bool is_number = member.value().is_number();
    const double bias = is_number ? member.value().to_number<double>() : 0;
    if (!is_number || !(bias >= -kMaxBias && bias <= kMaxBias)) {
      return absl::InvalidArgumentError(
          absl::StrCat("logit_bias: the value of token ", id, " must be a number of -100 to 100"));
    }
    (*sampling->mutable_logit_bias())[id] = static_cast<float>(bias);
  }
  return absl::OkStatus();
}

absl::Status ReadSampling(const json::object& body, v1::Sampling* out) {
  ReadFloat(body, "temperature", [&](float x) { out->set_temperature(x); });
  ReadFloat(body, "top_p", [&](float x) { out->set_top_p(x); });
  ReadFloat(body, "min_p", [&](float x) { out->set_min_p(x); });
  ReadFloat(body, "presence_penalty", [&](float x) { out->set_presence_penalty(x); });
  ReadFloat(body, "frequency_penalty", [&](float x) { out->set_frequency_penalty(x); });
  ReadFloat(body, "repetition_penalty", [&](float x) { out->set_repetition_penalty(x); });
  if (const json::value* top_k = FindField(body, "top_k")) {
    // -1 is the word of some clients for "off".
    out->set_top_k(static_cast<int32_t>(std::max<int64_t>(0, top_k->get_int64())));
  }
  if (const json::value* seed = FindField(body, "seed")) {
    out->set_seed(static_cast<uint64_t>(seed->get_int64()));
  }
  return ReadLogitBias(body, out);
}

absl::Status AddStop(const json::value& value, v1::GenerateRequest* request) {
  const json::string& stop = value.get_string();
  if (stop.empty() || stop.size() > kMaxStopBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("stop: a string has ", stop.size(), " bytes, must have 1 to ", kMaxStopBytes));
  }
  request->add_stop(std::string(stop.data(), stop.size()));
  return absl::OkStatus();
}

absl::Status ReadStops(const json::object& body, v1::GenerateRequest* request) {
  if (const json::value* ids = FindField(body, "stop_token_ids")) {
    for (const json::value& id : ids->get_array()) {
      request->add_stop_token_ids(static_cast<int32_t>(id.get_int64()));
    }
  }
  const json::value* stop = FindField(body, "stop");
  if (stop == nullptr) return absl::OkStatus();
  if (stop->is_string()) return AddStop(*stop, request);
  for (const json::value& string : stop->get_array()) {
    HEARTH_RETURN_IF_ERROR(AddStop(string, request));
  }
  return absl::OkStatus();
}

// {"include_usage": bool}; obfuscation is a matter of connections that this server does not make.
absl::Status ReadStreamOptions(const json::object& body, Generation* generation) {
  const json::value* options = FindField(body, "stream_options");
  if (options == nullptr) return absl::OkStatus();
  if (!generation->stream) {
    return absl::InvalidArgumentError("stream_options: needs \"stream\": true");
  }
  for (const auto& member : options->get_object()) {
    const std::string_view key{member.key().data(), member.key().size()};
    if (key != "include_usage" && key != "include_obfuscation") {
      return absl::InvalidArgumentError(
          "stream_options: has an unknown member, must have include_usage only");
    }
    if (!member.value().is_bool()) {
      return absl::InvalidArgumentError(
          absl::StrCat("stream_options.", ToAbsl(key), ": must be true or false"));
    }
    if (key == "include_usage") generation->include_usage = member.value().get_bool();
  }
  return absl::OkStatus();
}

}  // namespace

bool BoolOr(const json::object& body, std::string_view name, bool otherwise) {
  const json::value* value = FindField(body, name);
  return value == nullptr ? otherwise : value->get_bool();
}

std::string StringOr(const json::object& body, std::string_view name, std::string_view otherwise) {
  const json::value* value = FindField(body, name);
  if (value == nullptr) return std::string(otherwise);
  const json::string& text = value->get_string();
  return {text.data(), text.size()};
}

absl::Status ReadGenerationFields(const json::object& body, Generation* generation,
                                  v1::GenerateRequest* request) {
  generation->model = StringOr(body, "model", "");
  generation->stream = BoolOr(body, "stream", false);
  HEARTH_RETURN_IF_ERROR(ReadStreamOptions(body, generation));
  HEARTH_RETURN_IF_ERROR(ReadSampling(body, request->mutable_sampling()));
  HEARTH_RETURN_IF_ERROR(ReadStops(body, request));
  if (const json::value* limit = FindField(body, "max_tokens")) {
    request->set_max_tokens(static_cast<int32_t>(limit->get_int64()));
  }
  request->set_ignore_eos(BoolOr(body, "ignore_eos", false));
  generation->return_token_ids = BoolOr(body, "return_token_ids", false);
  request->set_return_token_ids(generation->return_token_ids);
  return absl::OkStatus();
}

void AddChoices(const json::object& body, const v1::GenerateRequest& request,
                Generation* generation) {
  const json::value* n = FindField(body, "n");
  generation->n = n == nullptr ? 1 : static_cast<int>(n->get_int64());
  for (int i = 0; i < generation->n; ++i) {
    v1::GenerateRequest& choice = generation->requests.emplace_back(request);
    // The same seed would give the same text n times.
    if (choice.sampling().has_seed()) {
      choice.mutable_sampling()->set_seed(choice.sampling().seed() + static_cast<uint64_t>(i));
    }
  }
}

}  // namespace hearth::gateway
