#include "services/gpu-worker/benchmark/routing.h"

#include <algorithm>
#include <list>
#include <numeric>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "common/synthetic/random.h"

namespace hearth::worker {
namespace {

constexpr int kLruTokens = 2000;

// A stream of numbers of its own for each (layer, item).
class Draws {
 public:
  explicit Draws(uint64_t stream) : stream_(stream) {}
  int Below(int n) {  // n is at most 4096: the bias is beyond notice
    return static_cast<int>((RandomWord(stream_, counter_++) >> 32) * static_cast<uint64_t>(n) >>
                            32);
  }
  double Share() { return static_cast<double>(RandomWord(stream_, counter_++) >> 11) * 0x1p-53; }

 private:
  uint64_t stream_;
  uint64_t counter_ = 0;
};

// The working set is the first part of a permutation of all experts.
class LocalLayer {
 public:
  LocalLayer(int n_experts, int working_set, uint64_t stream)
      : working_set_(working_set), draws_(stream), experts_(static_cast<size_t>(n_experts)) {
    std::iota(experts_.begin(), experts_.end(), 0);
    for (int i = 0; i < working_set; ++i) Swap(i, i + draws_.Below(n_experts - i));
  }

  void Choose(std::span<int32_t> ids) {
    const int n = static_cast<int>(experts_.size());
    for (size_t place = 0; place < ids.size(); ++place) {
      const auto before = ids.first(place);
      do {
        const bool is_local = draws_.Share() < kLocalShare;
        ids[place] = experts_[static_cast<size_t>(draws_.Below(is_local ? working_set_ : n))];
      } while (std::ranges::find(before, ids[place]) != before.end());
    }
  }

  void Drift() {
    const int n = static_cast<int>(experts_.size());
    if (working_set_ < n && draws_.Share() < kDriftShare) {
      Swap(draws_.Below(working_set_), working_set_ + draws_.Below(n - working_set_));
    }
  }

 private:
  void Swap(int a, int b) {
    std::swap(experts_[static_cast<size_t>(a)], experts_[static_cast<size_t>(b)]);
  }

  const int working_set_;
  Draws draws_;
  std::vector<int32_t> experts_;
};

class LocalRouting final : public RoutingOverride {
 public:
  LocalRouting(const ModelConfig& config, int working_set, uint64_t seed, bool is_shared)
      : n_experts_(config.n_experts),
        working_set_(working_set),
        is_shared_(is_shared),
        seed_(seed),
        layers_(static_cast<size_t>(config.n_layers)) {}

  void Impose(int layer, std::span<const Rows> items, int top_k, std::span<int32_t> ids) override {
    auto& sequences = layers_[static_cast<size_t>(layer)];
    while (sequences.size() < items.size()) {
      const uint64_t stream = StreamOf(seed_, absl::StrCat(layer, "/", sequences.size()));
      sequences.emplace_back(n_experts_, working_set_, stream);
    }
    const auto width = static_cast<size_t>(top_k);
    for (size_t i = 0; i < items.size(); ++i) {
      for (int row = items[i].begin; row < items[i].end; ++row) {
        auto& layer_of = sequences[is_shared_ ? 0 : i];
        layer_of.Choose(ids.subspan(static_cast<size_t>(row) * width, width));
        // Eight sequences that share a set are not eight times as fast through what they speak of.
        if (!is_shared_ || i == 0) layer_of.Drift();
      }
    }
  }

