// Templates of an attacker: each is refused or done within a bounded time of the processor, and
// none reaches anything but its inputs.
#include <gtest/gtest.h>

#include <ctime>
#include <string>
#include <vector>

#include "common/base/json.h"
#include "common/text/chat_template.h"

namespace hearth {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kSlowdown = 20;  // of the sanitizers
#else
constexpr int kSlowdown = 1;
#endif

// The processor's time of this thread: what else the machine does must not fail the test.
double ThreadSeconds() {
  timespec time{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Renders and returns the outcome. Most take 50 ms; without budgets they would take hours.
absl::StatusOr<std::string> RunTimed(const std::string& source) {
  const double start = ThreadSeconds();
  auto parsed = ChatTemplate::Parse(source);
  const json::object variables{
      {"messages", json::array{json::object{{"role", "user"}, {"content", "hi"}}}}, {"x", "x"}};
  auto text =
      parsed.ok() ? (*parsed)->Render(variables) : absl::StatusOr<std::string>(parsed.status());
  EXPECT_LT(ThreadSeconds() - start, 1.0 * kSlowdown) << source.substr(0, 200);
  return text;
}

std::string Repeat(const std::string& text, int n) {
  std::string out;
  for (int i = 0; i < n; ++i) out += text;
  return out;
}

TEST(ChatTemplateSecurity, InjectionsReachNothing) {
  const std::vector<std::string> payloads = {
      "{{ ''.__class__.__mro__ }}",
      "{{ ''.__class__.__mro__[1].__subclasses__() }}",
      "{{ ''.__class__.__base__.__subclasses__() }}",
      "{{ [].__class__.__base__ }}",
      "{{ {}.__class__.__bases__[0] }}",
      "{{ ()|attr('__class__')|attr('__base__') }}",
      "{{ x['__class__']['__mro__'] }}",
      "{{ x|attr('__cl'~'ass__')|attr('__mro__') }}",
      "{{ cycler.__init__.__globals__.os }}",
      "{{ joiner.__init__.__globals__ }}",
      "{{ namespace.__init__.__globals__.os }}",
      "{{ lipsum.__globals__['os'].popen('id').read() }}",
      "{{ self.__init__.__globals__ }}",
      "{{ self._TemplateReference__context.cycler }}",
      "{{ config.items() }}",
      "{{ request.application.__globals__ }}",
      "{{ get_flashed_messages.__globals__ }}",
      "{{ url_for.__globals__['__builtins__'] }}",
      "{{ range.__init__.__globals__ }}",
      "{{ dict.__base__.__subclasses__() }}",
      "{{ raise_exception.__globals__['os'] }}",
      "{{ strftime_now.__globals__.os }}",
      "{{ x.format.__globals__.os }}",
      "{{ '{0.__class__.__mro__}'.format(x) }}",
      "{{ '{0.__init__.__globals__}'.format(namespace()) }}",
      "{{ x.format_map({}) }}",
      "{{ x.join.__self__.__class__ }}",
      "{{ x.upper.__self__.y }}",
      "{{ x.encode('utf-8').y }}",
      "{{ messages.append.__self__.x }}",
      "{{ messages.append(1) }}",
      "{{ messages[0].update({'a': 1}) }}",
      "{{ messages[0].pop('role') }}",
      "{{ messages.__class__.__init__ }}",
      "{{ messages.__reduce_ex__(2) }}",
      "{{ messages.__getattribute__('append')(1) }}",
      "{{ ().__class__.__base__.__subclasses__()[84]()._module.__builtins__ }}",
      "{{ namespace().__class__.__init__ }}",
      "{% set ns = namespace() %}{{ ns.__dict__.x }}",
      "{% set ns = namespace(__class__=1) %}{{ ns.x.y }}",
      "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
      "{% macro m() %}{% endmacro %}{{ m.__call__.__globals__ }}",
      "{% for i in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
      "{% for i in [1] %}{{ loop._iterator.x }}{% endfor %}",
      "{% include '/etc/passwd' %}",
      "{% import 'os' as os %}",
      "{% from 'os' import popen %}",
      "{% extends '/etc/passwd' %}",
      "{% do messages.append(1) %}",
      "{% debug %}",
      "{{ open('/etc/passwd').read() }}",
      "{{ eval('1') }}",
      "{{ exec('1') }}",
      "{{ __import__('os').system('id') }}",
      "{{ getattr(x, 'upper')() }}",
      "{{ environment.loader }}",
      "{{ x|import }}",
      "{{ messages|map('attr', '__class__')|map('attr', '__mro__')|list }}",
      "{{ messages|map(attribute='__class__.__mro__')|list }}",
      "{{ messages|groupby('__class__.__mro__') }}",
      "{{ messages|sort(attribute='__class__.__mro__') }}"};
  for (const std::string& payload : payloads) {
    const auto text = RunTimed(payload);
    EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument)
        << payload << " -> " << text.value_or("");
  }
}

TEST(ChatTemplateSecurity, BombsAreDefused) {
  const std::string tuple_tower =
      "{% set ns = namespace(v=()) %}{% for i in range(60) %}{% set ns.v = (ns.v, ns.v) %}{% "
      "endfor %}";
  const std::string list_tower =
      "{% set ns = namespace(a=[], b=[]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% "
      "set ns.b = [ns.b, ns.b] %}{% endfor %}";
  const std::vector<std::string> bombs = {
      "{% for a in range(1000000) %}{% for b in range(1000000) %}x{% endfor %}{% endfor %}",
      "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
      "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor "
      "%}{% endfor %}{% endfor %}",
      "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% "
      "endfor %}",
      "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% "
      "endfor %}",
      "{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% "
      "endfor %}",
      "{{ 'x' * 10000000000 }}",
      "{{ [1] * 10000000000 }}",
      "{{ ('x' * 4000000)|replace('x', 'y' * 4000000) }}",
      "{{ ('x' * 9999)|list|join('y' * 9999) }}",
      "{{ '%10000000000d' % 1 }}",
      "{{ '{:>10000000000}'.format(1) }}",
      "{{ '%.99999999f' % 1 }}",
      "{{ 'a'.ljust(10000000000) }}",
      "{{ 'a'.center(10000000000) }}",
      "{{ 'a'.zfill(10000000000) }}",
      "{{ 'a'|center(10000000000) }}",
      "{{ ('a\n' * 100000)|indent(100000) }}",
      "{{ 9 ** 9 ** 9 ** 9 }}",
      "{{ 2 ** 100000 }}",
      "{{ [1]|batch(10000000000, 1)|list }}",
      "{{ [1]|slice(10000000000)|list }}",
      "{{ messages|tojson(indent=1000000000) }}",
      "{% set ns = namespace(v=[]) %}{% for i in range(99999) %}{% set ns.v = [ns.v] %}{% endfor "
      "%}{{ ns.v }}",
      "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
      "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
      "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(50) }}",
      "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
      list_tower + "{{ ns.a == ns.b }}",
      list_tower + "{{ ns.a }}",
      list_tower + "{{ ns.a|tojson }}",
      list_tower + "{{ ns.a in [ns.b] }}",
      tuple_tower + "{{ {ns.v: 1} }}",
      tuple_tower + "{{ ns.v|unique|list }}{{ {(ns.v, 1): 2} }}",
      "{{ " + Repeat("(", 5000) + "1" + Repeat(")", 5000) + " }}",
      "{{ " + Repeat("[", 5000) + Repeat("]", 5000) + " }}",
      "{{ " + Repeat("-", 99999) + "1 }}",
      "{{ " + Repeat("not ", 99999) + "1 }}",
      "{{ 1" + Repeat(" + 1", 99999) + " }}",
      "{{ x" + Repeat(".x", 99999) + " }}",
      "{{ x" + Repeat("|e", 99999) + " }}",
      "{{ x" + Repeat("()", 99999) + " }}",
      "{{ x" + Repeat(" if x", 9999) + " }}",
      "{{ " + Repeat("x if x else ", 9999) + "x }}",
      Repeat("{% if x %}", 5000) + Repeat("{% endif %}", 5000),
      Repeat("{% for a in x %}", 500) + Repeat("{% endfor %}", 500),
      "{% for i in range(99999) %}{{ 'x' * 4000000 in 'y' * 4000000 }}{% endfor %}",
      "{% set a = 'x' * 4000000 %}{% for i in range(99999) %}{% if 'z' in a %}{% endif %}{% endfor "
      "%}",
      "{% set a = 'x' * 4000000 %}{% for i in range(99999) %}{% if a.find('z') %}{% endif %}{% "
      "endfor %}",
      "{% set a = 'x' * 4000000 %}{% for i in range(99999) %}{{ a[i] }}{% endfor %}",
      "{% set a = 'x' * 4000000 %}{% for i in range(99999) %}{% set b = a|upper %}{% endfor %}",
      "{% set a = ('x' * 4000000)|list %}",
      "{% set a = range(99999)|list %}{% for i in range(99999) %}{% if -1 in a %}{% endif %}{% "
      "endfor %}",
      "{% set a = range(99999)|list %}{% for i in range(9999) %}{% set b = a|sort %}{% endfor %}"};
  for (const std::string& bomb : bombs) {
    const auto text = RunTimed(bomb);
    EXPECT_FALSE(text.ok()) << bomb.substr(0, 200);
  }
}

TEST(ChatTemplateSecurity, HugeSourcesAreRefused) {
  EXPECT_TRUE(ChatTemplate::Parse(std::string(1 << 20, 'x')).ok());
  EXPECT_EQ(ChatTemplate::Parse(std::string((1 << 20) + 1, 'x')).status().code(),
            absl::StatusCode::kInvalidArgument);
  // What stays below the limit but is all tokens is quick too.
  EXPECT_FALSE(RunTimed("{{ " + Repeat("x ", 200'000) + "}}").ok());
}

TEST(ChatTemplateSecurity, BudgetsAreWhatTheLimitsSay) {
  const TemplateLimits limits{.max_steps = 1000, .max_depth = 8, .max_output_bytes = 100};
  const auto render = [&](const std::string& source) {
    auto parsed = ChatTemplate::Parse(source, limits);
    return parsed.ok() ? (*parsed)->Render({}) : absl::StatusOr<std::string>(parsed.status());
  };
  EXPECT_TRUE(render("{{ 'x' * 100 }}").ok());
  EXPECT_EQ(render("{{ 'x' * 101 }}").status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(render("{% for i in range(50) %}{% endfor %}").ok());
  EXPECT_EQ(render("{% for i in range(5000) %}{% endfor %}").status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(render("{{ ((((1)))) }}").ok());
  EXPECT_FALSE(render("{{ ((((((((((1)))))))))) }}").ok());
}

}  // namespace
}  // namespace hearth
