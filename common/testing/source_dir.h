// Where the project's files lie, for tests that read golden files or the demo model.
#pragma once

#include <filesystem>
#include <string>

namespace hearth::testing {

// The folder above this test program that holds CMakePresets.json. Found at run time: a path
// compiled in would keep checkouts from sharing compiled objects.
inline const std::string& SourceDir() {
  static const std::string folder = [] {
    std::filesystem::path path = std::filesystem::read_symlink("/proc/self/exe").parent_path();
    while (path.has_relative_path() && !std::filesystem::exists(path / "CMakePresets.json")) {
      path = path.parent_path();
    }
    return path.string();
  }();
  return folder;
}

}  // namespace hearth::testing
