// Copies of the demo model with one thing wrong, for tests of what a start refuses.
#pragma once

#include <filesystem>
#include <string>

#include "common/base/json.h"

namespace hearth::testing {

class DamagedModel {
 public:
  // A copy in `folder`, sound so far: links to the files of `model`, each of which becomes a file
  // of its own when it is changed.
  DamagedModel(const std::filesystem::path& model, const std::filesystem::path& folder);

  const std::filesystem::path& folder() const { return folder_; }
  std::string Read(const std::string& file) const;
  void Write(const std::string& file, const std::string& bytes) const;
  void Remove(const std::string& file) const;
  void Truncate(const std::string& file, uint64_t bytes) const;
  // Exactly one place holds `from`, or the test is wrong.
  void Replace(const std::string& file, const std::string& from, const std::string& to) const;
  // Overwrites bytes from `offset` on.
  void Patch(const std::string& file, uint64_t offset, const std::string& bytes) const;

  // The file that holds a tensor, from the index.
  std::string FileOf(const std::string& tensor) const;
  // Its header as written.
  json::object Header(const std::string& file) const;
  // Replaces a tensor's entry by one of the same or a smaller length (spaces fill up).
  void SetEntry(const std::string& tensor, const std::string& from, const std::string& to) const;
  // Overwrites the start of a tensor's data.
  void PatchData(const std::string& tensor, const std::string& bytes) const;

 private:
  const std::filesystem::path folder_;
};

}  // namespace hearth::testing
