#include "common/testing/compare.h"

#include <limits>
#include <vector>

namespace hearth::testing {
namespace {

TEST(AllClose, RejectsWhatSloppyChecksLetThrough) {
  using V = std::vector<float>;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  const Tolerance tolerance{.abs = 1e-3, .rel = 0};
  EXPECT_TRUE(AllClose(V{1.f, -2.f}, V{1.f, -2.f}, tolerance));
  EXPECT_FALSE(AllClose(V{nan}, V{1.f}, tolerance));
  EXPECT_FALSE(AllClose(V{1.f}, V{nan}, tolerance));
  EXPECT_FALSE(AllClose(V{infinity}, V{1.f}, tolerance));
  EXPECT_FALSE(AllClose(V{-100.f}, V{-5.f}, tolerance));
  EXPECT_FALSE(AllClose(V{}, V{}, tolerance));
  EXPECT_FALSE(AllClose(V{1.f}, V{1.f, 2.f}, tolerance));
}

}  // namespace
}  // namespace hearth::testing
