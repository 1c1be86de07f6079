// The model: token ids in, logits out, for several sequences in one step. Used by the scheduler
// (one thread) and by `hearth verify`.
//
// Every row is computed by the same operations in the same order whatever else is in the batch and,
// on the CPU, however a prompt is cut into chunks, so a sequence's logits do not depend on its
// company.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/check.h"
#include "common/checkpoint/checkpoint.h"
#include "common/tensor/linear.h"
#include "services/gpu-worker/sampling/top_logits.h"

namespace hearth::worker {

class ExpertTier;

// Where the engine finds routed experts. Called from the engine's threads, so thread-safe.
class ExpertSource {
 public:
  virtual ~ExpertSource() = default;
  // Valid until the step ends.
  virtual absl::StatusOr<ExpertRef> Get(int layer, int expert) = 0;

  // For engines that keep copies of experts, between steps. The packed bytes of one
  // (common/experts/packing.h), empty where it can't be had now or nothing is packed; the memory
  // that all of them lie in; and a number that changes when they moved or were replaced, 0 while
  // there are none.
  virtual std::span<const std::byte> Packed(int layer, int expert) {
    static_cast<void>(layer), static_cast<void>(expert);
    return {};
  }
  virtual std::span<const std::byte> Memory() { return {}; }
  virtual uint64_t generation() { return 0; }
  // Keeps what Memory() gives now where it is as long as it is held, also after a replacement:
  // copies may still read it. Null where it lives as long as this.
  virtual std::shared_ptr<const void> Hold() { return nullptr; }
  // An expert was used that was not asked for here, because the engine had a copy.
  virtual void CountUse(int layer, int expert) {
    static_cast<void>(layer), static_cast<void>(expert);
  }
};

// Takes the choice of experts away from the router: for benchmarks, since random weights route
// flat. Called on the engine's thread, for each layer with experts of each step.
class RoutingOverride {
 public:
  // The rows of one of the step's items, in the order of the items.
  struct Rows {
    int begin = 0, end = 0;
    int64_t first_position = 0;
  };
  virtual ~RoutingOverride() = default;
  // Writes top_k different experts for every row to `ids` [T, top_k], which holds the router's own
  // choice. They get the weights of the router's choice, in their order.
  virtual void Impose(int layer, std::span<const Rows> items, int top_k,
                      std::span<int32_t> ids) = 0;
};

// Each more costs a copy of a sequence's delta-net states, and is right less often.
inline constexpr int kMaxDrafts = 3;
enum class BackendKind { kCpu, kCuda };
// Whether this build has the CUDA backend, and this machine a GPU that it can use.
bool HasCudaBackend();
bool HasCudaDevice();

struct EngineOptions {
  BackendKind backend = BackendKind::kCpu;
  int n_threads = 1;
  // The float32 backend, the reference; otherwise the fast one, which rounds activations to int8
  // where weights are 4-bit, and the head's weights to 8 bits.
  bool exact = true;
  // Instruction set of the fast backend: "amx", "avx512", "avxvnni", "avx2"; empty: the best there
  // is.
  std::string isa = {};
  int page_tokens = 16;        // tokens a KV page holds
  int64_t kv_tokens = 65536;   // tokens that all sequences together can keep
  int max_batch_tokens = 512;  // rows of one step at most (a chunk is cut to fit)
  // Tokens that Draft may guess ahead, at most kMaxDrafts; 0: the checkpoint's multi-token
  // prediction head is left alone.
  int max_drafts = 0;
  RoutingOverride* routing = nullptr;  // borrowed; null: the router chooses

