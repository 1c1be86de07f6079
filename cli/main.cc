// `hearth`: serves a model, talks to it and checks it. `hearth help` lists the commands.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>
#include <vector>

#include "cli/commands.h"

namespace hearth::cli {

int Fail(const char* command, const absl::Status& status) {
  std::fprintf(stderr, "hearth %s: %s\n", command, std::string(status.message()).c_str());
  switch (status.code()) {
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kCancelled:
      return 1;
    default:
      return 2;
  }
}

}  // namespace hearth::cli

int main(int argc, char** argv) {
  using namespace hearth::cli;
  CLI::App app{"Hearth serves a mixture-of-experts model on one PC."};
  app.name("hearth");
  app.require_subcommand(1);
  app.footer("hearth COMMAND --help explains a command.");
  int exit_code = 0;
  AddServe(app, &exit_code);
  AddGenerate(app, &exit_code);
  AddChat(app, &exit_code);
  AddVerify(app, &exit_code);
  AddInspect(app, &exit_code);
  AddMakeModel(app, &exit_code);
  AddBenchmark(app, &exit_code);
  AddProfile(app, &exit_code);
  AddCache(app, &exit_code);
  AddDoctor(app, &exit_code);
  AddTokenize(app, &exit_code);
  AddRender(app, &exit_code);
  AddProbe(app, &exit_code);
  AddVersion(app, &exit_code);
  app.add_subcommand("help", "Prints this text")->callback([&app] {
    // App::help() would be that of the subcommand which was called: this one.
    const auto text = app.get_formatter()->make_help(&app, "hearth", CLI::AppFormatMode::Normal);
    std::fputs(text.c_str(), stdout);
  });
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const std::vector<std::string> unknown = app.remaining();
    if (app.get_subcommands().empty() && !unknown.empty()) {
      std::fprintf(stderr,
                   "hearth: unknown command or option '%s'; `hearth help` lists the commands\n",
                   unknown.front().c_str());
      return 2;
    }
    return app.exit(error) == 0 ? 0 : 2;
  }
  return exit_code;
}
