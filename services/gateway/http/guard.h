// Who may ask: Host and Origin against pages that use a visitor's browser (DNS rebinding,
// cross-site requests), API keys, and the content type.
#pragma once

#include <array>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/gateway/http/message.h"

namespace hearth::gateway {

// Thread-compatible; constant after its creation.
class Guard {
 public:
  // An empty `api_key_file`: no keys are asked for. InvalidArgument when the file has no key.
  static absl::StatusOr<Guard> Create(std::vector<std::string> allowed_hosts,
                                      std::vector<std::string> allowed_origins,
                                      const std::filesystem::path& api_key_file);

  // Loopback names, IP addresses (a rebound name is never one) and allowed names.
  bool IsAllowedHost(std::string_view host) const;
  // No Origin at all, the server's own, or an allowed one.
  bool IsAllowedOrigin(std::string_view origin, std::string_view host) const;
  // PermissionDenied by Host or Origin; Unauthenticated by the key.
  absl::Status CheckOrigins(const HttpHeader& header) const;
  absl::Status CheckKey(const HttpHeader& header) const;

  // What a page of another origin needs to see in every answer; empty where Origin is absent or
  // the server's own.
  std::vector<std::pair<http::field, std::string>> CorsHeaders(const HttpHeader& header) const;

 private:
  using Digest = std::array<unsigned char, 32>;
  static Digest Sha256(std::string_view text);
  bool IsListedOrigin(std::string_view origin) const;

  std::vector<std::string> allowed_hosts_;
  std::vector<std::string> allowed_origins_;
  std::vector<Digest> key_digests_;
};

}  // namespace hearth::gateway
