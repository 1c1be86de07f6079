#include "common/checkpoint/tensor_folder.h"

#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/file.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/json_fields.h"
#include "common/checkpoint/strict_json.h"

namespace hearth {
namespace {

constexpr uint64_t kMaxIndexBytes = 100'000'000;
constexpr size_t kMaxShards = 4096;

// A plain file name: what a stranger's index names must not lead out of the folder.
bool IsPlainName(std::string_view name) {
  return !name.empty() && name.size() <= 255 && name != "." && name != ".." &&
         name.find('/') == std::string_view::npos && name.find('\0') == std::string_view::npos;
}

absl::StatusOr<std::string> ShardName(const JsonFields& map, std::string_view tensor,
                                      const json::value& value) {
  if (!value.is_string()) return map.Error(tensor, value, "a file name");
  std::string name(value.get_string());
  if (!IsPlainName(name)) return map.Error(tensor, value, "the name of a file in the same folder");
  return name;
}

}  // namespace

absl::Status TensorRef::Error(std::string_view what) const {
  return absl::DataLossError(
      absl::StrCat(file->label(), ": tensor ", ToAbsl(view->name), ": ", ToAbsl(what)));
}

absl::StatusOr<TensorFolder> TensorFolder::Open(const std::filesystem::path& folder) {
  TensorFolder opened;
  const std::filesystem::path single = folder / "model.safetensors";
  const std::filesystem::path index = folder / "model.safetensors.index.json";
  std::error_code ignored;
  if (std::filesystem::exists(single, ignored)) {
    HEARTH_ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(single));
    opened.shards_.push_back(std::make_unique<SafetensorsFile>(std::move(file)));
    opened.AddAll(*opened.shards_.back());
    return opened;
  }
  if (!std::filesystem::exists(index, ignored)) {
    return absl::NotFoundError(absl::StrCat(
        folder.string(), ": neither model.safetensors nor model.safetensors.index.json",
        ": other formats are not read"));
  }
  HEARTH_RETURN_IF_ERROR(opened.OpenSharded(folder, index));
  return opened;
}

absl::Status TensorFolder::OpenSharded(const std::filesystem::path& folder,
                                       const std::filesystem::path& index) {
  HEARTH_ASSIGN_OR_RETURN(const std::string text, ReadFile(index, kMaxIndexBytes));
  const auto object = ParseStrictObject(text, 4);
  if (!object.ok()) return Annotate(object.status(), index.string());
  const JsonFields fields(*object, index.string());
  HEARTH_ASSIGN_OR_RETURN(const json::object* weight_map, fields.Object("weight_map"));
  if (weight_map == nullptr) return fields.Missing("weight_map");
  const JsonFields map(*weight_map, absl::StrCat(index.string(), ": weight_map"));

  std::map<std::string, const SafetensorsFile*> by_file;
  for (const auto& entry : *weight_map) {
    HEARTH_ASSIGN_OR_RETURN(std::string name, ShardName(map, entry.key(), entry.value()));
    by_file.emplace(std::move(name), nullptr);
    if (by_file.size() > kMaxShards) {
      return absl::InvalidArgumentError(
          absl::StrCat(map.where(), " names more than ", kMaxShards, " files"));
    }
  }
  for (auto& [name, shard] : by_file) {
    auto file = SafetensorsFile::Open(folder / name);
    if (!file.ok()) return Annotate(file.status(), absl::StrCat("shard named by ", index.string()));
    n_tensors_ += file->tensors().size();
    shards_.push_back(std::make_unique<SafetensorsFile>(*std::move(file)));
    shard = shards_.back().get();
  }
  for (const auto& entry : *weight_map) {
    const SafetensorsFile* shard = by_file.at(std::string(entry.value().get_string()));
    const TensorView* view = shard->Find(entry.key());
    if (view == nullptr) {
      return absl::NotFoundError(absl::StrCat(shard->label(), ": tensor ", std::string(entry.key()),
                                              ": named by ", index.string(), " and not there"));
    }
    by_name_.emplace(view->name, TensorRef{view, shard});
  }
  return absl::OkStatus();
}

void TensorFolder::AddAll(const SafetensorsFile& file) {
  by_name_.reserve(file.tensors().size());
  for (const TensorView& view : file.tensors())
    by_name_.emplace(view.name, TensorRef{&view, &file});
  n_tensors_ += file.tensors().size();
}

TensorRef TensorFolder::Find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? TensorRef{} : found->second;
}

}  // namespace hearth
