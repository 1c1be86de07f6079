// JSON as template values.
#pragma once

#include "common/base/json.h"
#include "common/text/jinja/runtime.h"

namespace hearth::jinja {

// Numbers keep their kind; objects keep their order. InvalidArgument where it nests deeper than
// max_depth.
Result FromJson(const json::value& value, int max_depth);

}  // namespace hearth::jinja
