// Multi-token prediction on a model's own answers: how often guesses are right, and how many tokens
// a second there are with and without. One JSON object; the scheduler's batch drives the engine, as
// in the worker, without RPC and HTTP.
//
// MODEL needs a multi-token prediction head and an evaluation.json with prompts. All modes take
// turns on the same prompts, so that what else the machine does strikes each of them.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/checkpoint.h"
#include "common/machine/machine_info.h"
#include "common/machine/statistics.h"
#include "common/text/chat_template.h"
#include "common/text/tokenizer.h"
#include "services/expert-store/loading/loader.h"
#include "services/gpu-worker/engine/expert_sources.h"
#include "services/gpu-worker/scheduler/batch.h"

namespace hearth::bench {
namespace {

using worker::Drafting;
using Clock = std::chrono::steady_clock;

constexpr uint64_t kMaxFileBytes = 16 << 20;
constexpr int64_t kMaxTotal = 1024;
constexpr uint64_t kVramBytes = uint64_t{4} << 30;  // of each engine, all experts included

struct Settings {
  std::filesystem::path model;
  int n_threads = 2;
  int n_answers = 48;
  int n_turns = 5;
  bool is_cuda = false;
};

struct Mode {
  std::string name;
  Drafting drafting;
  int max_drafts;
};

struct Model {
  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<worker::ExpertSource> experts;
  std::vector<std::vector<int32_t>> prompts;
};

absl::StatusOr<Model> Load(const Settings& settings) {
  Model model;
  HEARTH_ASSIGN_OR_RETURN(model.checkpoint, Checkpoint::Open(settings.model));
  if (!model.checkpoint->has_mtp()) {
    return absl::InvalidArgumentError("the model has no multi-token prediction head");
  }
  HEARTH_ASSIGN_OR_RETURN(model.tokenizer, Tokenizer::Load(settings.model / "tokenizer.json"));
  HEARTH_ASSIGN_OR_RETURN(const auto chat, ChatTemplate::Load(settings.model));
  HEARTH_ASSIGN_OR_RETURN(
      auto segment, store::LoadIntoMemory(*model.checkpoint, settings.n_threads, kTiledExperts));
  model.experts = std::make_unique<worker::SegmentExperts>(std::move(segment));
  HEARTH_ASSIGN_OR_RETURN(const std::string text,
                          ReadFile(settings.model / "evaluation.json", kMaxFileBytes));
  HEARTH_ASSIGN_OR_RETURN(const json::value rows, ParseJson(text));
  if (!rows.is_array()) return absl::InvalidArgumentError("evaluation.json is no array");
  for (const json::value& row : rows.as_array()) {
    if (static_cast<int>(model.prompts.size()) == settings.n_answers) break;
    const json::object* fields = row.if_object();
    const json::value* prompt = fields == nullptr ? nullptr : fields->if_contains("prompt");
    if (prompt == nullptr)
      return absl::InvalidArgumentError("evaluation.json: a row has no prompt");
    const json::array messages = {json::object{{"role", "user"}, {"content", *prompt}}};
    HEARTH_ASSIGN_OR_RETURN(
        const std::string rendered,
        chat->Render({{"messages", messages}, {"add_generation_prompt", true}}));
    HEARTH_ASSIGN_OR_RETURN(auto ids, model.tokenizer->Encode(rendered));
    model.prompts.push_back(std::move(ids));
  }
  return model;
}

struct Counter : worker::SchedulerObserver {
  void OnGuesses(int n_guessed, int n_right) override { guessed += n_guessed, right += n_right; }
  void OnStep(Seconds took, int prefill, int) override {
    if (prefill == 0) seconds += took.count(), ++steps;
  }
  int64_t guessed = 0, right = 0, steps = 0;  // of steps that only decode
  double seconds = 0;
};

// One turn of one mode: all answers, so many at once.
struct Turn {
  std::vector<std::vector<int32_t>> answers;
  double tokens_per_second = 0;
  double step_milliseconds = 0;
  int64_t guessed = 0, right = 0;
};

class Runner {
 public:
  Runner(const Model& model, worker::Engine& engine, Drafting drafting, int at_once)
      : model_(model), batch_(engine, {.max_sequences = at_once, .drafting = drafting}, counter_) {}

