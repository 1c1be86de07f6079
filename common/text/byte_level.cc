#include "common/text/byte_level.h"

#include <array>
#include <cstdint>

#include "common/text/utf8.h"

namespace hearth {
namespace {

constexpr char32_t kAlphabetEnd = 0x144;

// Printable Latin-1 bytes stand for themselves; the 68 others are numbered on from U+0100.
constexpr bool StandsForItself(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

// Byte of each character below kAlphabetEnd, -1 for a character outside the alphabet.
constexpr std::array<int16_t, kAlphabetEnd> kByteOf = [] {
  std::array<int16_t, kAlphabetEnd> table{};
  table.fill(-1);
  int16_t next = 0x100;
  for (int16_t byte = 0; byte < 256; ++byte) {
    table[StandsForItself(byte) ? byte : next++] = byte;
  }
  return table;
}();

}  // namespace

std::optional<std::string> BytesFromSpelling(std::string_view spelling) {
  std::string bytes;
  bytes.reserve(spelling.size());
  for (size_t i = 0; i < spelling.size();) {
    const Utf8Step step = NextUtf8(spelling, i);
    if (step.kind != Utf8Step::Kind::kCharacter) return std::nullopt;
    if (step.code >= kAlphabetEnd || kByteOf[step.code] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(kByteOf[step.code]));
    i += step.length;
  }
  return bytes;
}

std::string DecodedBytes(std::string_view spelling) {
  std::optional<std::string> bytes = BytesFromSpelling(spelling);
  return bytes ? *std::move(bytes) : std::string(spelling);
}

}  // namespace hearth
