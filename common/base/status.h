// Small helpers around absl::Status that every library uses.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace hearth {

// Debian's absl::string_view is a type of its own: this is the one crossing.
inline absl::string_view ToAbsl(std::string_view text) { return {text.data(), text.size()}; }
inline std::string_view FromAbsl(absl::string_view text) { return {text.data(), text.size()}; }

// The same code with `context: ` before the message; OK stays OK.
absl::Status Annotate(const absl::Status& status, std::string_view context);

// A status for a failed system call: `what` names the call and its object. Keeps errno's meaning
// (ENOENT NotFound, EACCES PermissionDenied, ENOSPC/ENOMEM/EMFILE ResourceExhausted, EEXIST
// AlreadyExists, else Internal).
absl::Status ErrnoStatus(int error_number, std::string_view what);

}  // namespace hearth