  // Of the CUDA backend.
  int max_sequences = 8;      // sequences alive at once, at most
  uint64_t vram_bytes = 0;    // all that it may use of the card; 0: what is free less a reserve
  int64_t expert_slots = -1;  // experts kept in VRAM; -1: as many as the rest of vram_bytes holds
  // Empty: the best known; "profile" once the tier was given counts, until then the best known.
  std::string cache_policy = {};
  // How long a step waits for the CPU's experts before it fails (Internal).
  std::chrono::nanoseconds expert_wait = std::chrono::seconds(20);
  // Of the experts that are missed in VRAM the GPU reads some over PCIe where they lie (decode),
  // the CPU computes some while others are streamed (prompts): shares that follow measured times.
  // Without, decode's are the CPU's and long prompts' the GPU's, and a step computes the same bits
  // each time.
  bool divide_misses = true;
  bool int8_kv = false;  // keys and values in 8 bits instead of bf16
};

// One sequence's memory: KV pages of the attention layers, delta-net and convolution states of the
// others. Made by Engine::NewSequence; gives its pages back when destroyed. Belongs to the engine's
// thread.
class SequenceState {
 public:
  virtual ~SequenceState() = default;
  virtual int64_t n_tokens() const = 0;  // tokens seen: the next one's position
};

enum class LogitsWanted { kNone, kLast, kAll };

struct StepItem {
  SequenceState* state = nullptr;   // advanced by tokens.size(); an item a sequence at most
  std::span<const int32_t> tokens;  // >= 1, each in [0, vocab_size)
  LogitsWanted logits = LogitsWanted::kLast;
  // The last n_drafts tokens (fewer than all; at most the engine's max_drafts) are guesses:
  // Rollback can take them back until the next step.
  int n_drafts = 0;
  // Set where the largest logits of its rows may do (StepLogits::top): what they are weighed at.
  std::optional<float> temperature = {};
};

// One token after those that a sequence has seen and, in deeper drafts, guessed.
struct DraftItem {
  SequenceState* state = nullptr;
  int32_t token = 0;
  std::optional<float> temperature = {};  // as StepItem's
};

// Logits of the step's items, in their order: one row for kLast, tokens.size() for kAll, none for
// kNone. Either all rows are whole, or `top` has their largest logits and the engine has the whole
// rows until its next Step or Draft (Engine::ReadLogits). An engine gives `top` only where all
// items that want logits have a temperature, and only if its logits lie on a device: the CPU's
// never does.
struct StepLogits {
  std::vector<float> values;      // [n_rows, vocab_size]; empty where `top` has the rows
  std::vector<TopLogitsRow> top;  // [n_rows]; empty where `values` has them
  int n_rows = 0;
  std::span<const float> Row(int row, int vocab_size) const {
    return std::span(values).subspan(static_cast<size_t>(row) * static_cast<size_t>(vocab_size),
                                     static_cast<size_t>(vocab_size));
  }
};

// Sees named intermediates [rows, columns] while a step runs, for `hearth verify`. `name` is as in
// the reference files: "embedding", "layers.3.hidden", "layers.3.router.topk_ids",
// "layers.3.router.topk_weights", and "layers.3.router.logits". Ids come as floats.
using TensorObserver =
    std::function<void(std::string_view name, int rows, int columns, const float* values)>;

class Engine {
 public:
  // Reads the dense weights. `experts` is borrowed and may become able to answer later.
  // FailedPrecondition if the CPU lacks the instruction set, or there is no such backend or device.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const Checkpoint& checkpoint,
                                                        ExpertSource* experts,
                                                        const EngineOptions& options);
  virtual ~Engine() = default;

  virtual const ModelConfig& config() const = 0;
  // What computes, for people: "float32", "avx512", …
  virtual std::string_view backend() const = 0;
  // Whether a row's results are the same bits however its prompt was cut. Else a piece of a few
  // rows is rounded otherwise than one of many.
  virtual bool rows_are_independent() const { return true; }
  virtual std::unique_ptr<SequenceState> NewSequence() = 0;

  // KV pages that `n_tokens` more tokens of a sequence would take beyond those it has.
  virtual int64_t PagesNeeded(const SequenceState& state, int64_t n_tokens) const = 0;
  virtual int64_t pages_free() const = 0;
  virtual int64_t pages_total() const = 0;

