// What every connection of the gateway shares.
#pragma once

#include "services/gateway/admission/gate.h"
#include "services/gateway/http/guard.h"
#include "services/gateway/metrics.h"
#include "services/gateway/options.h"
#include "services/gateway/upstream/worker.h"

namespace hearth::gateway {

// Used on the gateway's one thread.
struct Services {
  Services(const GatewayOptions& gateway_options, Guard request_guard, Worker& gpu_worker)
      : options(gateway_options),
        guard(std::move(request_guard)),
        worker(gpu_worker),
        connections(options.max_connections),
        requests(options.max_requests),
        bodies(options.max_bodies_bytes) {}

  const GatewayOptions options;
  const Guard guard;
  Worker& worker;
  GatewayMetrics metrics;
  Gate connections;
  Gate requests;
  Gate bodies;  // bytes
  bool is_draining = false;
};

}  // namespace hearth::gateway
