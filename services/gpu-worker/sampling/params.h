// What a request may ask of the sampler. Bounds are checked where requests enter
// (rpc/request.cc); the defaults here change nothing about the model's distribution.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace hearth::worker {

struct SamplingParams {
  float temperature = 1;         // 0: greedy
  int top_k = 0;                 // 0: off
  float top_p = 1;               // (0, 1]
  float min_p = 0;               // [0, 1], of the most likely token's probability
  float presence_penalty = 0;    // subtracted once from every token of the output
  float frequency_penalty = 0;   // subtracted for each time a token is in the output
  float repetition_penalty = 1;  // divides positive, multiplies negative logits of tokens seen
  std::vector<std::pair<int32_t, float>> logit_bias = {};  // ids in the vocabulary, each once
  uint64_t seed = 0;
  int logprobs = -1;  // -1: none; else the chosen token's and so many top ones
};

}  // namespace hearth::worker
