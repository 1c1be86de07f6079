// ./dev bench pages [GIB [THREADS]]: what a segment costs on each kind of memory: reserving and
// filling it, mapping it into a reader, the reader's first pass, and passes after that, which take
// expert-sized pieces in random order.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/base/thread_pool.h"
#include "common/experts/huge_tmpfs.h"
#include "common/experts/memory_room.h"
#include "common/experts/reservation.h"

namespace hearth {
namespace {

constexpr uint64_t kPiece = 1624064;  // an expert of the 80B model, about
constexpr int kRepetitions = 3;

double Seconds(const std::function<void()>& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

uint64_t Sum(std::span<const std::byte> bytes) {
  uint64_t sums[8] = {};
  for (size_t i = 0; i + 64 <= bytes.size(); i += 64) {
    uint64_t words[8];
    std::memcpy(words, bytes.data() + i, sizeof words);
    for (int j = 0; j < 8; ++j) sums[j] += words[j];
  }
  return std::accumulate(std::begin(sums), std::end(sums), uint64_t{0});
}

struct Times {
  double fill = 0, map = 0, first = 0, later = 0;
  uint64_t huge_bytes = 0;
};

double ReadPass(ThreadPool& pool, std::span<const std::byte> bytes) {
  std::vector<int> order(bytes.size() / kPiece);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(1));
  std::atomic<uint64_t> sum{0};
  return Seconds([&] {
    pool.ParallelFor(static_cast<int>(order.size()), [&](int i) {
      sum +=
          Sum(bytes.subspan(static_cast<uint64_t>(order[static_cast<size_t>(i)]) * kPiece, kPiece));
    });
  });
}

absl::StatusOr<Times> Measure(SegmentFile file, uint64_t bytes, bool populate, ThreadPool& pool) {
  file.bytes = bytes;
  Times times;
  absl::StatusOr<SharedMapping> writer = absl::UnknownError("");
  times.fill = Seconds([&] {
    writer = ReserveAndMap(file, {});
    if (!writer.ok()) return;
    pool.ParallelFor(static_cast<int>(bytes / kPiece), [&](int i) {
      const uint64_t at = static_cast<uint64_t>(i) * kPiece;
      std::memset(writer->writable_bytes().data() + at, i, kPiece);
    });
  });
  HEARTH_RETURN_IF_ERROR(writer.status());
  absl::StatusOr<SharedMapping> reader = absl::UnknownError("");
  absl::Status populated;
  times.map = Seconds([&] {
    reader = SharedMapping::Map(file, FileAccess::kRead);
    if (reader.ok() && populate) populated = reader->Populate();
  });
  HEARTH_RETURN_IF_ERROR(reader.status());
  HEARTH_RETURN_IF_ERROR(populated);
  times.first = ReadPass(pool, reader->bytes());
  times.later = ReadPass(pool, reader->bytes());
  times.huge_bytes = reader->HugeBytes();
  return times;
}

absl::StatusOr<UniqueFd> TemporaryFile(const std::filesystem::path& folder) {
  const std::string path = folder / absl::StrCat("hearth-bench-", ::getpid());
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  ::unlink(path.c_str());
  if (!fd.valid()) return absl::UnavailableError(absl::StrCat("no file in ", folder.string()));
  return fd;
}

absl::StatusOr<UniqueFd> OnOwnTmpfs() {
  HEARTH_ASSIGN_OR_RETURN(const UniqueFd folder, OpenHugeTmpfs());
  return TemporaryFile(FdFolder(folder.get()));
}

void Report(const char* name, uint64_t bytes, bool populate, ThreadPool& pool,
            const std::function<absl::StatusOr<UniqueFd>()>& make) {
  std::vector<Times> all;
  for (int i = 0; i < kRepetitions; ++i) {
    auto fd = make();
    if (!fd.ok())
      return (void)std::printf("| %s | %s |\n", name, std::string(fd.status().message()).c_str());
    auto file = CheckSegmentFd(*std::move(fd), name);
    auto times = file.ok() ? Measure(*std::move(file), bytes, populate, pool)
                           : absl::StatusOr<Times>(file.status());
    if (!times.ok())
      return (void)std::printf("| %s | %s |\n", name,
                               std::string(times.status().message()).c_str());
    all.push_back(*times);
  }
  const auto median = [&all](double Times::*field) {
    std::ranges::sort(all, {}, field);
    return all[all.size() / 2].*field;
  };
  const auto rate = [&](double Times::*field) {
    return static_cast<double>(bytes) / 1e9 / median(field);
  };
  std::printf("| %s | %.0f %% | %.1f | %.0f ms | %.1f | %.1f |\n", name,
              100.0 * static_cast<double>(all[0].huge_bytes) / static_cast<double>(bytes),
              rate(&Times::fill), 1e3 * median(&Times::map), rate(&Times::first),
              rate(&Times::later));
}

int Main(int argc, char** argv) {
  const double gib = argc > 1 ? std::atof(argv[1]) : 2;
  const int n_threads = argc > 2 ? std::atoi(argv[2]) : UsableCores();
  const auto bytes = static_cast<uint64_t>(std::max(gib, 0.01) * 512) * kHugePageBytes;
  ThreadPool pool({.n_threads = std::max(1, n_threads), .pin = true});
  std::printf("%.1f GiB, %d threads, median of %d; GB/s but for mapping\n\n", gib, n_threads,
              kRepetitions);
  std::printf("| memory | in huge pages | reserve and fill | map | first pass | later passes |\n");
  std::printf("| --- | --- | --- | --- | --- | --- |\n");
  const auto shm = [] { return TemporaryFile("/dev/shm"); };
  const auto memfd = []() -> absl::StatusOr<UniqueFd> {
    return UniqueFd(::memfd_create("hearth-bench", MFD_CLOEXEC));
  };
  Report("/dev/shm, not populated", bytes, false, pool, shm);
  Report("/dev/shm", bytes, true, pool, shm);
  Report("memfd", bytes, true, pool, memfd);
  Report("own tmpfs, not populated", bytes, false, pool, OnOwnTmpfs);
  Report("own tmpfs", bytes, true, pool, OnOwnTmpfs);
  if (PageBytesOf("/dev/hugepages") > 1) {
    Report("hugetlbfs", bytes, true, pool, [] { return TemporaryFile("/dev/hugepages"); });
  }
  return 0;
}

}  // namespace
}  // namespace hearth

int main(int argc, char** argv) { return hearth::Main(argc, argv); }
