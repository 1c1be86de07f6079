// Synthetic experts and segments for tests.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/experts/packing.h"
#include "common/experts/segment_writer.h"
#include "common/testing/status_matchers.h"

namespace hearth::testing {

// A linear with memory of its own and random contents.
struct FakeLinear {
  FakeLinear(WeightKind kind, int64_t out, int64_t in, uint32_t seed) {
    ref.kind = kind;
    ref.out = out;
    ref.in = in;
    const auto n = static_cast<size_t>(out * in);
    const size_t width = kind == WeightKind::kF32 ? 4 : 2;
    data.resize(kind == WeightKind::kBlock4 ? (n + 1) / 2 : n * width);
    std::mt19937 random(seed);
    for (auto& b : data) b = static_cast<std::byte>(random());
    ref.data = data.data();
    if (kind != WeightKind::kBlock4) return;
    for (size_t i = 0; i < 16; ++i) ref.levels[i] = -1.f + static_cast<float>(i) / 8;
    absmax.resize((n + 63) / 64);
    for (auto& a : absmax) a = static_cast<float>(random() % 1000) / 500;
    ref.absmax = absmax.data();
  }
  FakeLinear(FakeLinear&&) = default;  // vectors keep their memory when they move

  LinearRef ref;
  std::vector<std::byte> data;
  std::vector<float> absmax;
};

struct FakeExpert {
  explicit FakeExpert(uint32_t seed, int64_t f = 6, int64_t d = 20,
                      WeightKind kind = WeightKind::kBlock4)
      : gate(kind, f, d, 3 * seed), up(kind, f, d, 3 * seed + 1), down(kind, d, f, 3 * seed + 2) {}
  ExpertRef ref() const { return {gate.ref, up.ref, down.ref}; }
  FakeLinear gate, up, down;
};

inline void ExpectSameLinear(const LinearRef& got, const FakeLinear& want) {
  EXPECT_EQ(got.kind, want.ref.kind);
  EXPECT_EQ(got.out, want.ref.out);
  EXPECT_EQ(got.in, want.ref.in);
  EXPECT_EQ(std::memcmp(got.data, want.data.data(), want.data.size()), 0);
  if (want.ref.kind != WeightKind::kBlock4) return;
  EXPECT_EQ(got.levels, want.ref.levels);
  EXPECT_EQ(got.block_size, want.ref.block_size);
  EXPECT_EQ(std::vector<float>(got.absmax, got.absmax + want.absmax.size()), want.absmax);
}

inline void ExpectSameExpert(const ExpertRef& got, const FakeExpert& want) {
  ExpectSameLinear(got.gate, want.gate);
  ExpectSameLinear(got.up, want.up);
  ExpectSameLinear(got.down, want.down);
}

// Layer 1 of three has no experts, as a plain-MLP layer.
inline bool HasExperts(int layer) { return layer != 1; }
inline uint32_t SeedOf(int layer, int expert) {
  return static_cast<uint32_t>(layer * 100 + expert);
}

inline SegmentPlan TestPlan(const std::string& fingerprint = "0123abcd") {
  SegmentPlan plan{.fingerprint = fingerprint, .n_layers = 3, .n_experts = 4, .payload_bytes = {}};
  const uint64_t bytes = *PackedExpertBytes(FakeExpert(0).ref());
  for (int i = 0; i < 12; ++i) plan.payload_bytes.push_back(HasExperts(i / 4) ? bytes : 0);
  return plan;
}

inline void FillAll(SegmentWriter& writer) {
  for (int layer = 0; layer < 3; ++layer) {
    for (int e = 0; HasExperts(layer) && e < 4; ++e) {
      ASSERT_OK(writer.Write(layer, e, FakeExpert(SeedOf(layer, e)).ref()));
    }
  }
  ASSERT_OK(writer.MarkReady());
}

// A folder of this process, removed at the end.
class TempFolder {
 public:
  explicit TempFolder(const std::string& parent = "/tmp")
      : path_(absl::StrCat(parent, "/hearth-test-", ::getpid(), "-",
                           ::testing::UnitTest::GetInstance()->current_test_info()->name())) {
    std::filesystem::create_directories(path_);
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace hearth::testing
