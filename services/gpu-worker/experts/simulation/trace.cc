#include "services/gpu-worker/experts/simulation/trace.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/file.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/safetensors_bytes.h"

namespace hearth::worker {
namespace {

constexpr int kMaxLayers = 1024;
constexpr int kMaxExperts = 65535;

std::string IdsName(int layer, std::string_view which) {
  return absl::StrCat("layers.", layer, ".router.", ToAbsl(which));
}

absl::StatusOr<std::vector<int32_t>> ReadIds(const TensorView& tensor) {
  if (tensor.dtype != Dtype::kF32) {
    HEARTH_ASSIGN_OR_RETURN(const std::vector<int64_t> wide, ToIntegers(tensor));
    std::vector<int32_t> ids;
    ids.reserve(wide.size());
    for (const int64_t id : wide) ids.push_back(id < 0 || id > INT32_MAX ? -1 : int32_t(id));
    return ids;
  }
  HEARTH_ASSIGN_OR_RETURN(const std::vector<float> values, ToFloats(tensor));
  std::vector<int32_t> ids;
  ids.reserve(values.size());
  for (const float value : values) {
    const bool is_id = value >= 0 && value < 65536 && value == std::floor(value);
    ids.push_back(is_id ? static_cast<int32_t>(value) : -1);
  }
  return ids;
}

absl::Status CheckIds(const std::vector<int32_t>& ids, int n_experts, int top_k) {
  const auto width = static_cast<size_t>(top_k);
  for (size_t row = 0; row < ids.size(); row += width) {
    const std::set<int32_t> different(ids.begin() + static_cast<int64_t>(row),
                                      ids.begin() + static_cast<int64_t>(row + width));
    if (different.size() == width && *different.begin() >= 0 && *different.rbegin() < n_experts) {
      continue;
    }
    return absl::InvalidArgumentError(absl::StrCat("token ", row / width, " does not choose ",
                                                   top_k, " different experts below ", n_experts));
  }
  return absl::OkStatus();
}

absl::StatusOr<int> ReadNumber(const SafetensorsFile& file, const char* name, int limit) {
  const auto found = file.metadata().find(name);
  int value = 0;
  if (found == file.metadata().end() || !absl::SimpleAtoi(found->second, &value) || value < 1 ||
      value > limit) {
    return absl::InvalidArgumentError(absl::StrCat(
        file.label(), ": no trace of `hearth profile --record`: the metadata must say ", name,
        ", 1 to ", limit));
  }
  return value;
}

// [T] integers; `missing` for each where the tensor is absent.
absl::StatusOr<std::vector<int64_t>> ReadPerToken(const SafetensorsFile& file, const char* name,
                                                  size_t n_tokens) {
  const TensorView* tensor = file.Find(name);
  if (tensor == nullptr) return std::vector<int64_t>();
  HEARTH_ASSIGN_OR_RETURN(std::vector<int64_t> values, ToIntegers(*tensor));
  if (values.size() != n_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(file.label(), ": ", name, " has ", values.size(),
                                                   " values, but there are ", n_tokens, " tokens"));
  }
  return values;
}

absl::Status ReadTokens(const SafetensorsFile& file, size_t n_tokens, RoutingTrace* trace) {
  HEARTH_ASSIGN_OR_RETURN(const auto steps, ReadPerToken(file, "tokens.step", n_tokens));
  HEARTH_ASSIGN_OR_RETURN(const auto sequences, ReadPerToken(file, "tokens.sequence", n_tokens));
  HEARTH_ASSIGN_OR_RETURN(const auto prompts, ReadPerToken(file, "tokens.is_prompt", n_tokens));
  for (size_t i = 0; i < n_tokens; ++i) {
    const int64_t step = steps.empty() ? static_cast<int64_t>(i) : steps[i];
    const int64_t sequence = sequences.empty() ? 0 : sequences[i];
    const int64_t last = trace->tokens.empty() ? 0 : trace->tokens.back().step;
    if (step < last || step > INT32_MAX || sequence < 0 || sequence > INT32_MAX) {
      return absl::InvalidArgumentError(absl::StrCat(file.label(), ": token ", i, " is of step ",
                                                     step, " and sequence ", sequence));
    }
    trace->tokens.push_back({static_cast<int32_t>(step), static_cast<int32_t>(sequence),
                             !prompts.empty() && prompts[i] != 0});
  }
  return absl::OkStatus();
}

// The layers that have such a tensor; all of the same number of tokens.
absl::Status ReadLayers(const SafetensorsFile& file, std::string_view which, RoutingTrace* trace,
                        std::vector<std::vector<int32_t>>* layers, int64_t* n_tokens) {
  layers->resize(static_cast<size_t>(trace->n_layers));
  for (int i = 0; i < trace->n_layers; ++i) {
    const TensorView* tensor = file.Find(IdsName(i, which));
    if (tensor == nullptr) continue;
    if (trace->top_k == 0 && tensor->shape.size() == 2 &&
        tensor->shape[1] <= static_cast<uint64_t>(trace->n_experts)) {
      trace->top_k = static_cast<int>(tensor->shape[1]);
    }
    HEARTH_ASSIGN_OR_RETURN(
        TraceLayer layer, ReadTraceLayer(file, IdsName(i, which), trace->n_experts, trace->top_k));
    if (*n_tokens != 0 && layer.n_tokens != *n_tokens) {
      return absl::InvalidArgumentError(absl::StrCat(file.label(), ": ", IdsName(i, which), " has ",
                                                     layer.n_tokens, " tokens, others ",
                                                     *n_tokens));
    }
    *n_tokens = layer.n_tokens;
    (*layers)[static_cast<size_t>(i)] = std::move(layer.ids);
  }
  return absl::OkStatus();
}

template <typename T, typename From>
std::string Packed(const std::vector<From>& values) {
  std::vector<T> narrow;
  narrow.reserve(values.size());
  for (const From value : values) narrow.push_back(static_cast<T>(value));
  return {reinterpret_cast<const char*>(narrow.data()), narrow.size() * sizeof(T)};
}

}  // namespace

