#include "common/metrics/process_metrics.h"

#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace hearth {
namespace {

uint64_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  uint64_t total_pages = 0, resident_pages = 0;
  file >> total_pages >> resident_pages;
  return resident_pages * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

uint64_t OpenDescriptors() {
  std::error_code error;
  uint64_t n = 0;
  for (std::filesystem::directory_iterator it("/proc/self/fd", error), end; !error && it != end;
       it.increment(error)) {
    ++n;
  }
  return n > 0 ? n - 1 : 0;  // without the one that lists them
}

double CpuSeconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double StartSeconds() {
  static const double start =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  return start;
}
[[maybe_unused]] const double start_seconds_at_load = StartSeconds();

void Append(std::string& text, const char* name, const char* type, const char* help, double value) {
  absl::StrAppendFormat(&text, "# HELP %s %s\n# TYPE %s %s\n%s %.17g\n", name, help, name, type,
                        name, value);
}

}  // namespace

std::string RenderProcessMetrics() {
  std::string text;
  Append(text, "process_resident_memory_bytes", "gauge", "Resident memory.",
         static_cast<double>(ResidentBytes()));
  Append(text, "process_open_fds", "gauge", "Open file descriptors.",
         static_cast<double>(OpenDescriptors()));
  Append(text, "process_cpu_seconds_total", "counter", "User and system CPU time.", CpuSeconds());
  Append(text, "process_start_time_seconds", "gauge", "Start of the process since the epoch.",
         StartSeconds());
  return text;
}

}  // namespace hearth
