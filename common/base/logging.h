// Structured logs of the services: one JSON object a line on standard error. Libraries do not log;
// they return errors.
//
//   LogInfo("attached", {{"segment_bytes", bytes}, {"request_id", id}});
//
// Thread-safe. Never logs prompts or generated text.
#pragma once

#include <boost/json/value.hpp>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

namespace hearth {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

// A name and any JSON value; std::string and std::string_view are accepted too.
struct LogField {
  LogField(std::string_view field_name, std::string_view text)
      : name(field_name), value(boost::json::string_view(text.data(), text.size())) {}
  LogField(std::string_view field_name, const std::string& text)
      : LogField(field_name, std::string_view(text)) {}
  LogField(std::string_view field_name, const char* text)
      : LogField(field_name, std::string_view(text)) {}
  template <typename T>
  LogField(std::string_view field_name, T json_value)
      : name(field_name), value(std::move(json_value)) {}

  std::string_view name;
  boost::json::value value;
};

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
