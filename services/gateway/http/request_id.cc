#include "services/gateway/http/request_id.h"

#include <algorithm>
#include <random>

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"

namespace hearth::gateway {

std::string NewRequestId() {
  thread_local std::random_device device;
  return absl::StrFormat("%08x%08x%08x", device(), device(), device());
}

std::string RequestIdOf(const HttpHeader& header) {
  const std::string_view id = View(header["x-request-id"]);
  const auto is_fit = [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-';
  };
  const bool is_good = !id.empty() && id.size() <= 64 && std::ranges::all_of(id, is_fit);
  return is_good ? std::string(id) : NewRequestId();
}

}  // namespace hearth::gateway
