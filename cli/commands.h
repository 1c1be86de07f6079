// The commands of `hearth`: one file each. Used by main.cc.
#pragma once

#include <CLI/App.hpp>

#include "absl/status/status.h"

namespace hearth::cli {

// Each adds its subcommand. When the user chose it, it runs while the arguments are parsed and
// stores the program's exit status.
void AddServe(CLI::App& app, int* exit_code);
void AddGenerate(CLI::App& app, int* exit_code);
void AddChat(CLI::App& app, int* exit_code);
void AddVerify(CLI::App& app, int* exit_code);
void AddInspect(CLI::App& app, int* exit_code);
void AddMakeModel(CLI::App& app, int* exit_code);
void AddBenchmark(CLI::App& app, int* exit_code);
void AddProfile(CLI::App& app, int* exit_code);
void AddCache(CLI::App& app, int* exit_code);
void AddDoctor(CLI::App& app, int* exit_code);
void AddTokenize(CLI::App& app, int* exit_code);
void AddRender(CLI::App& app, int* exit_code);
void AddProbe(CLI::App& app, int* exit_code);
void AddVersion(CLI::App& app, int* exit_code);

// Prints "hearth COMMAND: message" and returns the exit status for it: 2 where the user must change
// something, 1 for what failed on the way.
int Fail(const char* command, const absl::Status& status);

}  // namespace hearth::cli
