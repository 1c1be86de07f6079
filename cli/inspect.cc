// `hearth inspect`: what a checkpoint folder holds, after all checks that loading makes.
#include <cstdio>
#include <memory>
#include <string>

#include "cli/commands.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/checkpoint.h"

namespace hearth::cli {
namespace {

absl::Status RunInspect(const std::string& folder) {
  HEARTH_ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(folder));
  const ModelConfig& config = checkpoint->config();
  int n_delta = 0, n_moe = 0;
  for (const LayerConfig& layer : config.layers) {
    n_delta += layer.mixer == MixerKind::kDeltaNet ? 1 : 0;
    n_moe += layer.has_experts ? 1 : 0;
  }
  std::printf("architecture    %s\n", config.model_type.c_str());
  std::printf("layers          %d: %d delta net, %d attention; %d with experts\n", config.n_layers,
              n_delta, config.n_layers - n_delta, n_moe);
  std::printf("experts         %d a layer, %d a token, width %d; shared expert %d\n",
              config.n_experts, config.experts_per_token, config.expert_intermediate_size,
              config.shared_expert_intermediate_size);
  std::printf("hidden size     %d\n", config.hidden_size);
  std::printf("attention       %d heads, %d key/value heads, size %d\n", config.n_heads,
              config.n_kv_heads, config.head_dim);
  std::printf("vocabulary      %d%s\n", config.vocab_size,
              config.tie_word_embeddings ? ", head tied to the embedding" : "");
  std::printf("context         %d tokens\n", config.max_position_embeddings);
  std::printf("experts kept in %s\n", std::string(checkpoint->quantization()).c_str());
  std::printf("MTP head        %s\n", checkpoint->has_mtp() ? "yes" : "no");
  std::printf("bytes           %llu\n", static_cast<unsigned long long>(checkpoint->total_bytes()));
  std::printf("fingerprint     %s\n", checkpoint->ExpertFingerprint().c_str());
  std::printf("unknown tensors %zu\n", checkpoint->unknown_tensors().size());
  for (const std::string& name : checkpoint->unknown_tensors()) std::printf("  %s\n", name.c_str());
  return absl::OkStatus();
}

}  // namespace

void AddInspect(CLI::App& app, int* exit_code) {
  auto folder = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("inspect", "Checks a checkpoint folder and sums it up");
  command->add_option("model", *folder, "Checkpoint folder")->required();
  command->callback([folder, exit_code] {
    const absl::Status status = RunInspect(*folder);
    *exit_code = status.ok() ? 0 : Fail("inspect", status);
  });
}

}  // namespace hearth::cli
