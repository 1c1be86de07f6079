#include "common/text/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/base/check.h"
#include "common/text/utf8.h"

namespace hearth {
namespace {

constexpr auto kNfc = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);

// Below U+0300 every character is its own normal form and none combines.
constexpr char32_t kFirstThatMayChange = 0x300;

bool IsSurelyNormal(std::string_view text) {
  // U+0300 is CC 80: any byte from CC on may begin such a character, and no smaller first byte
  // does.
  static_assert(kFirstThatMayChange == 0x300);
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<uint8_t>(c) < 0xCC; });
}

int CombiningClass(utf8proc_int32_t code) { return utf8proc_get_property(code)->combining_class; }

std::vector<utf8proc_int32_t> Decompose(std::string_view text) {
  std::vector<utf8proc_int32_t> codes;
  codes.reserve(text.size() / 2);
  for (size_t i = 0; i < text.size();) {
    const Utf8Step step = NextUtf8(text, i);
    HEARTH_CHECK(step.kind == Utf8Step::Kind::kCharacter);
    i += step.length;
    utf8proc_int32_t parts[8];  // a canonical decomposition has at most 4
    int last_boundary_class = 0;
    const utf8proc_ssize_t n = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(step.code),
                                                       parts, 8, kNfc, &last_boundary_class);
    HEARTH_CHECK(n >= 0 && n <= 8);
    codes.insert(codes.end(), parts, parts + n);
  }
  return codes;
}

// Puts each run of combining marks in order. utf8proc's own ordering moves marks one place at a
// time, which is quadratic in the run's length; a run may be the whole text.
void OrderMarks(std::vector<utf8proc_int32_t>& codes) {
  const auto is_starter = [](utf8proc_int32_t code) { return CombiningClass(code) == 0; };
  const auto by_class = [](utf8proc_int32_t a, utf8proc_int32_t b) {
    return CombiningClass(a) < CombiningClass(b);
  };
  for (auto run = codes.begin(); run != codes.end();) {
    run = std::find_if_not(run, codes.end(), is_starter);
    const auto end = std::find_if(run, codes.end(), is_starter);
    if (!std::is_sorted(run, end, by_class)) std::stable_sort(run, end, by_class);
    run = end;
  }
}

}  // namespace

std::string NormalizeNfc(std::string_view text) {
  if (IsSurelyNormal(text)) return std::string(text);
  std::vector<utf8proc_int32_t> codes = Decompose(text);
  OrderMarks(codes);
  const utf8proc_ssize_t n =
      utf8proc_normalize_utf32(codes.data(), static_cast<utf8proc_ssize_t>(codes.size()), kNfc);
  HEARTH_CHECK(n >= 0);
  std::string out;
  out.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < n; ++i) AppendUtf8(static_cast<char32_t>(codes[i]), out);
  return out;
}

}  // namespace hearth
