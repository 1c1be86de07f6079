// The options that choose and size what computes, for commands that run an engine in their process.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>

#include "services/gpu-worker/engine/engine.h"

namespace hearth::cli {

struct BackendFlags {
  std::string backend = "cpu", policy;
  uint64_t vram = 0;
  int64_t slots = -1;
  std::string kv_type = "bf16", divide_misses = "on";

  bool is_cuda() const { return backend == "cuda"; }
  void Apply(worker::EngineOptions* options) const {
    options->backend = is_cuda() ? worker::BackendKind::kCuda : worker::BackendKind::kCpu;
    options->vram_bytes = vram;
    options->expert_slots = slots;
    options->cache_policy = policy;
    options->divide_misses = divide_misses == "on";
    options->int8_kv = kv_type == "int8";
  }
};

inline void AddBackendFlags(CLI::App& command, BackendFlags* flags) {
  command.add_option("--backend", flags->backend, "What computes: cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  command
      .add_option("--vram", flags->vram,
                  "VRAM that the CUDA backend may use, as 14GiB (default: what is free less 1 GiB)")
      ->transform(CLI::AsSizeValue(false));
  command
      .add_option("--expert-slots", flags->slots,
                  "Experts that it keeps there (default: as many as fit)")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 24));
  command
      .add_option("--kv-type", flags->kv_type, "Keys and values of the CUDA backend: bf16, int8")
      ->check(CLI::IsMember({"bf16", "int8"}))
      ->capture_default_str();
  command
      .add_option(
          "--divide-misses", flags->divide_misses,
          "Whether CPU and GPU share the experts that are not in VRAM, as measured: on, off")
      ->check(CLI::IsMember({"on", "off"}))
      ->capture_default_str();
  command.add_option("--cache-policy", flags->policy, "Which experts stay in VRAM")
      ->check(CLI::IsMember({"lru", "prompt", "predictive", "recency"}));
}

}  // namespace hearth::cli
