// Early return on an error, for functions that return absl::Status or absl::StatusOr.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define HEARTH_RETURN_IF_ERROR(expr)                 \
  do {                                               \
    absl::Status hearth_status_ = (expr);            \
    if (!hearth_status_.ok()) return hearth_status_; \
  } while (false)

#define HEARTH_CONCAT_INNER_(a, b) a##b
#define HEARTH_CONCAT_(a, b) HEARTH_CONCAT_INNER_(a, b)

// HEARTH_ASSIGN_OR_RETURN(auto value, ReadIt());
#define HEARTH_ASSIGN_OR_RETURN(lhs, expr) \
  HEARTH_ASSIGN_OR_RETURN_(HEARTH_CONCAT_(hearth_status_or_, __LINE__), lhs, expr)
#define HEARTH_ASSIGN_OR_RETURN_(tmp, lhs, expr) \
  auto tmp = (expr);                             \
  if (!tmp.ok()) return tmp.status();            \
  lhs = *std::move(tmp)
