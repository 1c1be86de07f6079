#include "common/experts/segment.h"

#include <sys/stat.h>

#include <fstream>
#include <thread>

#include "common/experts/describe.h"
#include "common/experts/testing.h"

namespace hearth {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using namespace hearth::testing;  // NOLINT: test helpers

std::unique_ptr<SegmentWriter> Filled(const fs::path& path) {
  auto writer = SegmentWriter::Create(path, TestPlan());
  EXPECT_OK(writer);
  FillAll(**writer);
  return *std::move(writer);
}

TEST(Segment, ReaderSeesWhatTheWriterWrote) {
  const TempFolder folder;
  const auto writer = Filled(folder / "s");
  ASSERT_OK_AND_ASSIGN(const auto reader, SegmentReader::Open(folder / "s", "0123abcd"));
  for (const int layer : {0, 2}) {
    for (int e = 0; e < 4; ++e) {
      ASSERT_OK_AND_ASSIGN(const ExpertRef got, reader->Expert(layer, e));
      ExpectSameExpert(got, FakeExpert(SeedOf(layer, e)));
    }
  }
  EXPECT_EQ(reader->n_layers(), 3);
  EXPECT_EQ(reader->n_experts(), 4);
  EXPECT_EQ(reader->bytes(), fs::file_size(folder / "s"));
  EXPECT_EQ(reader->identity(), writer->identity());
}

TEST(Segment, OneOfAnotherModelOrVersionIsRefusedAndBothAreNamed) {
  const TempFolder folder;
  const auto writer = Filled(folder / "s");
  EXPECT_THAT(SegmentReader::Open(folder / "s", "ffff"),
              IsStatus(absl::StatusCode::kFailedPrecondition,
                       ::testing::AllOf(HasSubstr("0123abcd"), HasSubstr("ffff"))));
}

TEST(Segment, LookupsOutsideAreNotFound) {
  const TempFolder folder;
  const auto writer = Filled(folder / "s");
  ASSERT_OK_AND_ASSIGN(const auto reader, SegmentReader::Open(folder / "s", ""));
  for (const auto& [layer, expert] :
       std::vector<std::pair<int, int>>{{-1, 0}, {3, 0}, {0, -1}, {0, 4}, {1, 0}}) {
    EXPECT_THAT(reader->Expert(layer, expert),
                IsStatus(absl::StatusCode::kNotFound, HasSubstr("")));
  }
}

TEST(Segment, HalfFilledOneCannotBeAttached) {
  const TempFolder folder;
  ASSERT_OK_AND_ASSIGN(const auto writer, SegmentWriter::Create(folder / "s", TestPlan()));
  EXPECT_THAT(SegmentReader::Open(folder / "s", ""),
              IsStatus(absl::StatusCode::kUnavailable, HasSubstr("still being filled")));
  ASSERT_OK(writer->Write(0, 0, FakeExpert(SeedOf(0, 0)).ref()));
  EXPECT_THAT(SegmentReader::Open(folder / "s", ""),
              IsStatus(absl::StatusCode::kUnavailable, HasSubstr("still being filled")));
  EXPECT_THAT(writer->MarkReady(),
              IsStatus(absl::StatusCode::kFailedPrecondition, HasSubstr("7 experts")));
  FillAll(*writer);
  EXPECT_OK(SegmentReader::Open(folder / "s", ""));
}

TEST(Segment, QuarantinedExpertIsUnavailableUntilItIsWrittenAgain) {
  const TempFolder folder;
  const auto writer = Filled(folder / "s");
  ASSERT_OK_AND_ASSIGN(const auto before, SegmentReader::Open(folder / "s", ""));
  writer->Quarantine(2, 3);
  ASSERT_OK_AND_ASSIGN(const auto during, SegmentReader::Open(folder / "s", ""));
  for (const auto& reader : {before.get(), during.get()}) {
    EXPECT_THAT(reader->Expert(2, 3), IsStatus(absl::StatusCode::kUnavailable, HasSubstr("")));
    EXPECT_OK(reader->Expert(2, 2));
  }
  ASSERT_OK(writer->Write(2, 3, FakeExpert(SeedOf(2, 3)).ref()));
  for (const auto& reader : {before.get(), during.get()}) {
    ASSERT_OK_AND_ASSIGN(const ExpertRef got, reader->Expert(2, 3));
    ExpectSameExpert(got, FakeExpert(SeedOf(2, 3)));
  }
}

TEST(Segment, ReloadFromAChangedCheckpointIsNotPublished) {
  const TempFolder folder;
  const auto writer = Filled(folder / "s");
  writer->Quarantine(0, 1);
  EXPECT_THAT(writer->Write(0, 1, FakeExpert(777).ref()),
              IsStatus(absl::StatusCode::kDataLoss, HasSubstr("was it changed")));
  EXPECT_EQ(writer->state(0, 1), kExpertDamaged);
}

TEST(Segment, LinksFifosFoldersAndFilesThatOthersCanWriteAreRefused) {
  const TempFolder folder;
  const auto writer = Filled(folder / "s");
  fs::create_symlink(folder / "s", folder / "link");
  EXPECT_THAT(SegmentReader::Open(folder / "link", ""),
              IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("symbolic link")));
  ASSERT_EQ(::mkfifo((folder / "fifo").c_str(), 0600), 0);
  EXPECT_THAT(SegmentReader::Open(folder / "fifo", ""),
              IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("not a regular file")));
  EXPECT_FALSE(SegmentReader::Open(folder.path(), "").ok());
  EXPECT_THAT(SegmentReader::Open(folder / "none", ""),
              IsStatus(absl::StatusCode::kNotFound, HasSubstr("none")));
  ASSERT_EQ(::chmod((folder / "s").c_str(), 0622), 0);
  EXPECT_THAT(SegmentReader::Open(folder / "s", ""),
              IsStatus(absl::StatusCode::kPermissionDenied, HasSubstr("0622")));
}

