// docs/api.md lists the table's fields, all of them and nothing else.
#include <gtest/gtest.h>

#include <fstream>
#include <set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/status.h"
#include "common/testing/source_dir.h"
#include "services/gateway/api/testing.h"

namespace hearth::gateway {
namespace {

std::string Endpoints(const FieldSpec& spec) {
  std::vector<std::string> names;
  for (const auto& endpoint : testing::kEndpoints) {
    if ((spec.endpoints & endpoint.endpoint) != 0) names.emplace_back(endpoint.name);
  }
  return names.size() == std::size(testing::kEndpoints) ? "all" : absl::StrJoin(names, ", ");
}

std::string Type(const FieldSpec& spec) {
  switch (spec.kind) {
    case FieldKind::kBool:
      return "boolean";
    case FieldKind::kInteger:
      return "integer";
    case FieldKind::kNumber:
      return "number";
    case FieldKind::kString:
      return "string";
    case FieldKind::kStrings:
      return "string or list";
    case FieldKind::kIds:
      return "list of ids";
    case FieldKind::kArray:
      return "list";
    case FieldKind::kObject:
      return "object";
    case FieldKind::kAny:
      return "see right";
    case FieldKind::kUnsupported:
      return "unsupported";
  }
  return "";
}

std::string Bounds(const FieldSpec& spec) {
  const auto sized = [&](const char* unit) {
    return absl::StrCat(spec.min, " to ", spec.max, " ", unit);
  };
  switch (spec.kind) {
    case FieldKind::kInteger:
      return absl::StrCat(spec.min, " to ", spec.max);
    case FieldKind::kNumber:
      return absl::StrCat(spec.above_min ? "above " : "", spec.min_number, " to ", spec.max_number);
    case FieldKind::kString:
      return sized("bytes");
    case FieldKind::kStrings:
      return sized("strings");
    case FieldKind::kIds:
      return sized("ids");
    case FieldKind::kArray:
      return sized("elements");
    case FieldKind::kObject:
      return sized("members");
    default:
      return "–";
  }
}

// What a row of the document must begin with; its default and meaning follow.
std::string RowOf(const FieldSpec& spec) {
  return absl::StrCat("| `", ToAbsl(spec.name), "` | ", Endpoints(spec), " | ", Type(spec), " | ",
                      Bounds(spec), " | ", spec.required ? "required |" : "");
}

// The rows of the tables under "Request fields".
std::vector<std::string> RowsOfTheDocument() {
  std::ifstream file(hearth::testing::SourceDir() + "/docs/api.md");
  std::vector<std::string> rows;
  bool is_inside = false;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("## ")) is_inside = line == "## Request fields";
    if (is_inside && line.starts_with("| `")) rows.push_back(line);
  }
  return rows;
}

TEST(ApiDocument, ListsEveryFieldOfTheTableAsItIsAndNoOther) {
  const std::vector<std::string> rows = RowsOfTheDocument();
  ASSERT_FALSE(rows.empty()) << "docs/api.md has no table under '## Request fields'";
  std::set<size_t> used;
  for (const FieldSpec& spec : FieldTable()) {
    const std::string want = RowOf(spec);
    size_t at = 0;
    while (at < rows.size() && !rows[at].starts_with(want)) ++at;
    EXPECT_LT(at, rows.size()) << "docs/api.md lacks the row\n" << want;
    if (at < rows.size()) {
      EXPECT_TRUE(used.insert(at).second) << want;
      EXPECT_TRUE(spec.required || !rows[at].starts_with(want + "required")) << want;
    }
  }
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_TRUE(used.contains(i)) << "the table has no such field:\n" << rows[i];
  }
}

}  // namespace
}  // namespace hearth::gateway
