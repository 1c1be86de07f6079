// The standard process_* metrics of Prometheus clients, which prometheus-cpp does not have.
#pragma once

#include <string>

namespace hearth {

std::string RenderProcessMetrics();

}  // namespace hearth
