// What the supervisor shows: the children's log lines merged with its own, and one line of progress
// on a terminal. Used by the supervisor's threads.
#pragma once

#include <cstdio>
#include <deque>
#include <initializer_list>
#include <mutex>
#include <string>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "common/base/logging.h"

namespace hearth::cli {

// Cuts a byte stream into lines. A line longer than the limit is cut into several.
class LineSplitter {
 public:
  static constexpr size_t kMaxLine = 16 << 10;

  // The lines that `bytes` complete, without their ends.
  std::deque<std::string> Append(std::string_view bytes);
  // What came after the last line end.
  std::string Rest();

 private:
  std::string pending_;
};

// A JSON log line as a person reads it ("12:00:01 gpu-worker: attached segment_bytes=5"); other
// text is returned as it is.
std::string ForPeople(std::string_view line);

// A JSON log line's level ("warning"), or empty.
std::string LevelOf(std::string_view line);

// Thread-safe.
class Console {
 public:
  enum class Style {
    kJson,      // every line, as JSON, for machines
    kPeople,    // warnings and errors, readable, besides the progress line
    kPeopleAll  // everything, readable
  };
  explicit Console(Style style) : style_(style) {}

  // A line of a child: JSON is kept, anything else is wrapped into JSON.
  void Forward(std::string_view service, std::string_view line);
  // A line of the supervisor itself.
  void Event(LogLevel level, std::string_view message, std::initializer_list<LogField> fields = {});
  // Replaces the progress line (on a terminal) or logs it when it changed by a whole step.
  void Progress(double fraction, const std::string& text);
  void EndProgress();
  // For people, on standard output.
  void Announce(const std::string& text);

 private:
  void Print(std::string_view json_line) ABSL_LOCKS_EXCLUDED(mutex_);

  const Style style_;
  std::mutex mutex_;
  bool has_progress_ ABSL_GUARDED_BY(mutex_) = false;
  std::string last_progress_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace hearth::cli
