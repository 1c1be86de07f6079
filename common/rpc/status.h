// absl::Status inside, grpc::Status on the wire: the two have the same 17 codes.
#pragma once

#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace hearth {

grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

}  // namespace hearth
