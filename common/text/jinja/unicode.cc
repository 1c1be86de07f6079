#include "common/text/jinja/unicode.h"

#include <utf8proc.h>

#include <algorithm>

namespace hearth::jinja {
namespace {

utf8proc_category_t Category(uint32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c));
}

// Code points whose upper or title case is more than one code point, of those that texts really
// hold.
std::u32string_view SpecialUpper(char32_t c) {
  switch (c) {
    case 0xDF:
      return U"SS";
    case 0x149:
      return U"\u02BCN";
    case 0xFB00:
      return U"FF";
    case 0xFB01:
      return U"FI";
    case 0xFB02:
      return U"FL";
    default:
      return {};
  }
}

bool IsContinuation(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

}  // namespace

int64_t CountCodePoints(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return !IsContinuation(c); });
}

bool IsValidUtf8(std::string_view text) {
  const auto* at = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  auto left = static_cast<utf8proc_ssize_t>(text.size());
  while (left > 0) {
    utf8proc_int32_t c = 0;
    const utf8proc_ssize_t n = utf8proc_iterate(at, left, &c);
    if (n <= 0) return false;
    at += n;
    left -= n;
  }
  return true;
}

void AppendCodePoint(std::string& text, uint32_t code_point) {
  utf8proc_uint8_t bytes[4];
  const auto n = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code_point), bytes);
  text.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(n));
}

std::u32string DecodeUtf8(std::string_view text) {
  std::u32string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const size_t n = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    char32_t c = n == 1 ? lead : lead & (0xFFu >> (n + 1));
    for (size_t k = 1; k < n && i + k < text.size(); ++k) c = (c << 6) | (text[i + k] & 0x3F);
    out.push_back(c);
    i += n;
  }
  return out;
}

std::string EncodeUtf8(std::u32string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char32_t c : text) {
    if (c < 0x80) {
      out.push_back(static_cast<char>(c));
    } else {
      AppendCodePoint(out, c);
    }
  }
  return out;
}

size_t ByteOffset(std::string_view text, int64_t code_point) {
  size_t at = 0;
  for (; at < text.size(); ++at) {
    if (IsContinuation(text[at])) continue;
    if (code_point-- == 0) return at;
  }
  return at;
}

bool IsSpace(uint32_t c) {
  if (c < 0x80) return (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x20);
  if (c == 0x85 || c == 0x2028 || c == 0x2029) return true;
  return Category(c) == UTF8PROC_CATEGORY_ZS;
}

bool IsLineBreak(uint32_t c) {
  return (c >= 10 && c <= 13) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
         c == 0x2029;
}

bool IsAlpha(uint32_t c) {
  const auto category = Category(c);
  return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

bool IsDecimal(uint32_t c) { return Category(c) == UTF8PROC_CATEGORY_ND; }

bool IsNumeric(uint32_t c) {
  const auto category = Category(c);
  return category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO;
}

bool IsUpper(uint32_t c) { return Category(c) == UTF8PROC_CATEGORY_LU; }
bool IsLower(uint32_t c) { return Category(c) == UTF8PROC_CATEGORY_LL || c == 0xAA || c == 0xBA; }
bool IsTitle(uint32_t c) { return Category(c) == UTF8PROC_CATEGORY_LT; }

bool IsPrintable(uint32_t c) {
  if (c < 0x80) return c >= 0x20 && c < 0x7F;
  switch (Category(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

std::string Upper(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char32_t c : DecodeUtf8(text)) {
    if (c < 0x80) {
      out.push_back(static_cast<char>(c >= 'a' && c <= 'z' ? c - 32 : c));
    } else if (const auto special = SpecialUpper(c); !special.empty()) {
      out += EncodeUtf8(special);
    } else {
      AppendCodePoint(out,
                      static_cast<uint32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))));
    }
  }
  return out;
}

std::string Lower(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  const std::u32string decoded = DecodeUtf8(text);
  for (size_t i = 0; i < decoded.size(); ++i) {
    const char32_t c = decoded[i];
    if (c < 0x80) {
      out.push_back(static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c));
    } else if (c == 0x130) {
      out += "i\u0307";
    } else if (c == 0x3A3 && i > 0 && IsAlpha(decoded[i - 1]) &&
               (i + 1 == decoded.size() || !IsAlpha(decoded[i + 1]))) {
      out += "\u03C2";  // a capital sigma that ends a word
    } else {
      AppendCodePoint(out,
                      static_cast<uint32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
    }
  }
  return out;
}

std::string TitleCase(std::u32string_view text) {
  std::string out;
  for (const char32_t c : text) {
    if (const auto special = SpecialUpper(c); !special.empty()) {
      out += EncodeUtf8(special.substr(0, special.size() - 1)) +
             Lower(EncodeUtf8(special.substr(special.size() - 1)));
    } else {
      AppendCodePoint(out,
                      static_cast<uint32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(c))));
    }
  }
  return out;
}

namespace {

template <typename Drops>
std::string StripWhere(std::string_view text, bool left, bool right, Drops drops) {
  size_t begin = 0, end = text.size();
  const auto next = [&](size_t at) {
    do ++at;
    while (at < text.size() && IsContinuation(text[at]));
    return at;
  };
  while (left && begin < end) {
    const size_t after = next(begin);
    if (!drops(DecodeUtf8(text.substr(begin, after - begin))[0])) break;
    begin = after;
  }
  while (right && begin < end) {
    size_t last = end - 1;
    while (last > begin && IsContinuation(text[last])) --last;
    if (!drops(DecodeUtf8(text.substr(last, end - last))[0])) break;
    end = last;
  }
  return std::string(text.substr(begin, end - begin));
}

}  // namespace

std::string Strip(std::string_view text, bool left, bool right) {
  return StripWhere(text, left, right, [](char32_t c) { return IsSpace(c); });
}

std::string Strip(std::string_view text, std::string_view characters, bool left, bool right) {
  const std::u32string set = DecodeUtf8(characters);
  return StripWhere(text, left, right,
                    [&](char32_t c) { return set.find(c) != std::u32string::npos; });
}

}  // namespace hearth::jinja
