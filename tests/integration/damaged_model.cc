#include "tests/integration/damaged_model.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "common/testing/process.h"
#include "common/testing/status_matchers.h"

namespace hearth::testing {

namespace fs = std::filesystem;

DamagedModel::DamagedModel(const fs::path& model, const fs::path& folder) : folder_(folder) {
  fs::remove_all(folder);
  fs::create_directories(folder);
  for (const auto& entry : fs::directory_iterator(model)) {
    fs::create_symlink(entry.path(), folder / entry.path().filename());
  }
}

std::string DamagedModel::Read(const std::string& file) const { return Slurp(folder_ / file); }

void DamagedModel::Write(const std::string& file, const std::string& bytes) const {
  fs::remove(folder_ / file);
  std::ofstream(folder_ / file, std::ios::binary) << bytes;
}

void DamagedModel::Remove(const std::string& file) const {
  EXPECT_TRUE(fs::remove(folder_ / file)) << file;
}

void DamagedModel::Truncate(const std::string& file, uint64_t bytes) const {
  Write(file, Read(file).substr(0, bytes));
}

void DamagedModel::Replace(const std::string& file, const std::string& from,
                           const std::string& to) const {
  std::string text = Read(file);
  const size_t place = text.find(from);
  ASSERT_NE(place, std::string::npos) << file << ": " << from;
  ASSERT_EQ(text.find(from, place + 1), std::string::npos) << file << ": " << from;
  Write(file, text.replace(place, from.size(), to));
}

void DamagedModel::Patch(const std::string& file, uint64_t offset, const std::string& bytes) const {
  std::string text = Read(file);
  ASSERT_LE(offset + bytes.size(), text.size());
  Write(file, text.replace(offset, bytes.size(), bytes));
}

std::string DamagedModel::FileOf(const std::string& tensor) const {
  const auto index = ParseJson(Read("model.safetensors.index.json"));
  EXPECT_OK(index);
  const json::object& files = index->as_object().at("weight_map").as_object();
  EXPECT_TRUE(files.contains(tensor)) << tensor;
  return files.contains(tensor) ? files.at(tensor).as_string().c_str() : "";
}

json::object DamagedModel::Header(const std::string& file) const {
  const std::string text = Read(file);
  uint64_t length = 0;
  std::memcpy(&length, text.data(), sizeof length);
  const auto header = ParseJson(std::string_view(text).substr(8, length));
  EXPECT_OK(header);
  return header->as_object();
}

void DamagedModel::SetEntry(const std::string& tensor, const std::string& from,
                            const std::string& to) const {
  const std::string file = FileOf(tensor), name = absl::StrCat("\"", tensor, "\":");
  std::string text = Read(file);
  const size_t entry = text.find(name);
  ASSERT_NE(entry, std::string::npos) << tensor;
  const size_t end = text.find('}', entry), place = text.find(from, entry);
  ASSERT_LT(place, end) << tensor << ": no " << from << " in " << text.substr(entry, end - entry);
  ASSERT_LE(to.size(), from.size());
  Write(file, text.replace(place, from.size(), to + std::string(from.size() - to.size(), ' ')));
}

void DamagedModel::PatchData(const std::string& tensor, const std::string& bytes) const {
  const std::string file = FileOf(tensor);
  const json::object header = Header(file);
  ASSERT_TRUE(header.contains(tensor)) << tensor;
  const auto begin =
      header.at(tensor).as_object().at("data_offsets").as_array()[0].to_number<uint64_t>();
  uint64_t length = 0;
  std::memcpy(&length, Read(file).data(), sizeof length);
  Patch(file, 8 + length + begin, bytes);
}

}  // namespace hearth::testing
