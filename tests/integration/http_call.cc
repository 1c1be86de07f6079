#include "tests/integration/http_call.h"

#include <gtest/gtest.h>

#include <boost/asio/ip/tcp.hpp>
#include <mutex>
#include <set>

#include "absl/strings/str_cat.h"

namespace hearth::testing {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;

constexpr uint64_t kMaxBody = 64 << 20;

std::mutex g_errors_mutex;
std::set<std::string> g_errors;  // guarded by g_errors_mutex

}  // namespace

HttpCall::HttpCall(int port, const HttpRequest& request) {
  parser_.body_limit(kMaxBody);
  http::request<http::string_body> message(http::string_to_verb(request.method), request.path, 11);
  message.set(http::field::host, absl::StrCat("localhost:", port));
  message.set(http::field::connection, "close");
  if (request.method == "POST") {
    message.set(http::field::content_type, request.content_type);
    message.body() = request.body;
    message.prepare_payload();
  }
  stream_.connect({asio::ip::make_address("127.0.0.1"), static_cast<uint16_t>(port)}, error_);
  if (!error_) http::write(stream_, message, error_);
  // Refused before it was read to its end: the answer is there nevertheless.
  if (error_ == asio::error::broken_pipe || error_ == asio::error::connection_reset) error_.clear();
}

HttpCall::~HttpCall() { Note(); }

std::string HttpCall::header(std::string_view name) const {
  const auto found = parser_.get().find({name.data(), name.size()});
  if (found == parser_.get().end()) return "";
  return {found->value().data(), found->value().size()};
}

void HttpCall::ReadSome(std::chrono::milliseconds timeout) {
  if (!std::exchange(is_reading_, true)) {
    http::async_read_some(stream_, buffer_, parser_, [this](boost::beast::error_code e, size_t) {
      is_reading_ = false;
      error_ = e;
    });
  }
  io_.restart();
  io_.run_for(timeout);
}

bool HttpCall::ReadUntil(const std::function<bool()>& condition,
                         std::chrono::milliseconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  while (!condition() && !is_complete() && !error_) {
    const auto left = deadline - std::chrono::steady_clock::now();
    if (left <= left.zero()) break;
    ReadSome(std::chrono::ceil<std::chrono::milliseconds>(left));
  }
  return condition();
}

bool HttpCall::ReadAll(std::chrono::milliseconds timeout) {
  ReadUntil([] { return false; }, timeout);
  return is_complete();
}

void HttpCall::Drop() {
  stream_.close();
  io_.restart();
  io_.run_for(std::chrono::seconds(1));  // the read that was under way
}

void HttpCall::Note() {
  if (!std::exchange(is_noted_, true) && status() >= 400) RememberError(body());
}

void RememberError(std::string_view text) {
  const std::lock_guard lock(g_errors_mutex);
  g_errors.emplace(text);
}

std::vector<std::string> RememberedErrors() {
  const std::lock_guard lock(g_errors_mutex);
  return {g_errors.begin(), g_errors.end()};
}

void ExpectNoSecretsInErrors(const std::vector<std::string>& secrets) {
  static const std::vector<std::string> kAlways = {
      "/tmp",  "/dev/",        "/shm",      "/proc",       "/home",  "/root", "/run",
      ".sock", "unix:",        "ipv4:",     "ipv6:",       "0x",     "127.0", "::1",
      ".cc:",  ".safetensors", "localhost", "config.json", "segment"};
  std::vector<std::string> all = kAlways;
  all.insert(all.end(), secrets.begin(), secrets.end());
  for (const std::string& error : RememberedErrors()) {
    for (const std::string& secret : all) {
      EXPECT_EQ(error.find(secret), std::string::npos)
          << "a client was told " << secret << ": " << error;
    }
  }
}

}  // namespace hearth::testing