  // Runs all items through the model. ResourceExhausted, before anything changed, if the pages
  // don't suffice. Any other error leaves the items' states unusable: drop those sequences. The sum
  // of tokens is at most max_batch_tokens (InvalidArgument).
  virtual absl::Status Step(std::span<const StepItem> items, StepLogits* logits) = 0;

  // A whole row of the last Step or Draft, one of those that it gave as `top`. Valid until the next
  // call of this, Step or Draft.
  virtual absl::StatusOr<std::span<const float>> ReadLogits(int row) {
    static_cast<void>(row);
    return absl::FailedPreconditionError("this engine gives whole rows at once");
  }

  // How many tokens Draft can guess ahead of a step: 0 without a multi-token prediction head.
  virtual int max_drafts() const { return 0; }

  // Guesses with the multi-token prediction head: logits, a row an item, of the token after
  // `token`. First, with depth 0, `token` is the one that follows those seen (at least one); then,
  // with depth 1 and so on up to max_drafts() - 1, the guess before, for all or some of the same
  // sequences. What sequences have seen does not change, and no step's result depends on guesses.
  // A guess may already take pages of the step that follows, at most those for the tokens up to
  // `token`. Errors as Step's.
  virtual absl::Status Draft(std::span<const DraftItem> items, int depth, StepLogits* logits) {
    static_cast<void>(items), static_cast<void>(depth), static_cast<void>(logits);
    return absl::UnimplementedError("this engine has no multi-token prediction head");
  }

  // Takes back the last `n_tokens` of the sequence's last step, at most its item's n_drafts (and
  // what was taken back already counts): the sequence is as if it had never seen them. Their pages
  // are free again.
  virtual void Rollback(SequenceState& state, int n_tokens) {
    static_cast<void>(state), static_cast<void>(n_tokens);
    HEARTH_CHECK(n_tokens == 0);
  }

  // Grows while a step computes (at least once a layer and 16 rows); read from any thread by the
  // watchdog.
  virtual uint64_t progress() const = 0;
  // Asks a running step to give up soon (Cancelled): for a watchdog or a fast stop. Any thread.
  // Cleared by ClearInterrupt.
  virtual void Interrupt() = 0;
  virtual void ClearInterrupt() = 0;

  // Not OK: a device failed for good, and no step can succeed in this process any more. Engine's
  // thread.
  virtual absl::Status device_error() const { return absl::OkStatus(); }

  // Copies of a delta-net layer's states after the tokens seen: conv [channels, W - 1] with the
  // newest last, and recurrent [Hv, dk, dv]. For verify.
  virtual absl::Status ReadDeltaState(const SequenceState& state, int layer,
                                      std::vector<float>* conv,
                                      std::vector<float>* recurrent) const = 0;

  virtual void SetObserver(TensorObserver observer) = 0;

  // The cache of experts in VRAM; null where the engine has none. Lives as long as the engine.
  virtual ExpertTier* expert_tier() { return nullptr; }

  // Where a GPU's memory goes, a line a part; empty where there is no GPU.
  virtual std::string memory_table() const { return {}; }

  // The dense weights in memory, and how many of their bytes lie in huge pages.
  struct MemoryUse {
    uint64_t bytes = 0;
    uint64_t huge_page_bytes = 0;
  };
  virtual MemoryUse dense_memory() const { return {}; }

  // Makes a sequence that has seen nothing look as after `n_tokens` tokens, with random keys,
  // values and states: a long context for a benchmark without its prefill. ResourceExhausted if the
  // pages don't suffice; Unimplemented where an engine can't.
  virtual absl::Status FillContext(SequenceState* state, int64_t n_tokens, uint64_t seed) {
    static_cast<void>(state), static_cast<void>(n_tokens), static_cast<void>(seed);
    return absl::UnimplementedError("this engine fills no contexts");
  }
};

}  // namespace hearth::worker