 private:
  const int n_experts_;
  const int working_set_;
  const bool is_shared_;
  const uint64_t seed_;
  std::vector<std::vector<LocalLayer>> layers_;  // a layer's sequences
};

absl::StatusOr<BenchmarkRouting> Local(std::string_view size, const ModelConfig& config,
                                       uint64_t seed, bool is_shared) {
  int working_set = DefaultWorkingSet(config);
  const bool is_number = size.empty() || absl::SimpleAtoi(ToAbsl(size), &working_set);
  // Twice what a token needs, or choosing different experts inside it would hardly end.
  const int least = std::min(2 * config.experts_per_token, config.n_experts);
  if (!is_number || working_set < least || working_set > config.n_experts) {
    return absl::InvalidArgumentError(
        absl::StrCat("--routing ", is_shared ? "shared:" : "locality:", ToAbsl(size),
                     ": the working set must be ", least, " to ", config.n_experts, " experts"));
  }
  BenchmarkRouting made;
  made.routing = MakeLocalRouting(config, working_set, seed, is_shared);
  const int slots = std::max(1, config.n_experts / 4);
  const auto probe = MakeLocalRouting(config, working_set, seed);
  made.description = absl::StrFormat(
      "imposed: each choice is one of a working set of %d of %d experts a layer%s with "
      "probability %.2f, any expert otherwise; a member of the set changes every %.0f tokens; an "
      "LRU of %d slots a layer would hit %.0f %%",
      working_set, config.n_experts, is_shared ? ", the same for all sequences," : " and sequence",
      kLocalShare, 1 / kDriftShare, slots,
      100 * LruHitRate(*probe, 0, config.experts_per_token, slots, kLruTokens));
  return made;
}

}  // namespace

int DefaultWorkingSet(const ModelConfig& config) {
  const int wanted = config.n_experts * 5 / 32;
  return std::min(std::max(wanted, 2 * config.experts_per_token), config.n_experts);
}

std::unique_ptr<RoutingOverride> MakeLocalRouting(const ModelConfig& config, int working_set,
                                                  uint64_t seed, bool is_shared) {
  return std::make_unique<LocalRouting>(config, working_set, seed, is_shared);
}

double LruHitRate(RoutingOverride& routing, int layer, int top_k, int slots, int n_tokens) {
  std::list<int32_t> recent;  // the last used first
  std::unordered_map<int32_t, std::list<int32_t>::iterator> held;
  std::vector<int32_t> ids(static_cast<size_t>(top_k));
  int64_t n_hits = 0;
  for (int token = 0; token < 2 * n_tokens; ++token) {
    const RoutingOverride::Rows item{0, 1, token};
    routing.Impose(layer, {&item, 1}, top_k, ids);
    for (const int32_t id : ids) {
      const auto found = held.find(id);
      if (found != held.end()) {
        if (token >= n_tokens) ++n_hits;
        recent.splice(recent.begin(), recent, found->second);
        continue;
      }
      recent.push_front(id);
      held[id] = recent.begin();
      if (static_cast<int>(recent.size()) <= slots) continue;
      held.erase(recent.back());
      recent.pop_back();
    }
  }
  return static_cast<double>(n_hits) / (static_cast<double>(n_tokens) * top_k);
}

absl::StatusOr<BenchmarkRouting> MakeRouting(std::string_view text, const ModelConfig& config,
                                             uint64_t seed) {
  const size_t colon = text.find(':');
  const std::string_view kind = text.substr(0, colon);
  const std::string_view rest = colon == std::string_view::npos ? "" : text.substr(colon + 1);
  if (text == "flat") return BenchmarkRouting{nullptr, "the router's own (random weights: flat)"};
  if (text == "locality" || (kind == "locality" && !rest.empty())) {
    return Local(rest, config, seed, false);
  }
  if (text == "shared" || (kind == "shared" && !rest.empty())) {
    return Local(rest, config, seed, true);
  }
  if (kind == "trace" && !rest.empty()) {
    BenchmarkRouting made;
    HEARTH_ASSIGN_OR_RETURN(made.routing, LoadTrace(rest, config));
    made.description = absl::StrCat("replayed from ", ToAbsl(rest));
    return made;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--routing ", ToAbsl(text),
                   ": allowed are flat, locality, locality:WORKING_SET, shared, "
                   "shared:WORKING_SET and trace:FILE"));
}

}  // namespace hearth::worker
