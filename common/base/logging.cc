#include "common/base/logging.h"

#include <unistd.h>

#include <atomic>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <chrono>
#include <cstdio>
#include <string>

#include "absl/strings/str_format.h"

namespace hearth {
namespace {

std::atomic<LogLevel> least_level{LogLevel::kInfo};

std::string& ServiceName() {
  static std::string name = "hearth";
  return name;
}

std::string UtcNow() {
  const auto now = std::chrono::system_clock::now();
  const auto ms =
      std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count();
  const time_t seconds = static_cast<time_t>(ms / 1000);
  struct tm utc {};
  ::gmtime_r(&seconds, &utc);
  char date[32];
  std::strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", &utc);
  return absl::StrFormat("%s.%03dZ", date, ms % 1000);
}

const char* LevelName(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kError:
      return "error";
  }
  return "unknown";
}

}  // namespace

void SetLogService(std::string_view service) { ServiceName() = std::string(service); }
void SetLogLevel(LogLevel least) { least_level = least; }

void Log(LogLevel level, std::string_view message, std::initializer_list<LogField> fields) {
  if (level < least_level.load(std::memory_order_relaxed)) return;
  boost::json::object line;
  line["time"] = UtcNow();
  line["level"] = LevelName(level);
  line["service"] = ServiceName();
  line["message"] = boost::json::string_view(message.data(), message.size());
  for (const auto& [key, value] : fields) {
    line[boost::json::string_view(key.data(), key.size())] = value;
  }
  std::string text = boost::json::serialize(line);
  text += '\n';
  // One write: lines of several threads and processes do not mix.
  [[maybe_unused]] const ssize_t ignored = ::write(STDERR_FILENO, text.data(), text.size());
}

}  // namespace hearth
