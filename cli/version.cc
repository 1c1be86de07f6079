// `hearth version`.
#include <cstdio>

#include "cli/commands.h"

namespace hearth::cli {

void AddVersion(CLI::App& app, int* exit_code) {
  app.add_subcommand("version", "Prints the version")->callback([exit_code] {
    std::puts("hearth " HEARTH_VERSION);
    *exit_code = 0;
  });
}

}  // namespace hearth::cli
