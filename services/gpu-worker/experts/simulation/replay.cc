#include "services/gpu-worker/experts/simulation/replay.h"

#include <algorithm>
#include <map>

namespace hearth::worker {
namespace {

// Appends the experts of some tokens in one layer, each once.
void AddUses(const std::vector<int32_t>& ids, std::span<const size_t> tokens, int layer, int top_k,
             std::vector<int32_t>* rows, std::vector<ExpertUse>* uses) {
  if (ids.empty()) return;
  const size_t first = uses->size();
  for (const size_t token : tokens) {
    for (size_t k = 0; k < static_cast<size_t>(top_k); ++k) {
      const int32_t id = ids[token * static_cast<size_t>(top_k) + k];
      if ((*rows)[static_cast<size_t>(id)]++ == 0) uses->push_back({layer, id, 0});
    }
  }
  for (size_t i = first; i < uses->size(); ++i) {
    int32_t& n = (*rows)[static_cast<size_t>((*uses)[i].expert)];
    (*uses)[i].rows = n;
    n = 0;
  }
}

}  // namespace

std::vector<ReplayStep> Replay(const RoutingTrace& trace) {
  std::vector<ReplayStep> steps;
  std::vector<int32_t> rows(static_cast<size_t>(trace.n_experts), 0);
  std::map<int32_t, int> decoded;  // tokens of each sequence
  const auto add = [&](std::span<const size_t> tokens, bool is_prompt) {
    if (tokens.empty()) return;
    ReplayStep step{.is_prompt = is_prompt,
                    .n_tokens = static_cast<int>(tokens.size()),
                    .age = 0,
                    .uses = {},
                    .early_uses = {}};
    for (int layer = 0; layer < trace.n_layers; ++layer) {
      const auto index = static_cast<size_t>(layer);
      AddUses(trace.ids[index], tokens, layer, trace.top_k, &rows, &step.uses);
      if (trace.early_ids.empty()) continue;
      AddUses(trace.early_ids[index], tokens, layer, trace.top_k, &rows, &step.early_uses);
    }
    if (!is_prompt) {
      step.age = INT32_MAX;
      for (const size_t token : tokens) {
        step.age = std::min(step.age, decoded[trace.tokens[token].sequence]++);
      }
    }
    steps.push_back(std::move(step));
  };
  std::vector<size_t> prompts, decodes;
  for (size_t i = 0; i < trace.tokens.size(); ++i) {
    (trace.tokens[i].is_prompt ? prompts : decodes).push_back(i);
    if (i + 1 < trace.tokens.size() && trace.tokens[i + 1].step == trace.tokens[i].step) continue;
    add(prompts, true);
    add(decodes, false);
    prompts.clear();
    decodes.clear();
  }
  return steps;
}

}  // namespace hearth::worker
