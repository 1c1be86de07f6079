#include "services/gpu-worker/scheduler/mtp_text_testing.h"

#include <filesystem>
#include <map>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/testing/source_dir.h"
#include "common/testing/status_matchers.h"
#include "services/expert-store/loading/loader.h"
#include "services/gpu-worker/scheduler/testing.h"

namespace hearth::worker {
namespace {

constexpr int64_t kMaxTotal = 400;

}  // namespace

void MtpTexts::Load() {
  const auto demo = std::filesystem::path(hearth::testing::SourceDir()) / "models/demo";
  ASSERT_OK_AND_ASSIGN(checkpoint_, Checkpoint::Open(demo));
  ASSERT_OK_AND_ASSIGN(tokenizer_, Tokenizer::Load(demo / "tokenizer.json"));
  ASSERT_OK_AND_ASSIGN(
      auto segment,
      store::LoadIntoMemory(*checkpoint_, 2, options_.exact ? kPlainExperts : kTiledExperts));
  experts_ = std::make_unique<SegmentExperts>(std::move(segment));
}

std::unique_ptr<Engine> MtpTexts::MakeEngine(int max_drafts) {
  EngineOptions options = options_;
  options.max_drafts = max_drafts;
  auto engine = Engine::Create(*checkpoint_, experts_.get(), options);
  EXPECT_OK(engine);
  return engine.ok() ? *std::move(engine) : nullptr;
}

// Definitions, a country, an element; greedy, sampled, penalised, and past the answer's end.
std::vector<GenerationRequest> MtpTexts::Requests() const {
  const char* const prompts[] = {
      "Please define enrich.", "What does forfeit mean?",          "What is the capital of Peru?",
      "Tell me about helium.", "What does the word typical mean?", "define winter"};
  std::vector<GenerationRequest> requests;
  for (const char* prompt : prompts) {
    GenerationRequest request;
    const std::string text =
        absl::StrCat("<|im_start|>user\n", prompt, "<|im_end|>\n<|im_start|>assistant\n");
    request.prompt = *tokenizer_->Encode(text);
    request.max_tokens = 32;
    request.return_token_ids = true;
    const auto n = requests.size();
    request.sampling.temperature = n % 2 == 0 ? 0 : 1;
    request.sampling.seed = 7 + n;
    if (n == 2) request.sampling.repetition_penalty = 1.3f;
    if (n == 3) request.sampling.top_p = 0.9f;
    if (n == 5) request.sampling = {.temperature = 1.4f, .top_k = 20, .frequency_penalty = 0.5f};
    if (n < 3) request.stop_ids = checkpoint_->config().eos_token_ids;
    requests.push_back(std::move(request));
  }
  return requests;
}

std::vector<MtpTexts::Ids> MtpTexts::Answers(int max_drafts, int at_once, Counter* counter) {
  const auto engine = MakeEngine(max_drafts);
  ContinuousBatch batch(*engine,
                        {.max_sequences = at_once,
                         .max_batch_tokens = max_rows_,
                         .prefill_chunk = 7,
                         .drafting = max_drafts == 0 ? Drafting::kOff : Drafting::kOn},
                        *counter);
  std::vector<std::shared_ptr<OutputStream>> streams;
  for (const GenerationRequest& request : Requests()) {
    streams.push_back(std::make_shared<OutputStream>(nullptr, 1000));
    batch.Add(
        std::make_unique<Sequence>(request, streams.back(), *tokenizer_, kMaxTotal, Clock::now()));
  }
  while (batch.Step(Clock::now())) {
  }
  std::vector<Ids> answers;
  for (const auto& stream : streams) {
    testing::Received got;
    got.TakeAll(*stream);
    EXPECT_OK(got.error);
    EXPECT_TRUE(got.finish.has_value());
    answers.push_back(std::move(got.ids));
  }
  EXPECT_EQ(engine->pages_free(), engine->pages_total());
  return answers;
}

void MtpTexts::ExpectTheSameWithAndWithoutGuesses() {
  ASSERT_NO_FATAL_FAILURE(Load());
  Counter none;
  const std::vector<Ids> want = Answers(0, 1, &none);
  EXPECT_EQ(none.guessed, 0);
  std::map<int, int> lengths;
  for (const Ids& ids : want) ++lengths[static_cast<int>(ids.size())];
  EXPECT_GT(lengths.size(), 1u) << "all are cut off: no answer ends by itself";
  for (const auto& [max_drafts, at_once] : {std::pair(1, 1), {3, 1}, {2, 4}}) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    if (at_once == 1) continue;  // sanitizers make a step 50 times as long: the fullest case alone
#endif
    SCOPED_TRACE(absl::StrCat(max_drafts, " guesses, ", at_once, " at once"));
    Counter counter;
    const auto got = Answers(max_drafts, at_once, &counter);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) EXPECT_EQ(got[i], want[i]) << "request " << i;
    EXPECT_GT(counter.right, 40);
    EXPECT_GT(counter.guessed - counter.right, 10);
  }
}

}  // namespace hearth::worker
