// Fuzzes the bytes of HTTP requests: the parser under the server's limits, and all that looks at a
// header. However the bytes are cut, they must be understood the same.
#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "common/base/status.h"
#include "services/gateway/api/error.h"
#include "services/gateway/http/guard.h"
#include "services/gateway/http/parsers.h"
#include "services/gateway/http/request_id.h"
#include "services/gateway/http/route.h"

namespace hearth::gateway {
namespace {

constexpr uint64_t kMaxBody = 4096;

// Takes what the parser wants from the bytes that have come, `step` more at a time.
class Feed {
 public:
  Feed(std::string_view bytes, size_t step) : bytes_(bytes), step_(step) {}

  // Whether so many bytes come, as the server waits for them.
  bool Wait(size_t n) {
    while (come_ - used_ < n && come_ < bytes_.size()) {
      come_ = std::min(bytes_.size(), come_ + step_);
    }
    return come_ - used_ >= n;
  }
  // Empty, or why the parser did not get to `done`.
  template <typename Parser, typename Done>
  std::string Until(Parser& parser, Done done) {
    while (!done(parser)) {
      boost::system::error_code error;
      const auto n = parser.put(boost::asio::buffer(bytes_.data() + used_, come_ - used_), error);
      used_ += n;
      if (error && error != http::error::need_more) return error.message();
      if (done(parser)) break;
      if (!error && n > 0) continue;  // it may go on with what is there
      if (come_ - used_ > kMaxBufferedBytes) return "too long";
      if (come_ == bytes_.size()) return "more";
      come_ = std::min(bytes_.size(), come_ + step_);
    }
    return "";
  }

 private:
  const std::string_view bytes_;
  const size_t step_;
  size_t come_ = 0, used_ = 0;
};

std::string LookAt(const HttpHeader& header) {
  static const Guard guard = *Guard::Create({"chat.example"}, {"https://app.example"}, "");
  std::string model;
  const auto route = FindRoute(View(header.target()), &model);
  const absl::Status origin = guard.CheckOrigins(header);
  if (!guard.CorsHeaders(header).empty() && origin.ok() &&
      View(header[http::field::origin]) != "https://app.example") {
    std::abort();  // only the allowed origin is ever shown an answer
  }
  if (RequestIdOf(header).size() > 64) std::abort();
  if (!origin.ok() && ErrorBody(ToApiError(origin)).empty()) std::abort();
  return absl::StrCat(route ? ToAbsl(route->pattern) : "none", " ", model, " ", origin.ok());
}

// What the server would make of the bytes; nothing where they are no whole request: which of their
// faults is seen first may depend on how they are cut.
std::optional<std::string> Understand(std::string_view bytes, size_t step) {
  Feed feed(bytes, step);
  HeaderParser header;
  Limit(header);
  const std::string no_header =
      feed.Until(header, [](const auto& parser) { return parser.is_header_done(); });
  if (!no_header.empty()) return std::nullopt;
  const std::string seen = LookAt(header.get());
  if (header.content_length() && *header.content_length() > kMaxBody) return seen + " long";
  BodyParser body(std::move(header));
  RefuseExtensions refuse_extensions;
  body.body_limit(kMaxBody);
  body.on_chunk_header(refuse_extensions);
  if (body.chunked() && !feed.Wait(kLeastChunkedBody)) return std::nullopt;
  const std::string no_body = feed.Until(body, [](const auto& parser) { return parser.is_done(); });
  if (body.get().body().size() > kMaxBody) std::abort();
  if (!no_body.empty()) return std::nullopt;
  return absl::StrCat(seen, " ", body.get().body());
}

}  // namespace
}  // namespace hearth::gateway

// The first byte chooses how the bytes are cut.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hearth::gateway;
  if (size == 0) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  const auto whole = Understand(bytes, std::max<size_t>(1, bytes.size()));
  if (bytes.size() > 4096) return 0;
  if (Understand(bytes, 1 + data[0] % 16) != whole) std::abort();
  return 0;
}
