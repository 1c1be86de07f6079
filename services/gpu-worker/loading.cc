#include "services/gpu-worker/loading.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/json.h"
#include "common/base/logging.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "common/checkpoint/expert_layers.h"
#include "common/experts/memory_room.h"
#include "common/machine/machine_rates.h"
#include "common/synthetic/byte_tokenizer.h"
#include "common/synthetic/model_spec.h"
#include "common/synthetic/synthetic_checkpoint.h"

namespace hearth::worker {
namespace {

namespace fs = std::filesystem;

constexpr auto kWarmUpTime = std::chrono::seconds(120);  // of one token, on the slowest machine

// The KV cache takes its memory page by page while it fills: without this, a worker that was
// promised too much would be killed under load.
absl::Status CheckKvRoom(const CommandLine& line, const ModelConfig& config, bool drafts) {
  const auto n_attention =
      (drafts ? 1 : 0) +
      std::count_if(config.layers.begin(), config.layers.end(), [](const LayerConfig& layer) {
        return layer.mixer == MixerKind::kFullAttention;
      });
  const auto token_bytes =
      static_cast<int64_t>(n_attention * 2 * sizeof(float)) * config.n_kv_heads * config.head_dim;
  const auto need = static_cast<uint64_t>(token_bytes * line.kv_tokens);
  for (const auto& room : {CgroupRoom(), MachineRoom()}) {
    if (!room || room->bytes >= need) continue;
    return absl::ResourceExhaustedError(absl::StrCat(
        "--kv-tokens ", line.kv_tokens, ": keys and values of so many tokens need ", need >> 20,
        " MiB, but ", room->limited_by, " leaves ", room->bytes >> 20, " MiB; choose at most ",
        room->bytes / static_cast<uint64_t>(token_bytes), " or free memory"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const fs::path& model, int vocab_size) {
  if (!IsSyntheticName(model.string())) return Tokenizer::Load(model / "tokenizer.json");
  return Tokenizer::Parse(SerializeJson(ByteTokenizerJson(vocab_size)));
}

absl::StatusOr<std::unique_ptr<ChatTemplate>> LoadTemplate(const fs::path& folder) {
  if (IsSyntheticName(folder.string())) return ChatTemplate::Parse(ByteChatTemplate());
  auto chat_template = ChatTemplate::Load(folder);
  if (chat_template.ok() || !absl::IsNotFound(chat_template.status())) return chat_template;
  LogWarning("the checkpoint has no chat template: chat requests will be refused");
  return nullptr;
}

// Longest prompt + answer: what was asked for, else what the model was trained for, within what the
// KV pages hold.
absl::StatusOr<int64_t> ContextTokens(const CommandLine& line, const ModelConfig& config) {
  const int64_t trained = config.max_position_embeddings;
  if (line.context == 0) return std::min(trained, line.kv_tokens);
  if (line.context > trained) {
    return absl::InvalidArgumentError(absl::StrCat("--context ", line.context,
                                                   ": the model's positions end at ", trained,
                                                   "; choose a smaller one"));
  }
  if (line.context > line.kv_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("--context ", line.context, ": the KV cache holds ", line.kv_tokens,
                     " tokens; raise --kv-tokens or choose a smaller one"));
  }
  return line.context;
}

std::string ModelName(const CommandLine& line) {
  if (!line.model_name.empty()) return line.model_name;
  std::error_code ignored;
  const auto folder = fs::weakly_canonical(line.model, ignored);
  return folder.filename().empty() ? "model" : folder.filename().string();
}

v1::ModelInfo Describe(const CommandLine& line, const Checkpoint& checkpoint, int64_t context,
                       bool is_cuda) {
  const ModelConfig& config = checkpoint.config();
  v1::ModelInfo info;
  info.set_id(ModelName(line));
  info.set_created(std::chrono::duration_cast<std::chrono::seconds>(
                       std::chrono::system_clock::now().time_since_epoch())
                       .count());
  info.set_context_tokens(static_cast<int32_t>(context));
  info.set_vocab_size(config.vocab_size);
  info.set_n_layers(config.n_layers);
  info.set_n_experts(config.n_experts);
  info.set_top_k_experts(config.experts_per_token);
  info.set_quantization(std::string(checkpoint.quantization()));
  info.set_backend(is_cuda ? "cuda" : "cpu");
  info.set_max_sequences(line.max_sequences);
  return info;
}

// Runs one token through everything and waits for it.
absl::Status WarmUp(Scheduler& scheduler) {
  struct Outcome {
    std::mutex mutex;
    std::condition_variable changed;
    bool rung = false;  // guarded by mutex
  };
  const auto outcome = std::make_shared<Outcome>();
  const auto stream = std::make_shared<OutputStream>([outcome] {
    const std::lock_guard lock(outcome->mutex);
    outcome->rung = true;
    outcome->changed.notify_all();
  });
  GenerationRequest request;
  request.prompt = {0};
  request.sampling.temperature = 0;
  request.max_tokens = 1;
  request.deadline = Clock::now() + kWarmUpTime;
  request.is_probe = true;
  HEARTH_RETURN_IF_ERROR(scheduler.Submit(std::move(request), stream));
  while (true) {
    while (const auto event = stream->Pop()) {
      if (const auto* error = std::get_if<absl::Status>(&*event)) return *error;
      if (EndsStream(*event)) return absl::OkStatus();
    }
    std::unique_lock lock(outcome->mutex);
    outcome->changed.wait(lock, [&] { return outcome->rung; });
    outcome->rung = false;
  }
}

void LogRates(const MachineRates& rates) {
  const auto megabytes = [](double bytes) { return static_cast<int64_t>(bytes / 1e6); };
  LogInfo("rates that copies of experts are planned with; hearth doctor measures this machine's",
          {{"from", rates.source},
           {"ram_mb_per_second", megabytes(rates.ram)},
           {"pcie_mb_per_second", megabytes(rates.pcie)},
           {"zero_copy_mb_per_second", megabytes(rates.zero_copy)},
           {"vram_mb_per_second", megabytes(rates.vram)}});
}

}  // namespace

absl::StatusOr<std::unique_ptr<LoadedModel>> LoadModel(const CommandLine& line,
                                                       ServingState& state) {
  const bool is_cuda = line.backend == "cuda";
  LogInfo("backend", {{"chosen", line.backend}, {"build_has_cuda", HasCudaBackend()}});
  auto model = std::make_unique<LoadedModel>();
  state.Set(v1::WORKER_STATE_STARTING, "opening the checkpoint", 0);
  HEARTH_ASSIGN_OR_RETURN(model->checkpoint, OpenModel(line.model, line.n_threads));
  const ModelConfig& config = model->checkpoint->config();
  HEARTH_ASSIGN_OR_RETURN(const int64_t context, ContextTokens(line, config));
  const bool drafts = line.mtp != Drafting::kOff && model->checkpoint->has_mtp();
  if (!is_cuda) HEARTH_RETURN_IF_ERROR(CheckKvRoom(line, config, drafts));
  for (const std::string& name : model->checkpoint->unknown_tensors()) {
    LogWarning("a tensor that nothing reads", {{"name", name}});
  }
  state.Set(v1::WORKER_STATE_STARTING, "reading the tokenizer", 0.05);
  HEARTH_ASSIGN_OR_RETURN(model->tokenizer, LoadTokenizer(line.model, config.vocab_size));
  HEARTH_ASSIGN_OR_RETURN(model->chat_template, LoadTemplate(line.model));
  if (model->tokenizer->vocab_size() > config.vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrCat(line.model.string(), ": tokenizer.json has ", model->tokenizer->vocab_size(),
                     " tokens, config.json's vocab_size is ", config.vocab_size,
                     "; the two belong to different models"));
  }
  state.Set(v1::WORKER_STATE_STARTING, "reading the dense weights", 0.1);
  model->experts = std::make_unique<AttachedExperts>(ExpertLayers(*model->checkpoint),
                                                     config.n_experts, line.exact);
  HEARTH_ASSIGN_OR_RETURN(
      model->engine, Engine::Create(*model->checkpoint, model->experts.get(),
                                    {.backend = is_cuda ? BackendKind::kCuda : BackendKind::kCpu,
                                     .n_threads = line.n_threads,
                                     .exact = line.exact,
                                     .isa = line.isa,
                                     .kv_tokens = line.kv_tokens,
                                     .max_batch_tokens = line.max_batch_tokens,
                                     .max_drafts = drafts ? line.mtp_drafts : 0,
                                     .max_sequences = line.max_sequences + 1,  // the probe
                                     .vram_bytes = line.vram_bytes,
                                     .expert_slots = line.expert_slots,
                                     .cache_policy = line.cache_policy,
                                     .divide_misses = line.divide_misses == "on",
                                     .int8_kv = line.kv_type == "int8"}));
  if (const std::string table = model->engine->memory_table(); !table.empty()) {
    LogInfo("VRAM is laid out:\n" + table);
  }
  if (is_cuda) LogRates(ThisMachinesRates());
  if (const auto memory = model->engine->dense_memory(); memory.bytes > 0) {
    LogInfo("dense weights are in memory",
            {{"bytes", memory.bytes}, {"huge_page_bytes", memory.huge_page_bytes}});
  }
  model->served.tokenizer = model->tokenizer.get();
  model->served.chat_template = model->chat_template.get();
  model->served.expert_tier = model->engine->expert_tier();
  model->served.config = config;
  model->served.info = Describe(line, *model->checkpoint, context, is_cuda);
  return model;
}

absl::Status StartServing(const CommandLine& line, LoadedModel& model, SchedulerObserver& observer,
                          std::function<void(const absl::Status&)> on_lost) {
  SchedulerOptions options;
  options.batch.max_sequences = line.max_sequences;
  options.batch.prefill_chunk = line.prefill_chunk;
  options.batch.max_batch_tokens = line.max_batch_tokens;
  options.batch.drafting = line.mtp;
  options.queue_limit = line.queue_limit;
  options.context_tokens = model.served.info.context_tokens();
  options.before_step = [experts = model.experts.get()] { experts->BeginStep(); };
  options.on_lost = std::move(on_lost);
  HEARTH_ASSIGN_OR_RETURN(model.scheduler,
                          Scheduler::Start(*model.engine, *model.tokenizer, options, observer));
  model.served.scheduler = model.scheduler.get();
  model.served.observer = &observer;
  return Annotate(WarmUp(*model.scheduler), "the first token");
}

}  // namespace hearth::worker
