// Fuzzes the bodies of /tokenize, /detokenize and /apply-template.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "services/gateway/api/error.h"
#include "services/gateway/api/testing.h"

// The first byte chooses the endpoint.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace hearth::gateway;
  constexpr Endpoint kHelpers[] = {kTokenize, kDetokenize, kApplyTemplate};
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const absl::Status status = testing::ReadRequest(kHelpers[data[0] % 3], text);
  if (status.ok()) return 0;
  const ApiError error = ToApiError(status);
  if (error.http_status != 400) std::abort();
  if (!hearth::ParseJson(ErrorBody(error)).ok()) std::abort();
  return 0;
}
