#include "cli/client/sampling_flags.h"

namespace hearth::cli {

void SamplingFlags::AddTo(CLI::App& command) {
  command.add_option("--max-tokens", max_tokens,
                     "Longest answer (default: what the context holds)");
  command.add_option("--temperature", temperature, "0: always the likeliest token");
  command.add_option("--top-k", top_k, "Only the k likeliest tokens (0: off)");
  command.add_option("--top-p", top_p, "Only the likeliest tokens of this total probability");
  command.add_option("--min-p", min_p, "Only tokens of at least this share of the likeliest");
  command.add_option("--presence-penalty", presence_penalty);
  command.add_option("--frequency-penalty", frequency_penalty);
  command.add_option("--repetition-penalty", repetition_penalty);
  command.add_option("--seed", seed, "The same seed gives the same text");
  command.add_option("--stop", stop, "Text at which the answer ends (may be repeated)")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
}

void SamplingFlags::FillIn(v1::GenerateRequest* request) const {
  v1::Sampling* sampling = request->mutable_sampling();
  if (temperature) sampling->set_temperature(*temperature);
  if (top_k) sampling->set_top_k(*top_k);
  if (top_p) sampling->set_top_p(*top_p);
  if (min_p) sampling->set_min_p(*min_p);
  if (presence_penalty) sampling->set_presence_penalty(*presence_penalty);
  if (frequency_penalty) sampling->set_frequency_penalty(*frequency_penalty);
  if (repetition_penalty) sampling->set_repetition_penalty(*repetition_penalty);
  if (seed) sampling->set_seed(*seed);
  if (max_tokens) request->set_max_tokens(*max_tokens);
  for (const std::string& text : stop) request->add_stop(text);
}

}  // namespace hearth::cli
