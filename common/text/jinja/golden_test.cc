// Every golden conversation must come out as Hugging Face renders it; the checkpoint's own template
// must load.
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "common/base/file.h"
#include "common/base/json.h"
#include "common/testing/source_dir.h"
#include "common/text/chat_template.h"

namespace hearth {
namespace {

std::string Source(const std::string& path) {
  auto text = ReadFile(hearth::testing::SourceDir() + "/" + path, 64 << 20);
  EXPECT_TRUE(text.ok()) << text.status();
  return text.ok() ? *text : "";
}

json::object Variables(const json::object& row) {
  json::object variables;
  for (const char* name : {"messages", "tools", "add_generation_prompt"})
    variables[name] = row.at(name);
  for (const auto& entry : row.at("kwargs").as_object()) variables[entry.key()] = entry.value();
  return variables;
}

TEST(ChatTemplateGolden, EveryRowIsExact) {
  const auto rows = ParseJson(Source("tests/golden/text/chat_template_cases.json"));
  ASSERT_TRUE(rows.ok()) << rows.status();
  std::map<std::string, std::unique_ptr<ChatTemplate>> templates;
  int n = 0, n_errors = 0;
  for (const json::value& value : rows->as_array()) {
    const json::object& row = value.as_object();
    const std::string name(row.at("template").as_string().c_str());
    auto& parsed = templates[name];
    if (parsed == nullptr) {
      auto made = ChatTemplate::Parse(Source("tests/golden/chat-templates/" + name));
      ASSERT_TRUE(made.ok()) << name << ": " << made.status();
      parsed = std::move(*made);
    }
    const auto text = parsed->Render(Variables(row));
    ++n;
    if (const json::value* error = row.if_contains("error")) {
      ++n_errors;
      ASSERT_FALSE(text.ok()) << name << " row " << n;
      EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument);
      EXPECT_EQ(std::string(text.status().message()), error->as_string().c_str())
          << name << " row " << n;
      continue;
    }
    ASSERT_TRUE(text.ok()) << name << " row " << n << ": " << text.status();
    EXPECT_EQ(*text, std::string(row.at("expected").as_string().c_str())) << name << " row " << n;
  }
  EXPECT_EQ(n, 403);
  EXPECT_EQ(n_errors, 58);
}

TEST(ChatTemplateLoad, TakesTheTemplateOfTokenizerConfig) {
  const auto loaded = ChatTemplate::Load(hearth::testing::SourceDir() + "/models/demo");
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const auto variables = ParseJson(
      R"({"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}], "add_generation_prompt": true})");
  const auto text = (*loaded)->Render(variables->as_object());
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(
      *text,
      "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}

TEST(ChatTemplateLoad, SaysThatThereIsNone) {
  EXPECT_EQ(ChatTemplate::Load("/nonexistent").status().code(), absl::StatusCode::kNotFound);
}

TEST(ChatTemplateParse, NamesTheLineOfAnError) {
  const auto parsed = ChatTemplate::Parse("a\nb\n{% include 'x' %}");
  EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(parsed.status().message()).find("line 3"), std::string::npos)
      << parsed.status();
}

}  // namespace
}  // namespace hearth
