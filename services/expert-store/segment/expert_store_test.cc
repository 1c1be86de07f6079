// The store without gRPC: adoption, resumption, replacement, repair, failure.
#include "services/expert-store/segment/expert_store.h"

#include <sys/stat.h>

#include <condition_variable>
#include <fstream>

#include "services/expert-store/loading/fake_checkpoint.h"

namespace hearth::store {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using namespace hearth::testing;  // NOLINT: test helpers
using std::chrono::steady_clock;

constexpr auto kDeadline = std::chrono::seconds(20);

// A store over a FakeCheckpoint, with the result of its loading as something to wait for.
class TestStore {
 public:
  TestStore(StoreOptions options, std::function<void(FakeCheckpoint&)> prepare = nullptr,
            const std::string& fingerprint = "0123abcd")
      : store_(
            std::move(options),
            [prepare, fingerprint]() -> absl::StatusOr<std::unique_ptr<Checkpoint>> {
              auto checkpoint = std::make_unique<FakeCheckpoint>(fingerprint);
              if (prepare) prepare(*checkpoint);
              return checkpoint;
            },
            [this](const absl::Status& status) {
              const std::lock_guard lock(mutex_);
              loaded_ = status;
              changed_.notify_all();
            }) {
    store_.Start();
  }

  absl::Status WaitLoaded() {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, kDeadline, [&] { return loaded_.has_value(); })) {
      return absl::DeadlineExceededError("not loaded in time");
    }
    return *loaded_;
  }
  ExpertStore* operator->() { return &store_; }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<absl::Status> loaded_;
  ExpertStore store_;
};

// Polls, because no event exists for what another thread counts.
bool Eventually(const std::function<bool()>& condition) {
  const auto deadline = steady_clock::now() + kDeadline;
  while (!condition()) {
    if (steady_clock::now() > deadline) return false;
    std::this_thread::yield();
  }
  return true;
}

class ExpertStoreTest : public ::testing::Test {
 protected:
  StoreOptions Options() {
    StoreOptions options;
    options.segment_path = folder_ / "segment";
    options.profile_path = folder_ / "profile.json";
    options.n_threads = 2;
    return options;
  }
  uint64_t Inode() {
    struct stat info {};
    return ::stat((folder_ / "segment").c_str(), &info) == 0 ? info.st_ino : 0;
  }
  void FlipByte(uint64_t offset) {
    std::fstream file(folder_ / "segment", std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(offset));
    const int byte = file.get() ^ 0x10;
    file.seekp(static_cast<std::streamoff>(offset)).put(static_cast<char>(byte));
  }
  void ExpectWhole() {
    ASSERT_OK_AND_ASSIGN(const auto reader, SegmentReader::Open(folder_ / "segment", "0123abcd"));
    for (const int layer : {0, 2}) {
      for (int e = 0; e < 4; ++e) {
        ASSERT_OK_AND_ASSIGN(const ExpertRef got, reader->Expert(layer, e));
        ExpectSameExpert(got, FakeExpert(SeedOf(layer, e)));
      }
    }
  }
  TempFolder folder_;
};

TEST_F(ExpertStoreTest, LoadsThenIsAdoptedByTheNextProcess) {
  {
    TestStore store(Options());
    ASSERT_OK(store.WaitLoaded());
    const StoreStatus status = store->status();
    EXPECT_EQ(status.phase, StorePhase::kReady);
    EXPECT_FALSE(status.is_adopted);
    EXPECT_EQ(status.progress.experts_done, 8u);
    EXPECT_EQ(status.states.ready, 8u);
  }
  ExpectWhole();
  const uint64_t inode = Inode();
  int n_reads = -1;
  TestStore store(Options(), [&](FakeCheckpoint& c) {
    c.before_read = [&](int, int) { ++n_reads; };
    n_reads = 0;
  });
  ASSERT_OK(store.WaitLoaded());
  EXPECT_TRUE(store->status().is_adopted);
  EXPECT_EQ(n_reads, 0);
  EXPECT_EQ(Inode(), inode);
  EXPECT_TRUE(Eventually([&] { return store->status().n_verified == 16; }));  // sample, then a pass
}