  Turn Run(bool is_sampled) {
    counter_ = {};
    std::vector<std::shared_ptr<worker::OutputStream>> streams;
    const auto start = Clock::now();
    for (size_t i = 0; i < model_.prompts.size(); ++i) {
      worker::GenerationRequest request;
      request.prompt = model_.prompts[i];
      request.sampling.temperature = is_sampled ? 1 : 0;
      request.sampling.seed = i;
      request.stop_ids = model_.checkpoint->config().eos_token_ids;
      request.max_tokens = 64;
      request.return_token_ids = true;
      streams.push_back(std::make_shared<worker::OutputStream>(nullptr, 1000));
      batch_.Add(std::make_unique<worker::Sequence>(std::move(request), streams.back(),
                                                    *model_.tokenizer, kMaxTotal, start));
    }
    while (batch_.Step(Clock::now())) {
    }
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    Turn turn;
    turn.guessed = counter_.guessed;
    turn.right = counter_.right;
    size_t n_tokens = 0;
    for (const auto& stream : streams) {
      n_tokens += turn.answers.emplace_back(Tokens(*stream)).size();
    }
    turn.tokens_per_second = static_cast<double>(n_tokens) / seconds;
    turn.step_milliseconds =
        1000 * counter_.seconds / static_cast<double>(std::max<int64_t>(1, counter_.steps));
    return turn;
  }

 private:
  static std::vector<int32_t> Tokens(worker::OutputStream& stream) {
    std::vector<int32_t> ids;
    while (const auto event = stream.Pop()) {
      const auto* delta = std::get_if<worker::DeltaEvent>(&*event);
      if (delta == nullptr) continue;
      ids.insert(ids.end(), delta->token_ids.begin(), delta->token_ids.end());
    }
    return ids;
  }

