// Names of requests: in answers, in logs, in the worker.
#pragma once

#include <string>

#include "services/gateway/http/message.h"

namespace hearth::gateway {

// 24 random hexadecimal digits.
std::string NewRequestId();

// The client's "x-request-id" where it is fit for logs (1 to 64 of A-Z a-z 0-9 . _ -), else a new
// one.
std::string RequestIdOf(const HttpHeader& header);

}  // namespace hearth::gateway