TEST_F(ExpertStoreTest, HalfFilledSegmentIsResumedInPlace) {
  {
    TestStore store(Options());
    ASSERT_OK(store.WaitLoaded());
  }
  const uint64_t inode = Inode();
  {
    ASSERT_OK_AND_ASSIGN(const auto writer, SegmentWriter::OpenExisting(folder_ / "segment"));
    writer->MarkLoading();
    writer->Quarantine(0, 1);
    writer->Quarantine(2, 3);
  }
  std::atomic<int> n_reads = 0;
  TestStore store(Options(),
                  [&](FakeCheckpoint& c) { c.before_read = [&](int, int) { ++n_reads; }; });
  ASSERT_OK(store.WaitLoaded());
  EXPECT_FALSE(store->status().is_adopted);
  EXPECT_EQ(n_reads, 6);  // three linears of two experts
  EXPECT_EQ(Inode(), inode);
  ExpectWhole();
}

TEST_F(ExpertStoreTest, DamagedExpertIsFoundBeforeReadyWhereTheSampleSeesIt) {
  uint64_t payload = 0;
  {
    TestStore store(Options());
    ASSERT_OK(store.WaitLoaded());
    payload = SegmentWriter::OpenExisting(folder_ / "segment").value()->info().payload_offset;
  }
  FlipByte(payload + 700);  // all eight experts are in a sample of 64
  TestStore store(Options());
  ASSERT_OK(store.WaitLoaded());
  EXPECT_EQ(store->status().n_checksum_failures, 1u);
  ExpectWhole();
}

TEST_F(ExpertStoreTest, DamageWhileServingIsQuarantinedAndReloaded) {
  StoreOptions options = Options();
  options.verify_interval = std::chrono::milliseconds(1);
  TestStore store(options);
  ASSERT_OK(store.WaitLoaded());
  ASSERT_OK_AND_ASSIGN(const auto reader, SegmentReader::Open(options.segment_path, ""));
  FlipByte(reader->info().payload_offset + 5 * kExpertAlignment + 700);
  EXPECT_TRUE(Eventually([&] { return store->status().n_checksum_failures == 1; }));
  EXPECT_TRUE(Eventually([&] { return store->status().n_quarantined == 0; }));
  ExpectWhole();
}

TEST_F(ExpertStoreTest, ExpertThatCannotBeReloadedStaysUnavailable) {
  StoreOptions options = Options();
  options.verify_interval = std::chrono::milliseconds(1);
  std::atomic<bool> is_gone = false;
  TestStore store(options, [&](FakeCheckpoint& c) {
    c.before_read = [&is_gone, &c](int, int) {
      if (is_gone) c.seed_offset = 50;  // the file was changed under us
    };
  });
  ASSERT_OK(store.WaitLoaded());
  is_gone = true;
  ASSERT_OK_AND_ASSIGN(const auto reader, SegmentReader::Open(options.segment_path, ""));
  FlipByte(reader->info().payload_offset + 700);
  EXPECT_TRUE(Eventually([&] { return store->status().n_quarantined == 1; }));
  EXPECT_TRUE(Eventually([&] { return absl::IsUnavailable(reader->Expert(0, 0).status()); }));
  EXPECT_OK(reader->Expert(0, 1));
}

TEST_F(ExpertStoreTest, OtherCheckpointsSegmentIsReplaced) {
  {
    TestStore store(Options());
    ASSERT_OK(store.WaitLoaded());
  }
  TestStore store(Options(), nullptr, "ffff");
  ASSERT_OK(store.WaitLoaded());
  EXPECT_FALSE(store->status().is_adopted);
  EXPECT_OK(SegmentReader::Open(folder_ / "segment", "ffff"));
}

