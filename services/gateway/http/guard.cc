#include "services/gateway/http/guard.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>
#include <boost/asio/ip/address.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/base/file.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"

namespace hearth::gateway {
namespace {

constexpr uint64_t kMaxKeyFileBytes = 1 << 20;

// "[::1]:8080" -> "::1", "localhost:80" -> "localhost".
std::string HostName(std::string_view host) {
  if (host.starts_with('[')) {
    const size_t end = host.find(']');
    return std::string(host.substr(1, end == std::string_view::npos ? end : end - 1));
  }
  return absl::AsciiStrToLower(ToAbsl(host.substr(0, host.rfind(':'))));
}

std::string_view Field(const HttpHeader& header, http::field name) { return View(header[name]); }

}  // namespace

absl::StatusOr<Guard> Guard::Create(std::vector<std::string> allowed_hosts,
                                    std::vector<std::string> allowed_origins,
                                    const std::filesystem::path& api_key_file) {
  Guard guard;
  for (std::string& host : allowed_hosts) absl::AsciiStrToLower(&host);
  guard.allowed_hosts_ = std::move(allowed_hosts);
  guard.allowed_origins_ = std::move(allowed_origins);
  if (api_key_file.empty()) return guard;
  const auto read = ReadFile(api_key_file, kMaxKeyFileBytes);
  if (!read.ok()) return Annotate(read.status(), "--api-key-file");
  const std::string& text = *read;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    const absl::string_view key = absl::StripAsciiWhitespace(line);
    if (!key.empty()) guard.key_digests_.push_back(Sha256(FromAbsl(key)));
  }
  if (guard.key_digests_.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("the API key file ", api_key_file.string(),
                                                   " has no key; write one a line into it"));
  }
  return guard;
}

Guard::Digest Guard::Sha256(std::string_view text) {
  Digest digest;
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest.data());
  return digest;
}

bool Guard::IsAllowedHost(std::string_view host) const {
  const std::string name = HostName(host);
  if (name == "localhost" || name.ends_with(".localhost")) return true;
  boost::system::error_code not_an_address;
  boost::asio::ip::make_address(name, not_an_address);
  return !not_an_address || std::ranges::find(allowed_hosts_, name) != allowed_hosts_.end();
}

bool Guard::IsListedOrigin(std::string_view origin) const {
  return std::ranges::any_of(allowed_origins_, [&](const std::string& allowed) {
    return allowed == "*" || allowed == origin;
  });
}

bool Guard::IsAllowedOrigin(std::string_view origin, std::string_view host) const {
  if (origin.empty()) return true;
  if (!host.empty() && origin == absl::StrCat("http://", ToAbsl(host))) return true;
  return IsListedOrigin(origin);
}

absl::Status Guard::CheckOrigins(const HttpHeader& header) const {
  const std::string_view host = Field(header, http::field::host);
  if (host.empty() && header.version() >= 11) {
    return absl::InvalidArgumentError("the Host header is missing, HTTP/1.1 requires it");
  }
  if (!host.empty() && !IsAllowedHost(host)) {
    return absl::PermissionDeniedError(
        "this server does not answer to the name in the Host header; its operator can allow it "
        "(--allowed-host)");
  }
  if (!IsAllowedOrigin(Field(header, http::field::origin), host)) {
    return absl::PermissionDeniedError(
        "web pages of this Origin may not call this server; its operator can allow them "
        "(--allowed-origin)");
  }
  return absl::OkStatus();
}

absl::Status Guard::CheckKey(const HttpHeader& header) const {
  if (key_digests_.empty()) return absl::OkStatus();
  absl::string_view value = ToAbsl(Field(header, http::field::authorization));
  if (value.size() < 7 || !absl::EqualsIgnoreCase(value.substr(0, 7), "bearer ")) {
    return absl::UnauthenticatedError(
        "an API key is required: send the header 'Authorization: Bearer KEY'");
  }
  const Digest digest = Sha256(FromAbsl(absl::StripAsciiWhitespace(value.substr(7))));
  // All keys are compared, each in constant time: the time tells nothing about them.
  int n_matches = 0;
  for (const Digest& key : key_digests_) {
    n_matches += CRYPTO_memcmp(key.data(), digest.data(), digest.size()) == 0 ? 1 : 0;
  }
  if (n_matches > 0) return absl::OkStatus();
  return absl::UnauthenticatedError("the API key is not one of this server's");
}

std::vector<std::pair<http::field, std::string>> Guard::CorsHeaders(
    const HttpHeader& header) const {
  const std::string_view origin = Field(header, http::field::origin);
  if (origin.empty() || !IsListedOrigin(origin)) return {};
  return {{http::field::access_control_allow_origin, std::string(origin)},
          {http::field::vary, "Origin"},
          {http::field::access_control_expose_headers, "x-request-id, retry-after"}};
}

}  // namespace hearth::gateway