TEST(Segment, FileOfAnotherUserIsRefused) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to give a file away";
  const TempFolder folder;
  Filled(folder / "s");
  ASSERT_EQ(::chown((folder / "s").c_str(), 12345, -1), 0);
  EXPECT_THAT(SegmentReader::Open(folder / "s", ""),
              IsStatus(absl::StatusCode::kPermissionDenied, HasSubstr("belongs to user 12345")));
  EXPECT_THAT(SegmentWriter::Create(folder / "s", TestPlan()),
              IsStatus(absl::StatusCode::kPermissionDenied, HasSubstr("belongs to user 12345")));
}

TEST(Segment, CreateReplacesALinkWithoutTouchingItsTarget) {
  const TempFolder folder;
  { std::ofstream(folder / "precious") << "keep me"; }
  fs::create_symlink(folder / "precious", folder / "s");
  fs::create_symlink(folder / "precious", folder / "s.new");
  Filled(folder / "s");
  EXPECT_TRUE(fs::is_regular_file(fs::symlink_status(folder / "s")));
  EXPECT_EQ(fs::file_size(folder / "precious"), 7u);
  EXPECT_FALSE(fs::exists(folder / "s.new"));
}

TEST(Segment, FileIsForItsUserOnly) {
  const TempFolder folder;
  Filled(folder / "s");
  struct stat info {};
  ASSERT_EQ(::stat((folder / "s").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600u);
}

TEST(Segment, InMemoryOneReadsBackAndCannotShrink) {
  ASSERT_OK_AND_ASSIGN(const auto writer, SegmentWriter::CreateInMemory(TestPlan()));
  FillAll(*writer);
  ASSERT_OK_AND_ASSIGN(const auto reader, writer->OpenReader());
  ASSERT_OK_AND_ASSIGN(const ExpertRef got, reader->Expert(0, 2));
  ExpectSameExpert(got, FakeExpert(SeedOf(0, 2)));
}

TEST(Segment, ModelWithoutExpertsHasAnEmptyTable) {
  const SegmentPlan plan{.fingerprint = "a", .n_layers = 2, .n_experts = 0, .payload_bytes = {}};
  ASSERT_OK_AND_ASSIGN(const auto writer, SegmentWriter::CreateInMemory(plan));
  ASSERT_OK(writer->MarkReady());
  ASSERT_OK_AND_ASSIGN(const auto reader, writer->OpenReader());
  EXPECT_THAT(reader->Expert(0, 0), IsStatus(absl::StatusCode::kNotFound, HasSubstr("")));
}

TEST(Segment, ThreadsFillAndReadAtTheSameTime) {
  ASSERT_OK_AND_ASSIGN(const auto writer, SegmentWriter::CreateInMemory(TestPlan()));
  FillAll(*writer);
  ASSERT_OK_AND_ASSIGN(const auto reader, writer->OpenReader());
  writer->Quarantine(0, 0);
  std::thread reload([&] { EXPECT_OK(writer->Write(0, 0, FakeExpert(SeedOf(0, 0)).ref())); });
  absl::StatusOr<ExpertRef> got = reader->Expert(0, 0);
  while (absl::IsUnavailable(got.status())) got = reader->Expert(0, 0);
  ASSERT_OK(got);
  ExpectSameExpert(*got, FakeExpert(SeedOf(0, 0)));
  reload.join();
}

TEST(Segment, DescriptionNamesStatesAndShapes) {
  const TempFolder folder;
  const auto writer = Filled(folder / "s");
  writer->Quarantine(2, 1);
  ASSERT_OK_AND_ASSIGN(const auto reader, SegmentReader::Open(folder / "s", ""));
  const json::object text = DescribeSegment(*reader, {.checksums = true});
  EXPECT_EQ(text.at("state"), "ready");
  EXPECT_EQ(text.at("experts"), 8);
  EXPECT_EQ(text.at("experts_damaged"), 1);
  EXPECT_EQ(text.at("states").at("ready"), 7);
  const json::value& layer = text.at("layers").at(2);
  EXPECT_EQ(layer.at("down_proj").at("out"), 20);
  EXPECT_EQ(layer.at("experts").at(0).at("expert"), 1);
  ASSERT_OK_AND_ASSIGN(const auto of_file, DescribeSegmentFile(folder / "s", {.checksums = true}));
  EXPECT_EQ(of_file, text);
}

}  // namespace
}  // namespace hearth
