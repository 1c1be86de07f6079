// What is done to a segment's bytes while nobody looks: each damage is refused or found, none is a
// crash.
#include <fcntl.h>

#include <fstream>
#include <set>

#include "common/experts/segment_file.h"
#include "common/experts/testing.h"

namespace hearth {
namespace {

namespace fs = std::filesystem;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using namespace hearth::testing;  // NOLINT: test helpers

class DamagedSegment : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(const auto writer, SegmentWriter::Create(path_, TestPlan()));
    FillAll(*writer);
    info_ = writer->info();
    entry_bytes_ = info_.n_entries() * sizeof(ExpertEntry);
  }

  // Runs `use` while bit `bit` of the file is flipped.
  template <typename Use>
  void WithFlippedBit(uint64_t bit, Use use) {
    Flip(bit);
    use();
    Flip(bit);
  }

  void Flip(uint64_t bit) {
    std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(bit / 8));
    const int byte = file.get() ^ (1 << (bit % 8));
    file.seekp(static_cast<std::streamoff>(bit / 8));
    file.put(static_cast<char>(byte));
  }

  // All experts that Verify calls damaged, as layer * 100 + expert.
  std::set<int> FindDamaged(const SegmentWriter& writer) {
    std::set<int> damaged;
    for (const int layer : {0, 2}) {
      for (int e = 0; e < 4; ++e) {
        if (!writer.Verify(layer, e).ok()) damaged.insert(layer * 100 + e);
      }
    }
    return damaged;
  }

  TempFolder folder_;
  const fs::path path_ = folder_ / "s";
  SegmentInfo info_;
  uint64_t entry_bytes_ = 0;
};

TEST_F(DamagedSegment, EveryBitOfTheHeaderMatters) {
  for (uint64_t bit = 0; bit < sizeof(SegmentHeader) * 8; ++bit) {
    WithFlippedBit(bit, [&] {
      ASSERT_FALSE(SegmentReader::Open(path_, "0123abcd").ok()) << "bit " << bit;
      ASSERT_FALSE(SegmentWriter::OpenExisting(path_).ok()) << "bit " << bit;
    });
  }
  EXPECT_OK(SegmentReader::Open(path_, "0123abcd"));
}

TEST_F(DamagedSegment, EveryBitOfTheTableMatters) {
  for (uint64_t bit = info_.table_offset * 8; bit < (info_.table_offset + entry_bytes_) * 8;
       ++bit) {
    WithFlippedBit(bit, [&] {
      ASSERT_THAT(SegmentReader::Open(path_, ""),
                  IsStatus(absl::StatusCode::kDataLoss, HasSubstr("layer ")))
          << "bit " << bit;
      ASSERT_FALSE(SegmentWriter::OpenExisting(path_).ok()) << "bit " << bit;
    });
  }
}

TEST_F(DamagedSegment, EveryFlippedBitOfAnExpertIsFoundByItsChecksum) {
  ASSERT_OK_AND_ASSIGN(const auto writer, SegmentWriter::OpenExisting(path_));
  ASSERT_TRUE(FindDamaged(*writer).empty());
  const uint64_t first = info_.payload_offset * 8;
  const uint64_t n_bits = writer->payload_bytes(0, 0) * 8;
  for (uint64_t i = 0; i < 1000; ++i) {
    WithFlippedBit(first + i * 7919 % n_bits,
                   [&] { ASSERT_EQ(FindDamaged(*writer), std::set<int>{0}) << i; });
  }
}

TEST_F(DamagedSegment, ZeroedPageAndSwappedExpertsAreFound) {
  ASSERT_OK_AND_ASSIGN(const auto writer, SegmentWriter::OpenExisting(path_));
  const uint64_t bytes = writer->payload_bytes(0, 0);
  std::string first(bytes, '\0'), second(bytes, '\0');
  std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
  const auto at = [&](uint64_t expert) {
    return static_cast<std::streamoff>(info_.payload_offset + expert * kExpertAlignment);
  };
  file.seekg(at(0)).read(first.data(), static_cast<std::streamsize>(bytes));
  file.seekg(at(1)).read(second.data(), static_cast<std::streamsize>(bytes));
  file.seekp(at(0)).write(second.data(), static_cast<std::streamsize>(bytes));
  file.seekp(at(1)).write(first.data(), static_cast<std::streamsize>(bytes));
  const std::string zeros(kExpertAlignment, '\0');
  file.seekp(at(5)).write(zeros.data(), static_cast<std::streamsize>(zeros.size()));
  file.flush();
  EXPECT_EQ(FindDamaged(*writer), (std::set<int>{0, 1, 201}));
}

TEST_F(DamagedSegment, ZeroedHeadersOfAReadyExpertAreRefusedByTheReader) {
  std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(static_cast<std::streamoff>(info_.payload_offset));
  const std::string zeros(sizeof(PackedExpert), '\0');
  file.write(zeros.data(), static_cast<std::streamsize>(zeros.size()));
  file.close();
  EXPECT_THAT(SegmentReader::Open(path_, ""),
              IsStatus(absl::StatusCode::kDataLoss, HasSubstr("layer 0 expert 0")));
}

TEST_F(DamagedSegment, TruncatedAndExtendedFilesAreRefused) {
  for (const uint64_t bytes : {uint64_t{0}, uint64_t{1}, uint64_t{sizeof(SegmentHeader) - 1},
                               uint64_t{sizeof(SegmentHeader)}, info_.total_bytes - 1,
                               info_.total_bytes + 1, info_.total_bytes * 2}) {
    const fs::path copy = folder_ / "copy";
    fs::copy_file(path_, copy, fs::copy_options::overwrite_existing);
    fs::resize_file(copy, bytes);
    EXPECT_THAT(SegmentReader::Open(copy, ""),
                IsStatus(absl::StatusCode::kDataLoss, HasSubstr("copy: segment is damaged")))
        << bytes;
    EXPECT_THAT(SegmentWriter::OpenExisting(copy),
                IsStatus(absl::StatusCode::kDataLoss, HasSubstr("copy: ")))
        << bytes;
  }
}

TEST_F(DamagedSegment, OtherLayoutVersionIsRefusedAndBothAreNamed) {
  std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(offsetof(SegmentHeader, layout_version)).put(9);
  file.close();
  EXPECT_THAT(SegmentReader::Open(path_, ""),
              IsStatus(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("layout version 9, this program needs 2")));
}

TEST_F(DamagedSegment, FileWithHolesIsNotAdopted) {
  const fs::path copy = folder_ / "sparse";
  {
    std::ifstream in(path_, std::ios::binary);
    std::string head(info_.payload_offset, '\0');
    in.read(head.data(), static_cast<std::streamsize>(head.size()));
    std::ofstream(copy, std::ios::binary) << head;
  }
  fs::permissions(copy, fs::perms::owner_read | fs::perms::owner_write);
  fs::resize_file(copy, info_.total_bytes);
  EXPECT_THAT(SegmentWriter::OpenExisting(copy),
              IsStatus(absl::StatusCode::kDataLoss, HasSubstr("has holes")));
}

}  // namespace
}  // namespace hearth
