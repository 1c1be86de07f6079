// The worker that `generate` and `chat` talk to: a running one, or one of a private cluster that
// lives as long as the command.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "cli/client/worker_client.h"
#include "cli/supervisor/child.h"

namespace hearth::cli {

struct SessionOptions {
  std::string model;    // checkpoint folder: a private cluster is started where none runs
  std::string run_dir;  // of the running cluster; empty: the default one
  std::string worker;   // address of a worker, instead of a run directory
};

class Session {
 public:
  // Blocks until the worker is ready: Unavailable, with what to do, when there is none.
  static absl::StatusOr<std::unique_ptr<Session>> Open(const SessionOptions& options);
  // Stops the private cluster and removes its folder.
  ~Session();

  WorkerClient& client() { return *client_; }

 private:
  Session() = default;
  absl::Status StartPrivateCluster(const std::string& model);
  absl::Status WaitUntilReady();

  std::filesystem::path private_run_dir_;  // empty: none
  Child server_;
  std::string server_output_;
  std::unique_ptr<WorkerClient> client_;
};

}  // namespace hearth::cli
