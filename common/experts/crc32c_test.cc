#include "common/experts/crc32c.h"

#include <gtest/gtest.h>

#include <random>
#include <string_view>
#include <vector>

namespace hearth {
namespace {

std::span<const std::byte> Bytes(std::string_view text) { return std::as_bytes(std::span(text)); }

TEST(Crc32c, GivesThePublishedCheckValues) {
  EXPECT_EQ(Crc32c({}), 0u);
  EXPECT_EQ(Crc32c(Bytes("123456789")), 0xe3069283u);
  EXPECT_EQ(Crc32c(std::vector<std::byte>(32)), 0x8a9136aau);  // RFC 3720, B.4
  EXPECT_EQ(Crc32c(std::vector<std::byte>(32, std::byte{0xff})), 0x62a8ab43u);
}

TEST(Crc32c, InstructionAndTablesAgreeAtEveryLengthAndAlignment) {
  std::mt19937 random(1);
  std::vector<std::byte> buffer(200);
  for (auto& b : buffer) b = static_cast<std::byte>(random());
  for (size_t start = 0; start < 9; ++start) {
    for (size_t n = 0; start + n <= buffer.size(); ++n) {
      const auto piece = std::span<const std::byte>(buffer).subspan(start, n);
      ASSERT_EQ(ExtendCrc32c(7, piece), ExtendCrc32cPortable(7, piece)) << start << " " << n;
    }
  }
}

TEST(Crc32c, PiecesGiveTheSameAsTheWhole) {
  const auto whole = Bytes("expert bytes in two pieces");
  EXPECT_EQ(ExtendCrc32c(Crc32c(whole.first(5)), whole.subspan(5)), Crc32c(whole));
  EXPECT_EQ(ExtendCrc32cPortable(ExtendCrc32cPortable(0, whole.first(5)), whole.subspan(5)),
            Crc32c(whole));
}

}  // namespace
}  // namespace hearth
