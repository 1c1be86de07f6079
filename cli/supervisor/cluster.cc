#include "cli/supervisor/cluster.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace hearth::cli {
namespace {

void Append(std::vector<std::string>& argv, std::initializer_list<std::string> more) {
  argv.insert(argv.end(), more);
}

}  // namespace

std::vector<std::string> ServiceCommand(const ClusterOptions& options, ServiceIndex service,
                                        int port) {
  const std::string program = absl::StrCat("hearth-", kServiceNames[service]);
  std::vector<std::string> argv = {(options.bin_dir / program).string(), "--run-dir",
                                   options.run_dir.string(), "--grace-seconds",
                                   absl::StrCat(options.grace.count())};
  const std::vector<std::string>* more = &options.gateway_flags;
  if (service == kGateway) {
    // An IPv6 address is written in brackets before a port.
    const bool is_v6 = options.host.find(':') != std::string::npos;
    Append(argv,
           {"--listen", absl::StrCat(is_v6 ? "[" : "", options.host, is_v6 ? "]" : "", ":", port)});
  } else {
    Append(argv, {"--model", options.model.string()});
    if (service == kStore) Append(argv, {"--segment", options.segment.string()});
    if (options.expose_metrics) {
      const int offset = service == kWorker ? 1 : 2;
      Append(argv, {"--metrics-listen",
                    absl::StrCat("127.0.0.1:", options.port == 0 ? 0 : options.port + offset)});
    }
    more = service == kStore ? &options.store_flags : &options.worker_flags;
  }
  argv.insert(argv.end(), more->begin(), more->end());
  return argv;
}

std::string ProbeHost(const std::string& host) {
  if (host == "0.0.0.0") return "127.0.0.1";
  if (host == "::") return "::1";
  return host;
}

}  // namespace hearth::cli
