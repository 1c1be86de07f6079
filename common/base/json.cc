#include "common/base/json.h"

#include <boost/json/serialize.hpp>
#include <boost/json/stream_parser.hpp>

#include "absl/strings/str_cat.h"

namespace hearth {

absl::StatusOr<json::value> ParseJson(std::string_view text, int max_depth) {
  json::parse_options options;
  options.max_depth = static_cast<size_t>(max_depth);
  json::stream_parser parser({}, options);
  boost::system::error_code error;
  const size_t used = parser.write_some(text.data(), text.size(), error);
  if (!error && used < text.size()) error = make_error_code(json::error::extra_data);
  if (!error) parser.finish(error);
  if (error) {
    return absl::InvalidArgumentError(
        absl::StrCat("invalid JSON at byte ", used, ": ", error.message()));
  }
  return parser.release();
}

std::string SerializeJson(const json::value& value) { return json::serialize(value); }

}  // namespace hearth