// What an older store left, which knew nothing of the head's experts.
TEST_F(ExpertStoreTest, SegmentWithoutTheMtpHeadsExpertsIsReplaced) {
  {
    TestStore store(Options());
    ASSERT_OK(store.WaitLoaded());
  }
  for (const bool is_adopted : {false, true}) {
    TestStore store(Options(), [](FakeCheckpoint& c) { c.with_mtp = true; });
    ASSERT_OK(store.WaitLoaded());
    EXPECT_EQ(store->status().is_adopted, is_adopted);
    EXPECT_EQ(store->status().n_layers, 4);
    EXPECT_EQ(store->status().states.ready, 12u);
    EXPECT_OK(store->profile().Add(std::vector<UseCount>{{.layer = 3, .expert = 1, .count = 1}}));
  }
  ExpectWhole();
}

TEST_F(ExpertStoreTest, WhateverLiesInTheSegmentsPlaceIsReplacedNotFollowed) {
  std::ofstream(folder_ / "precious") << "keep me";
  const auto put = std::vector<std::function<void(const fs::path&)>>{
      [&](const fs::path& p) { fs::create_symlink(folder_ / "precious", p); },
      [&](const fs::path& p) { ASSERT_EQ(::mkfifo(p.c_str(), 0600), 0); },
      [&](const fs::path& p) { std::ofstream(p) << "not a segment"; },
      [&](const fs::path& p) { std::ofstream(p) << ""; },
      [&](const fs::path& p) {
        fs::copy_file(folder_ / "precious", p);
        fs::resize_file(p, 8192);
      },
  };
  for (const auto& make : put) {
    fs::remove(folder_ / "segment");
    make(folder_ / "segment");
    TestStore store(Options());
    ASSERT_OK(store.WaitLoaded());
    ExpectWhole();
  }
  EXPECT_EQ(fs::file_size(folder_ / "precious"), 7u);
  fs::remove(folder_ / "segment");
  fs::create_directory(folder_ / "segment");
  TestStore store(Options());
  EXPECT_THAT(store.WaitLoaded(),
              IsStatus(absl::StatusCode::kFailedPrecondition, HasSubstr("a folder")));
}

TEST_F(ExpertStoreTest, BadCheckpointFailsWithItsTensorAndLeavesNoSegment) {
  TestStore store(Options(), [](FakeCheckpoint& c) {
    c.bad_module = "model.layers.2.mlp.experts.3.down_proj";
  });
  EXPECT_THAT(store.WaitLoaded(), IsStatus(absl::StatusCode::kDataLoss, HasSubstr("experts.3")));
  EXPECT_EQ(store->status().phase, StorePhase::kFailed);
  EXPECT_THAT(store->status().message, HasSubstr("experts.3.down_proj"));
  EXPECT_FALSE(fs::exists(folder_ / "segment"));
}

TEST_F(ExpertStoreTest, StopWhileLoadingEndsAtOnceAndTheRestIsLoadedLater) {
  StoreOptions options = Options();
  options.load_bytes_per_second = 1;  // hours
  const auto start = steady_clock::now();
  {
    TestStore store(options);
    ASSERT_TRUE(Eventually([&] { return store->status().states.ready > 0; }));
    EXPECT_EQ(store->status().phase, StorePhase::kLoading);
    store->Stop();
  }
  EXPECT_LT(steady_clock::now() - start, std::chrono::seconds(5));
  EXPECT_THAT(SegmentReader::Open(options.segment_path, ""),
              IsStatus(absl::StatusCode::kUnavailable, HasSubstr("still being filled")));
  TestStore store(Options());
  ASSERT_OK(store.WaitLoaded());
  ExpectWhole();
}

TEST_F(ExpertStoreTest, SegmentIsRemovedOnStopWhereAskedFor) {
  StoreOptions options = Options();
  options.remove_segment_on_stop = true;
  {
    TestStore store(options);
    ASSERT_OK(store.WaitLoaded());
  }
  EXPECT_FALSE(fs::exists(options.segment_path));
}

}  // namespace
}  // namespace hearth::store
