// How fast this machine is at the three things that bound a kernel: reading memory, multiplying
// bytes, and multiplying float32. Every share of a roofline that Hearth reports is of these.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/json.h"
#include "common/machine/statistics.h"

namespace hearth {

struct SpeedOptions {
  std::chrono::milliseconds time{150};  // of each repetition
  int repetitions = 5;
  uint64_t buffer_bytes = uint64_t{1} << 30;  // read; should exceed every cache
};

// Bytes a second that `n_threads` read together, each its own part of a buffer in huge pages where
// they can be had. ResourceExhausted where there is no memory for the buffer.
absl::StatusOr<Spread> MeasureReadBandwidth(int n_threads, const SpeedOptions& options = {});

// One kind of arithmetic that this CPU has.
struct ComputeRate {
  std::string name;  // "float32_fma", "int8_vnni", "int8_amx", "int8_madd"
  std::string instruction;
  int threads = 0;
  Spread operations_per_second;
};
std::vector<ComputeRate> MeasureComputeRates(int n_threads, const SpeedOptions& options = {});

struct MachineSpeed {
  struct Reading {
    int threads = 0;
    Spread bytes_per_second;
  };
  std::vector<Reading> readings;  // 1, 2, 4, ... and n_threads
  std::vector<ComputeRate> rates;
};
absl::StatusOr<MachineSpeed> MeasureMachine(int n_threads, const SpeedOptions& options = {});
json::object ToJson(const MachineSpeed& speed);
std::string ToText(const MachineSpeed& speed);

// 1, 2, 4, ... below n, then n.
std::vector<int> ThreadCounts(int n);

}  // namespace hearth
