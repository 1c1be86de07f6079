#include "cli/supervisor/console.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/json.h"
#include "common/base/status.h"

namespace hearth::cli {
namespace {

constexpr int kBarWidth = 30;

std::string UtcNow() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
  const time_t seconds = static_cast<time_t>(ms / 1000);
  struct tm utc {};
  ::gmtime_r(&seconds, &utc);
  char date[32];
  std::strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", &utc);
  return absl::StrFormat("%s.%03dZ", date, ms % 1000);
}

std::string MakeLine(std::string_view level, std::string_view service, std::string_view message,
                     std::initializer_list<LogField> fields) {
  json::object line;
  line["time"] = UtcNow();
  line["level"] = json::string_view(level.data(), level.size());
  line["service"] = json::string_view(service.data(), service.size());
  line["message"] = json::string_view(message.data(), message.size());
  for (const auto& [name, value] : fields) {
    line[json::string_view(name.data(), name.size())] = value;
  }
  return SerializeJson(line);
}

std::string_view Name(LogLevel level) {
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
  return "info";
}

// One write: lines of several threads do not mix.
void WriteTo(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = ::write(fd, text.data(), text.size());
    if (n <= 0) return;  // nobody reads our output: nothing to do about it
    text.remove_prefix(static_cast<size_t>(n));
  }
}

std::string Text(const json::object& line, std::string_view field) {
  const json::value* value = line.if_contains(json::string_view(field.data(), field.size()));
  if (value == nullptr || !value->is_string()) return "";
  const json::string& text = value->get_string();
  return std::string(text.data(), text.size());
}

absl::StatusOr<json::object> ParseLine(std::string_view line) {
  if (line.empty() || line.front() != '{') return absl::InvalidArgumentError("no JSON object");
  auto value = ParseJson(line);
  if (!value.ok()) return value.status();
  return std::move(value->as_object());
}

}  // namespace

std::deque<std::string> LineSplitter::Append(std::string_view bytes) {
  std::deque<std::string> lines;
  for (const char c : bytes) {
    if (c != '\n') pending_ += c;
    if (c == '\n' || pending_.size() >= kMaxLine) {
      lines.push_back(std::move(pending_));
      pending_.clear();
    }
  }
  return lines;
}

std::string LineSplitter::Rest() {
  std::string rest;
  std::swap(rest, pending_);
  return rest;
}

std::string LevelOf(std::string_view line) {
  const auto object = ParseLine(line);
  return object.ok() ? Text(*object, "level") : "";
}

std::string ForPeople(std::string_view line) {
  const auto object = ParseLine(line);
  if (!object.ok()) return std::string(line);
  const std::string time = Text(*object, "time");
  std::string text = time.size() >= 19 ? time.substr(11, 8) : "";
  absl::StrAppend(&text, " ", Text(*object, "service"), ": ", Text(*object, "message"));
  for (const auto& [name, value] : *object) {
    if (name == "time" || name == "level" || name == "service" || name == "message") continue;
    absl::StrAppend(&text, " ", std::string(name.data(), name.size()), "=", SerializeJson(value));
  }
  return text;
}

void Console::Forward(std::string_view service, std::string_view line) {
  if (line.empty()) return;
  if (ParseLine(line).ok()) return Print(line);
  Print(MakeLine("warning", service, line, {}));
}

void Console::Event(LogLevel level, std::string_view message,
                    std::initializer_list<LogField> fields) {
  Print(MakeLine(Name(level), "supervisor", message, fields));
}

void Console::Print(std::string_view json_line) {
  std::string text(json_line);
  if (style_ != Style::kJson) {
    const std::string level = LevelOf(json_line);
    if (style_ == Style::kPeople && (level == "info" || level == "debug")) return;
    text = ForPeople(json_line);
  }
  const std::lock_guard lock(mutex_);
  if (has_progress_) WriteTo(STDERR_FILENO, "\r\033[K");
  WriteTo(STDERR_FILENO, absl::StrCat(text, "\n", has_progress_ ? last_progress_ : ""));
}

void Console::Progress(double fraction, const std::string& text) {
  fraction = std::clamp(fraction, 0.0, 1.0);
  if (style_ == Style::kJson) {
    // A line for each tenth and each new text, not for each poll.
    const std::string key = absl::StrCat(static_cast<int>(fraction * 10), " ", text.substr(0, 24));
    {
      const std::lock_guard lock(mutex_);
      if (key == last_progress_) return;
      last_progress_ = key;
    }
    return Event(LogLevel::kInfo, "starting",
                 {{"percent", static_cast<int>(fraction * 100)}, {"state", text}});
  }
  const int done = static_cast<int>(fraction * kBarWidth);
  std::string bar = absl::StrFormat("\r\033[K[%s%s] %3.0f %% %s", std::string(done, '#'),
                                    std::string(kBarWidth - done, '.'), fraction * 100, text);
  const std::lock_guard lock(mutex_);
  if (bar == last_progress_) return;
  has_progress_ = true;
  last_progress_ = std::move(bar);
  WriteTo(STDERR_FILENO, last_progress_);
}

void Console::EndProgress() {
  const std::lock_guard lock(mutex_);
  if (has_progress_) WriteTo(STDERR_FILENO, "\r\033[K");
  has_progress_ = false;
  last_progress_.clear();
}

void Console::Announce(const std::string& text) {
  const std::lock_guard lock(mutex_);
  WriteTo(STDOUT_FILENO, text);
}

}  // namespace hearth::cli