absl::StatusOr<TraceLayer> ReadTraceLayer(const SafetensorsFile& file, std::string_view name,
                                          int n_experts, int top_k) {
  const TensorView* tensor = file.Find(name);
  const std::string where = absl::StrCat(file.label(), ": ", ToAbsl(name));
  if (tensor == nullptr) return absl::NotFoundError(where + " is missing");
  if (top_k < 1 || tensor->shape.size() != 2 || tensor->shape[0] < 1 ||
      tensor->shape[1] != static_cast<uint64_t>(top_k)) {
    return absl::InvalidArgumentError(absl::StrCat(
        where, " has the shape ", ShapeText(tensor->shape), ", must be [tokens, ", top_k, "]"));
  }
  auto ids = ReadIds(*tensor);
  if (!ids.ok()) return Annotate(ids.status(), where);
  HEARTH_RETURN_IF_ERROR(Annotate(CheckIds(*ids, n_experts, top_k), where));
  return TraceLayer{static_cast<int64_t>(tensor->shape[0]), *std::move(ids)};
}

CacheShape RoutingTrace::Shape(int n_slots) const {
  CacheShape shape{.n_layers = n_layers, .n_experts = n_experts, .n_slots = n_slots};
  for (const auto& layer : ids) shape.layer_has_experts.push_back(!layer.empty());
  return shape;
}

absl::StatusOr<RoutingTrace> ReadTrace(const std::filesystem::path& path) {
  HEARTH_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(path));
  RoutingTrace trace;
  HEARTH_ASSIGN_OR_RETURN(trace.n_layers, ReadNumber(file, "n_layers", kMaxLayers));
  HEARTH_ASSIGN_OR_RETURN(trace.n_experts, ReadNumber(file, "n_experts", kMaxExperts));
  for (auto [name, text] :
       {std::pair{"model", &trace.model}, {"fingerprint", &trace.fingerprint}}) {
    const auto found = file.metadata().find(name);
    if (found != file.metadata().end()) *text = found->second;
  }
  int64_t n_tokens = 0;
  HEARTH_RETURN_IF_ERROR(ReadLayers(file, "topk_ids", &trace, &trace.ids, &n_tokens));
  if (n_tokens == 0) {
    return absl::InvalidArgumentError(absl::StrCat(file.label(), ": no layer has topk_ids"));
  }
  HEARTH_RETURN_IF_ERROR(ReadLayers(file, "early_ids", &trace, &trace.early_ids, &n_tokens));
  HEARTH_RETURN_IF_ERROR(ReadTokens(file, static_cast<size_t>(n_tokens), &trace));
  return trace;
}

absl::Status WriteTrace(const RoutingTrace& trace, const std::filesystem::path& file) {
  const uint64_t n_tokens = trace.tokens.size();
  std::vector<RawTensor> tensors;
  const auto add = [&](const std::vector<std::vector<int32_t>>& layers, std::string_view which) {
    for (size_t i = 0; i < layers.size(); ++i) {
      if (layers[i].empty()) continue;
      tensors.push_back({IdsName(static_cast<int>(i), which),
                         Dtype::kU16,
                         {n_tokens, static_cast<uint64_t>(trace.top_k)},
                         Packed<uint16_t>(layers[i])});
    }
  };
  add(trace.ids, "topk_ids");
  add(trace.early_ids, "early_ids");
  std::vector<int32_t> steps, sequences, prompts;
  for (const TraceToken& token : trace.tokens) {
    steps.push_back(token.step);
    sequences.push_back(token.sequence);
    prompts.push_back(token.is_prompt ? 1 : 0);
  }
  tensors.push_back({"tokens.step", Dtype::kI32, {n_tokens}, Packed<int32_t>(steps)});
  tensors.push_back({"tokens.sequence", Dtype::kI32, {n_tokens}, Packed<int32_t>(sequences)});
  tensors.push_back({"tokens.is_prompt", Dtype::kU8, {n_tokens}, Packed<uint8_t>(prompts)});
  const std::map<std::string, std::string> metadata = {
      {"model", trace.model},
      {"fingerprint", trace.fingerprint},
      {"n_layers", absl::StrCat(trace.n_layers)},
      {"n_experts", absl::StrCat(trace.n_experts)}};
  return WriteFileAtomically(file, SafetensorsBytes(tensors, metadata));
}

}  // namespace hearth::worker
