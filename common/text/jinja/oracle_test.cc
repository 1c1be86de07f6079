// The interpreter against jinja2 itself, on listed and generated templates. Skipped where
// python3-jinja2 isn't installed.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "common/base/file.h"
#include "common/base/json.h"
#include "common/testing/source_dir.h"
#include "common/text/chat_template.h"

namespace hearth {
namespace {

const std::string kFolder = hearth::testing::SourceDir() + "/common/text/jinja/testdata/";

std::vector<std::string> Listed() {
  std::vector<std::string> templates;
  std::ifstream file(kFolder + "snippets.txt");
  for (std::string line; std::getline(file, line);) {
    templates.push_back(line);
    // Each {{ }} by itself too, so that one error doesn't hide what follows.
    for (size_t at = line.find("{{ ");
         line[0] == '{' && line.find("{%") == std::string::npos && at != std::string::npos;) {
      const size_t next = line.find(" {{ ", at + 3);
      templates.push_back(line.substr(at, next == std::string::npos ? next : next - at));
      at = next == std::string::npos ? next : next + 1;
    }
  }
  return templates;
}

// White space is about lines, so these have several.
std::vector<std::string> Layouts() {
  return {"a\n  {% if yes %}\n  b\n  {% endif %}\nc\n",
          "a\r\n{% if yes %}\r\nb{% endif %}\rc\n\n",
          "  {# c #}  \n  x {# d #}\ny",
          "{%- if yes -%}\n  a  \n{%- endif -%}\n  b",
          "a\n  {%+ if yes +%}\n  b\n{% endif %}",
          "  {{ n }}\n  {{- n -}}\n  x",
          "{% for x in l %}\n  {{ x }}\n{% endfor %}\n",
          "{% raw %}\n {{ x }}\n {% endraw %}\n b",
          "{% raw -%}\n a {%- endraw %}\nb",
          "{% set x %}\n  a\n{% endset %}\n[{{ x }}]",
          "\n\n{% if yes %}\n\n{% endif %}\n\n",
          "a\n\t {% if yes %}b{% endif %} \t\n c",
          "{% macro m(a,\n  b=2) %}\n{{ a }}\n{% endmacro %}\n{{ m(\n1) }}",
          "{{ n }}\n",
          "{{ n }}\n\n",
          "{# a\n b #}\n\nc",
          "x {%- set a = 1 %}\n\n{{ a }}",
          "{% if yes %}  {% if no %}\n{% endif %}  x\n{% endif %}",
          "{{ 'a\nb' }}\n{{ missing.x }}",
          "   {% if yes %}{% endif %}   {% if yes %}\n{% endif %}",
          "\u00a0{%- if yes %}\u00a0{% endif -%}\u2003x"};
}

std::vector<std::string> Generated() {
  const std::vector<std::string> values = {
      "s",   "t",   "u",       "e",  "n",   "z",        "neg",     "f",     "big",
      "yes", "nil", "l",       "w",  "mix", "d",        "people",  "lines", "tag",
      "num", "fl",  "missing", "[]", "{}",  "(1, 'a')", "range(3)"};
  const std::vector<std::string> suffixes = {"|tojson",
                                             "|trim",
                                             "|length",
                                             "|default('x')",
                                             "|d('y', true)",
                                             "|join('-')",
                                             "|list",
                                             "|string",
                                             "|int",
                                             "|float",
                                             "|upper",
                                             "|lower",
                                             "|title",
                                             "|capitalize",
                                             "|first",
                                             "|last",
                                             "|sort",
                                             "|reverse|list",
                                             "|unique|list",
                                             "|dictsort",
                                             "|items|list",
                                             "|escape",
                                             "|abs",
                                             "|round",
                                             "|min",
                                             "|max",
                                             "|sum",
                                             "|batch(2)|list",
                                             "|slice(2)|list",
                                             "|wordcount",
                                             "|select|list",
                                             "|map('string')|list",
                                             "|urlencode",
                                             "[0]",
                                             "[-1]",
                                             "['a']",
                                             "[1:]",
                                             "[::-1]",
                                             ".a",
                                             ".nope",
                                             ".nope.x",
                                             " + 1",
                                             " + 'x'",
                                             " + [1]",
                                             " * 2",
                                             " - 1",
                                             " / 2",
                                             " // 2",
                                             " % 2",
                                             " ** 2",
                                             " ~ 'x'",
                                             " == 1",
                                             " != nil",
                                             " < 3",
                                             " >= 'a'",
                                             " in s",
                                             " in l",
                                             " in d",
                                             " and 1",
                                             " or 1",
                                             " is defined",
                                             " is none",
                                             " is string",
                                             " is number",
                                             " is sequence",
                                             " is iterable",
                                             " is mapping",
                                             " is true",
                                             " is even",
                                             " is lower",
                                             " is in l",
                                             "()",
                                             ".items()",
                                             ".strip()",
                                             ".split()",
                                             ".upper()",
                                             ".get('a')",
                                             ".append(1)",
                                             ".__class__",
                                             "|tojson(indent=2)",
                                             "|indent",
                                             "|replace('a', 'b')"};
  std::vector<std::string> templates;
  for (const std::string& value : values) {
    for (const std::string& suffix : suffixes) templates.push_back("{{ " + value + suffix + " }}");
    templates.push_back("{% for x in " + value +
                        " %}{{ loop.index }}{{ x }},{% else %}-{% endfor %}");
    templates.push_back("{% for a, b in " + value + " %}{{ a }}{% endfor %}");
    templates.push_back("{{ not " + value + " }}{{ 'x' if " + value + " else 'y' }}{{ [" + value +
                        "] }}");
    templates.push_back("{{ -" + value + " }}");
  }
  return templates;
}

// Where we refuse on purpose: slices of a literal dict (jinja2 refuses those of any other dict) and
// Python's own attributes.
bool IsRefused(const std::string& source) {
  static constexpr const char* kSources[] = {"{{ {}[1:] }}", "{{ {}[::-1] }}",
                                             "{{ missing.__class__ }}"};
  return std::find(std::begin(kSources), std::end(kSources), source) != std::end(kSources);
}

// What jinja2 prints and we can't or won't: addresses, dict views, methods of Python's objects,
// integers of more than 64 bits.
bool IsBeyondUs(const std::string& text) {
  if (text.size() > 19 && text.find_first_not_of("0123456789") == std::string::npos) return true;
  for (const char* mark :
       {" at 0x", "dict_items", "dict_keys", "dict_values", "<built-in", "&lt;built-in"}) {
    if (text.find(mark) != std::string::npos) return true;
  }
  return false;
}

class Oracle : public ::testing::Test {
 protected:
  void SetUp() override {
    if (std::system("/usr/bin/python3 -c 'import jinja2' 2>/dev/null") != 0) {
      GTEST_SKIP() << "python3-jinja2 is not installed: apt-get install python3-jinja2";
    }
    auto parsed = ParseJson(*ReadFile(kFolder + "variables.json", 1 << 20));
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    variables_ = parsed->as_object();
  }

