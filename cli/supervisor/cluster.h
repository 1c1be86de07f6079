// What a cluster is made of: the three programs with their arguments. Filled in by `serve`, used by
// the supervisor.
#pragma once

#include <chrono>
#include <filesystem>
#include <string>
#include <vector>

#include "cli/supervisor/console.h"
#include "cli/supervisor/hang_detector.h"

namespace hearth::cli {

struct ClusterOptions {
  std::filesystem::path model;
  std::filesystem::path run_dir;
  std::filesystem::path segment;
  // Where `segment` lies on a tmpfs of our own: the descriptor of its folder, borrowed. It outlives
  // the services, and so does the segment. Else -1, and why not.
  int segment_folder = -1;
  std::string no_huge_pages_reason;
  std::filesystem::path bin_dir;  // where the programs lie
  std::string host = "127.0.0.1";
  int port = 8080;  // 0: any
  std::chrono::seconds grace{5};
  bool keep_segment = false;
  bool expose_metrics = false;  // store on port + 2, worker on port + 1, loopback
  Console::Style style = Console::Style::kJson;
  HangLimits hang_limits;
  std::vector<std::string> store_flags, worker_flags, gateway_flags;  // passed through
};

enum ServiceIndex { kStore = 0, kWorker = 1, kGateway = 2, kServices = 3 };

inline constexpr const char* kServiceNames[kServices] = {"expert-store", "gpu-worker", "gateway"};

// Program and arguments. `port` is what the gateway shall listen on now.
std::vector<std::string> ServiceCommand(const ClusterOptions& options, ServiceIndex service,
                                        int port);

// The address at which a gateway that listens on `host` is reached from this machine.
std::string ProbeHost(const std::string& host);

}  // namespace hearth::cli
