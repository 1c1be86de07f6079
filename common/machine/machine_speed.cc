#include "common/machine/machine_speed.h"

#include <sys/mman.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <latch>
#include <span>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "common/experts/memory_room.h"
#include "common/machine/machine_info.h"
#include "common/machine/peak_loops.h"

namespace hearth {
namespace {

using Clock = std::chrono::steady_clock;

// Sum over the threads of units a second. They begin together, and each counts its own time.
double RunThreads(int n_threads, std::chrono::nanoseconds time,
                  const std::function<uint64_t(int thread)>& work) {
  std::vector<double> rates(static_cast<size_t>(n_threads));
  std::latch start(n_threads);
  const auto body = [&](int thread) {
    start.arrive_and_wait();
    const auto begin = Clock::now();
    auto now = begin;
    uint64_t units = 0;
    while (now - begin < time) {
      units += work(thread);
      now = Clock::now();
    }
    rates[static_cast<size_t>(thread)] =
        static_cast<double>(units) / std::chrono::duration<double>(now - begin).count();
  };
  std::vector<std::jthread> threads;
  threads.reserve(static_cast<size_t>(n_threads));
  for (int i = 1; i < n_threads; ++i) threads.emplace_back(body, i);
  body(0);
  threads.clear();
  double sum = 0;
  for (const double rate : rates) sum += rate;
  return sum;
}

Spread Repeat(int n_threads, const SpeedOptions& options,
              const std::function<uint64_t(int thread)>& work) {
  std::vector<double> rates;
  rates.reserve(static_cast<size_t>(options.repetitions));
  RunThreads(n_threads, options.time / 4, work);  // warm-up: clock rates, page tables
  for (int i = 0; i < options.repetitions; ++i) {
    rates.push_back(RunThreads(n_threads, options.time, work));
  }
  return Summarise(rates);
}

// Anonymous memory, populated.
class Buffer {
 public:
  static absl::StatusOr<std::unique_ptr<Buffer>> Make(uint64_t bytes) {
    const auto room = MachineRoom();
    if (room && room->bytes < bytes + bytes / 4) {
      return absl::ResourceExhaustedError(absl::StrCat("measuring memory needs ", bytes >> 20,
                                                       " MiB, but ", room->limited_by, " is ",
                                                       room->bytes >> 20, " MiB"));
    }
    void* data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return ErrnoStatus(errno, absl::StrCat("map ", bytes, " bytes"));
    ::madvise(data, bytes, MADV_HUGEPAGE);  // advice only
    std::memset(data, 1, bytes);
    return std::unique_ptr<Buffer>(new Buffer(static_cast<std::byte*>(data), bytes));
  }
  ~Buffer() { ::munmap(data_, bytes_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::span<const std::byte> Part(int index, int n) const {
    const uint64_t size = bytes_ / static_cast<uint64_t>(n) / 4096 * 4096;
    return {data_ + size * static_cast<uint64_t>(index), size};
  }

 private:
  Buffer(std::byte* data, uint64_t bytes) : data_(data), bytes_(bytes) {}
  std::byte* data_;
  uint64_t bytes_;
};

Spread ReadAll(const Buffer& buffer, int n_threads, const SpeedOptions& options) {
  std::atomic<uint64_t> sink{0};
  return Repeat(n_threads, options, [&](int thread) {
    const auto part = buffer.Part(thread, n_threads);
    sink.fetch_xor(ReadOnce(part), std::memory_order_relaxed);
    return part.size();
  });
}

}  // namespace

absl::StatusOr<Spread> MeasureReadBandwidth(int n_threads, const SpeedOptions& options) {
  HEARTH_ASSIGN_OR_RETURN(const auto buffer, Buffer::Make(options.buffer_bytes));
  return ReadAll(*buffer, n_threads, options);
}

std::vector<ComputeRate> MeasureComputeRates(int n_threads, const SpeedOptions& options) {
  const CpuFeatures& cpu = ThisCpu();
  struct Loop {
    bool has;
    const char* name;
    const char* instruction;
    uint64_t (*run)();
  };
  const Loop loops[] = {
      {cpu.avx512, "float32_fma", "vfmadd on 64 bytes", Float32FmaAvx512},
      {cpu.avx2 && !cpu.avx512, "float32_fma", "vfmadd on 32 bytes", Float32FmaAvx2},
      {cpu.avx512_vnni, "int8_vnni", "vpdpbusd on 64 bytes", Int8VnniAvx512},
      {cpu.avx_vnni && !cpu.avx512_vnni, "int8_vnni", "vpdpbusd on 32 bytes", Int8VnniAvx2},
      {cpu.avx2, "int8_madd", "vpmaddubsw, vpmaddwd, vpaddd on 32 bytes", Int8MaddAvx2},
      {cpu.amx_int8, "int8_amx", "tdpbssd on 16 x 64 bytes", Int8Amx},
  };
  std::vector<ComputeRate> rates;
  for (const Loop& loop : loops) {
    if (!loop.has) continue;
    const Spread spread = Repeat(n_threads, options, [&loop](int) { return loop.run(); });
    rates.push_back({loop.name, loop.instruction, n_threads, spread});
  }
  return rates;
}

std::vector<int> ThreadCounts(int n) {
  std::vector<int> counts;
  for (int i = 1; i < n; i *= 2) counts.push_back(i);
  counts.push_back(n);
  return counts;
}

absl::StatusOr<MachineSpeed> MeasureMachine(int n_threads, const SpeedOptions& options) {
  MachineSpeed speed;
  HEARTH_ASSIGN_OR_RETURN(const auto buffer, Buffer::Make(options.buffer_bytes));
  for (const int n : ThreadCounts(n_threads)) {
    speed.readings.push_back({n, ReadAll(*buffer, n, options)});
  }
  for (const int n : n_threads == 1 ? std::vector<int>{1} : std::vector<int>{1, n_threads}) {
    for (ComputeRate& rate : MeasureComputeRates(n, options)) speed.rates.push_back(rate);
  }
  return speed;
}

json::object ToJson(const MachineSpeed& speed) {
  json::array readings, rates;
  for (const auto& reading : speed.readings) {
    readings.push_back(json::object{{"threads", reading.threads},
                                    {"bytes_per_second", ToJson(reading.bytes_per_second)}});
  }
  for (const ComputeRate& rate : speed.rates) {
    rates.push_back(json::object{{"name", rate.name},
                                 {"instruction", rate.instruction},
                                 {"threads", rate.threads},
                                 {"operations_per_second", ToJson(rate.operations_per_second)}});
  }
  return {{"read_bandwidth", readings}, {"compute", rates}};
}

std::string ToText(const MachineSpeed& speed) {
  std::string text =
      absl::StrFormat("%-34s %8s %10s %10s %10s\n", "", "threads", "median", "min", "max");
  for (const auto& reading : speed.readings) {
    const Spread& s = reading.bytes_per_second;
    absl::StrAppendFormat(&text, "%-34s %8d %10.1f %10.1f %10.1f\n", "reading memory, GB/s",
                          reading.threads, s.median / 1e9, s.min / 1e9, s.max / 1e9);
  }
  for (const ComputeRate& rate : speed.rates) {
    const Spread& s = rate.operations_per_second;
    absl::StrAppendFormat(&text, "%-34s %8d %10.0f %10.0f %10.0f\n", rate.name + ", G operations/s",
                          rate.threads, s.median / 1e9, s.min / 1e9, s.max / 1e9);
  }
  return text;
}

}  // namespace hearth