  const Model& model_;
  Counter counter_;
  worker::ContinuousBatch batch_;
};

// What one mode's turns came to, beside the first mode's.
json::object Summary(const Mode& mode, const std::vector<Turn>& turns,
                     const std::vector<Turn>& base) {
  std::vector<double> rates, ratios, steps;
  int64_t guessed = 0, right = 0;
  int n_same = 0, n_answers = 0;
  for (size_t i = 0; i < turns.size(); ++i) {
    rates.push_back(turns[i].tokens_per_second);
    ratios.push_back(turns[i].tokens_per_second / base[i].tokens_per_second);
    steps.push_back(turns[i].step_milliseconds);
    guessed += turns[i].guessed, right += turns[i].right;
    for (size_t a = 0; a < turns[i].answers.size(); ++a, ++n_answers) {
      n_same += turns[i].answers[a] == base[i].answers[a] ? 1 : 0;
    }
  }
  const double share = guessed == 0 ? 0 : static_cast<double>(right) / static_cast<double>(guessed);
  std::fprintf(stderr, "  %-10s %8.0f tokens/s  x %.3f  step %.3f ms  right %.3f  same %d of %d\n",
               mode.name.c_str(), Summarise(rates).median, Summarise(ratios).median,
               Summarise(steps).median, share, n_same, n_answers);
  return {{"mode", mode.name},
          {"tokens_per_second", ToJson(Summarise(rates))},
          {"ratio", ToJson(Summarise(ratios))},
          {"step_milliseconds", ToJson(Summarise(steps))},
          {"guesses", guessed},
          {"right", right},
          {"share_right", share},
          {"answers", n_answers},
          {"answers_as_without", n_same}};
}

absl::StatusOr<json::object> Measure(const Settings& settings, const Model& model, int at_once,
                                     bool is_sampled) {
  const std::vector<Mode> modes = {{"without", Drafting::kOff, 0},  {"off", Drafting::kOff, 1},
                                   {"1 guess", Drafting::kOn, 1},   {"2 guesses", Drafting::kOn, 2},
                                   {"3 guesses", Drafting::kOn, 3}, {"auto", Drafting::kAuto, 2}};
  std::vector<std::unique_ptr<worker::Engine>> engines;
  std::vector<std::unique_ptr<Runner>> runners;
  for (const Mode& mode : modes) {
    HEARTH_ASSIGN_OR_RETURN(
        engines.emplace_back(),
        worker::Engine::Create(
            *model.checkpoint, model.experts.get(),
            {.backend = settings.is_cuda ? worker::BackendKind::kCuda : worker::BackendKind::kCpu,
             .n_threads = settings.n_threads,
             .exact = false,
             .kv_tokens = 16384,
             .max_drafts = mode.max_drafts,
             .vram_bytes = kVramBytes}));
    runners.push_back(std::make_unique<Runner>(model, *engines.back(), mode.drafting, at_once));
  }
  std::fprintf(stderr, "%d at once, %s\n", at_once, is_sampled ? "sampled" : "greedy");
  std::vector<std::vector<Turn>> turns(modes.size());
  for (int i = 0; i <= settings.n_turns; ++i) {
    for (size_t m = 0; m < modes.size(); ++m) {
      Turn turn = runners[m]->Run(is_sampled);
      if (i > 0) turns[m].push_back(std::move(turn));  // the first warms up, and auto decides
    }
  }
  json::array results;
  for (size_t m = 0; m < modes.size(); ++m) {
    results.push_back(Summary(modes[m], turns[m], turns[0]));
  }
  return json::object{{"at_once", at_once},
                      {"sampling", is_sampled ? "temperature 1" : "greedy"},
                      {"backend", std::string(engines[0]->backend())},
                      {"modes", std::move(results)}};
}

absl::StatusOr<json::object> MeasureAll(const Settings& settings) {
  HEARTH_ASSIGN_OR_RETURN(const Model model, Load(settings));
  json::array results;
  for (const int at_once : {1, 4, 8}) {
    for (const bool is_sampled : {false, true}) {
      HEARTH_ASSIGN_OR_RETURN(json::object result, Measure(settings, model, at_once, is_sampled));
      results.push_back(std::move(result));
    }
  }
  const BuildInfo build = ThisBuild();
  return json::object{{"name", "mtp"},
                      {"model", settings.model.filename().string()},
                      {"commit", std::string(build.commit)},
                      {"dirty", build.is_dirty},
                      {"machine", ToJson(ThisMachine())},
                      {"threads", settings.n_threads},
                      {"answers_a_turn", settings.n_answers},
                      {"turns", settings.n_turns},
                      {"results", std::move(results)}};
}

int Main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: hearth-bench-mtp MODEL [THREADS [ANSWERS [TURNS [cuda]]]]\n");
    return 2;
  }
  Settings settings{.model = argv[1]};
  if (argc > 2) settings.n_threads = std::max(1, std::atoi(argv[2]));
  if (argc > 3) settings.n_answers = std::max(1, std::atoi(argv[3]));
  if (argc > 4) settings.n_turns = std::max(1, std::atoi(argv[4]));
  if (argc > 5) settings.is_cuda = std::string_view(argv[5]) == "cuda";
  const auto result = MeasureAll(settings);
  if (!result.ok()) {
    std::fprintf(stderr, "hearth-bench-mtp: %s\n", result.status().ToString().c_str());
    return 1;
  }
  std::printf("%s\n", SerializeJson(*result).c_str());
  return 0;
}

}  // namespace
}  // namespace hearth::bench

int main(int argc, char** argv) { return hearth::bench::Main(argc, argv); }