  json::array Ask(const std::vector<std::string>& templates) {
    const std::string stem =
        (std::filesystem::temp_directory_path() / ("hearth-oracle-" + std::to_string(getpid())))
            .string();
    json::array list;
    for (const std::string& source : templates) list.emplace_back(source);
    std::ofstream(stem + ".in") << SerializeJson(
        json::object{{"variables", variables_}, {"templates", list}});
    const std::string command = "/usr/bin/python3 " + kFolder + "render_with_jinja2.py < " + stem +
                                ".in > " + stem + ".out";
    EXPECT_EQ(std::system(command.c_str()), 0);
    auto answers = ParseJson(*ReadFile(stem + ".out", 64 << 20));
    std::filesystem::remove(stem + ".in");
    std::filesystem::remove(stem + ".out");
    EXPECT_TRUE(answers.ok()) << answers.status();
    return answers.ok() ? answers->as_array() : json::array();
  }

  void Check(const std::vector<std::string>& templates) {
    const json::array answers = Ask(templates);
    ASSERT_EQ(answers.size(), templates.size());
    int n_texts = 0, n_errors = 0;
    for (size_t i = 0; i < templates.size(); ++i) {
      const json::object& answer = answers[i].as_object();
      auto parsed = ChatTemplate::Parse(templates[i]);
      const auto text = parsed.ok() ? (*parsed)->Render(variables_)
                                    : absl::StatusOr<std::string>(parsed.status());
      if (const json::value* error = answer.if_contains("error")) {
        ++n_errors;
        EXPECT_FALSE(text.ok()) << templates[i] << "\n  ours: " << *text
                                << "\n  jinja2: " << *error;
        if (!text.ok() && answer.at("kind") == "UndefinedError") {
          EXPECT_EQ(std::string(text.status().message()), error->as_string().c_str())
              << templates[i];
        }
        continue;
      }
      const std::string wanted = answer.at("text").as_string().c_str();
      if (IsBeyondUs(wanted)) continue;
      if (IsRefused(templates[i])) {
        EXPECT_FALSE(text.ok()) << templates[i];
        continue;
      }
      ++n_texts;
      EXPECT_TRUE(text.ok()) << templates[i] << "\n  ours: " << text.status()
                             << "\n  jinja2: " << wanted;
      if (text.ok()) {
        EXPECT_EQ(*text, wanted) << templates[i];
      }
    }
    EXPECT_GT(n_texts, 10);
    RecordProperty("texts", n_texts);
    RecordProperty("errors", n_errors);
  }

  json::object variables_;
};

TEST_F(Oracle, ListedTemplates) { Check(Listed()); }
TEST_F(Oracle, LayoutsOfWhiteSpace) { Check(Layouts()); }
TEST_F(Oracle, EveryOperationOnEveryKindOfValue) { Check(Generated()); }

}  // namespace
}  // namespace hearth
