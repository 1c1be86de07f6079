// The subcommands of `hearth cache` that talk to a running worker. Used by cache.cc.
#pragma once

#include <CLI/App.hpp>

namespace hearth::cli {

void AddCacheControl(CLI::App& cache, int* exit_code);

}  // namespace hearth::cli
