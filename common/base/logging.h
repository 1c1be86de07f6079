// Structured logs of the services: one JSON object a line on standard error. Libraries do not log; they return errors.
//
//   LogInfo("attached", {{"segment_bytes", bytes}, {"request_id", id}});
//
// Thread-safe. Never logs prompts or generated text.
#pragma once

#include <boost/json/value.hpp>
#include <initializer_list>
#include <string_view>
#include <utility>

namespace hearth {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

using LogField = std::pair<std::string_view, boost::json::value>;

// Names the process in every line ("gateway"). Call once at start.
void SetLogService(std::string_view service);
void SetLogLevel(LogLevel least);

void Log(LogLevel level, std::string_view message, std::initializer_list<LogField> fields = {});
inline void LogInfo(std::string_view message, std::initializer_list<LogField> fields = {}) {
  Log(LogLevel::kInfo, message, fields);
}
inline void LogWarning(std::string_view message, std::initializer_list<LogField> fields = {}) {
  Log(LogLevel::kWarning, message, fields);
}
inline void LogError(std::string_view message, std::initializer_list<LogField> fields = {}) {
  Log(LogLevel::kError, message, fields);
}

}  // namespace hearth
