// The run directory of a cluster: its place, its lock and what it holds. Used by every command
// that starts a cluster or talks to one.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/base/unique_fd.h"

namespace hearth::cli {

// $XDG_RUNTIME_DIR/hearth, else /tmp/hearth-<uid>.
std::filesystem::path DefaultRunDir();

std::string StoreAddress(const std::filesystem::path& run_dir);   // "unix:RUN/store.sock"
std::string WorkerAddress(const std::filesystem::path& run_dir);  // "unix:RUN/worker.sock"

// The port that the gateway wrote down once it listened.
std::optional<int> ReadGatewayPort(const std::filesystem::path& run_dir);
void ForgetGatewayPort(const std::filesystem::path& run_dir);

// Makes the folder (mode 0700) and takes its lock. AlreadyExists names the process that runs a
// cluster here. Where that process is dead and only its children still end, waits for them.
absl::StatusOr<UniqueFd> LockRunDir(const std::filesystem::path& run_dir);

// OK if `host:port` can be listened on now; AlreadyExists if another program has it. Port 0 is
// free.
absl::Status CheckPortIsFree(const std::string& host, int port);

}  // namespace hearth::cli
