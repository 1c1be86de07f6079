// Strings as Python sees them: sequences of code points. All text here is valid UTF-8 (Parse and
// the JSON reader check).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace hearth::jinja {

int64_t CountCodePoints(std::string_view text);
bool IsValidUtf8(std::string_view text);
void AppendCodePoint(std::string& text, uint32_t code_point);
std::u32string DecodeUtf8(std::string_view text);
std::string EncodeUtf8(std::u32string_view text);

// Byte offset of a code point; `text.size()` where there are fewer.
size_t ByteOffset(std::string_view text, int64_t code_point);

bool IsSpace(uint32_t code_point);      // str.isspace
bool IsLineBreak(uint32_t code_point);  // where str.splitlines splits
bool IsAlpha(uint32_t code_point);
bool IsDecimal(uint32_t code_point);
bool IsNumeric(uint32_t code_point);
bool IsUpper(uint32_t code_point);
bool IsLower(uint32_t code_point);
bool IsTitle(uint32_t code_point);
bool IsPrintable(uint32_t code_point);  // repr() shows it as it is

std::string Upper(std::string_view text);
std::string Lower(std::string_view text);
std::string TitleCase(std::u32string_view text);  // one title-cased letter each
std::string Strip(std::string_view text, bool left, bool right);
std::string Strip(std::string_view text, std::string_view characters, bool left, bool right);

}  // namespace hearth::jinja
