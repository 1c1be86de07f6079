#include "common/base/huge_pages.h"

#include <algorithm>
#include <fstream>
#include <string>

#include "common/base/page_buffer.h"
#include "common/testing/status_matchers.h"

namespace hearth {
namespace {

bool AnonymousHugePagesAreGiven() {
  std::ifstream in("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string line;
  std::getline(in, line);
  return line.find("[always]") != std::string::npos || line.find("[madvise]") != std::string::npos;
}

// The most that any of some attempts gives: while other programs hold much memory, the system may
// have no huge page free at once.
template <typename Attempt>
uint64_t MostOf(Attempt attempt, uint64_t enough) {
  uint64_t most = 0;
  for (int i = 0; i < 20 && most < enough; ++i) most = std::max<uint64_t>(most, attempt());
  return most;
}

bool IsAligned(const void* data, size_t alignment) {
  return reinterpret_cast<uintptr_t>(data) % alignment == 0;
}

TEST(PageBuffer, LiesInHugePagesWhereTheSystemGivesThem) {
  constexpr size_t kBytes = (size_t{5} << 20) + 123;
  ASSERT_OK_AND_ASSIGN(const PageBuffer buffer, PageBuffer::Allocate(kBytes));
  EXPECT_TRUE(IsAligned(buffer.data(), kHugePageBytes));
  EXPECT_EQ(buffer.bytes(), kBytes);
  if (!AnonymousHugePagesAreGiven()) GTEST_SKIP() << "transparent huge pages are off";
  EXPECT_EQ(MostOf([&] { return PageBuffer::Allocate(kBytes)->HugeBytes(); }, kBytes), kBytes);
}

TEST(PageBuffer, ReservedMemoryIsThereWhenItIsTouched) {
  // More than any machine of ours has, less than what ThreadSanitizer leaves of the address space.
  ASSERT_OK_AND_ASSIGN(const PageBuffer buffer, PageBuffer::Reserve(size_t{1} << 36));
  EXPECT_EQ(buffer.HugeBytes(), 0u);
  buffer.data()[size_t{1} << 35] = std::byte{1};
  EXPECT_EQ(buffer.data()[(size_t{1} << 35) + 1], std::byte{0});
  if (!AnonymousHugePagesAreGiven()) GTEST_SKIP() << "transparent huge pages are off";
  const auto touch_another = [&, next = size_t{1}]() mutable {
    buffer.data()[(size_t{1} << 34) + kHugePageBytes * next++] = std::byte{1};
    return buffer.HugeBytes();
  };
  EXPECT_GE(MostOf(touch_another, kHugePageBytes), kHugePageBytes);
}

TEST(HugeVector, BigOnesLieInHugePagesAndSmallOnesInLines) {
  HugeVector<float> small(10, 1.5F);
  EXPECT_TRUE(IsAligned(small.data(), 64));
  HugeVector<float> big(3 << 20, 2.5F);
  EXPECT_TRUE(IsAligned(big.data(), kHugePageBytes));
  const HugeVector<float> moved = std::move(big);
  EXPECT_EQ(moved[(3 << 20) - 1], 2.5F);
  if (!AnonymousHugePagesAreGiven()) GTEST_SKIP() << "transparent huge pages are off";
  const auto attempt = [] {
    const HugeVector<float> another(3 << 20, 1.F);
    return HugeBytes(another.data(), another.size() * sizeof(float));
  };
#ifdef __SANITIZE_ADDRESS__
  // The sanitizer fills a block's first bytes before we can ask for huge pages: all but the first.
  constexpr uint64_t kEnough = (size_t{12} << 20) - kHugePageBytes;
#else
  constexpr uint64_t kEnough = size_t{12} << 20;
#endif
  EXPECT_GE(MostOf(attempt, kEnough), kEnough);
}

TEST(HugeVector, GrowsAndShrinksAcrossTheLimit) {
  HugeVector<int> numbers;
  for (int i = 0; i < 600'000; ++i) numbers.push_back(i);
  numbers.resize(100);
  numbers.shrink_to_fit();
  for (int i = 0; i < 100; ++i) ASSERT_EQ(numbers[static_cast<size_t>(i)], i);
}

}  // namespace
}  // namespace hearth
