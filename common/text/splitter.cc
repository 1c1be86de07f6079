#define PCRE2_CODE_UNIT_WIDTH 8
#include "common/text/splitter.h"

#include <pcre2.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/text/split_pattern.h"

namespace hearth {
namespace {

using std::chrono::steady_clock;

template <auto kFree>
struct Freer {
  template <typename T>
  void operator()(T* p) const {
    kFree(p);
  }
};
using Code = std::unique_ptr<pcre2_code, Freer<pcre2_code_free>>;
using CompileContext = std::unique_ptr<pcre2_compile_context, Freer<pcre2_compile_context_free>>;
using MatchContext = std::unique_ptr<pcre2_match_context, Freer<pcre2_match_context_free>>;
using MatchData = std::unique_ptr<pcre2_match_data, Freer<pcre2_match_data_free>>;
using JitStack = std::unique_ptr<pcre2_jit_stack, Freer<pcre2_jit_stack_free>>;

constexpr size_t kJitStackStart = 32 << 10;
constexpr size_t kJitStackLimit = 1 << 20;
constexpr uint32_t kHeapLimitKib = 64 << 10;
constexpr uint32_t kMaxNesting = 64;
// A match may step back once for each byte (white space before a newline); the rest is slack for
// small texts.
constexpr uint64_t kStepsPerByte = 4;
constexpr uint64_t kStepsAtLeast = 100'000;
// The known patterns need about 10 ms for a MiB, 100 times less; sanitizers and busy machines slow
// them by tens.
constexpr auto kTimePerMib = std::chrono::seconds(2);
constexpr auto kTimeAtLeast = std::chrono::milliseconds(500);
constexpr uint32_t kQuestionsPerLookAtTheClock = 64;

std::string PcreMessage(int error) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(error, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

struct Deadline {
  steady_clock::time_point end;
  uint32_t n_questions = 0;

  bool IsOver() {
    return ++n_questions % kQuestionsPerLookAtTheClock == 0 && steady_clock::now() >= end;
  }
};

// Between two callouts PCRE2 does at most one scan of the text.
int StopWhenLate(pcre2_callout_block*, void* deadline_pointer) {
  return static_cast<Deadline*>(deadline_pointer)->IsOver() ? PCRE2_ERROR_CALLOUT : 0;
}

size_t CharacterBytes(std::string_view text, size_t at) {
  size_t n = 1;
  while (at + n < text.size() && (text[at + n] & 0xC0) == 0x80) ++n;
  return n;
}

}  // namespace

struct Splitter::Compiled {
  Code code;
};

namespace {

// The state of one text's matching.
class Matcher {
 public:
  Matcher(const pcre2_code* code, std::string_view text)
      : code_(code),
        text_(text),
        data_(pcre2_match_data_create(1, nullptr)),
        context_(pcre2_match_context_create(nullptr)),
        stack_(pcre2_jit_stack_create(kJitStackStart, kJitStackLimit, nullptr)) {
    HEARTH_CHECK(data_ != nullptr && context_ != nullptr && stack_ != nullptr);
    const uint64_t steps = kStepsAtLeast + kStepsPerByte * text.size();
    pcre2_set_match_limit(context_.get(),
                          static_cast<uint32_t>(std::min<uint64_t>(steps, UINT32_MAX)));
    pcre2_set_heap_limit(context_.get(), kHeapLimitKib);
    pcre2_jit_stack_assign(context_.get(), nullptr, stack_.get());
    deadline_.end = steady_clock::now() + kTimeAtLeast + kTimePerMib * (text.size() >> 20);
    pcre2_set_callout(context_.get(), StopWhenLate, &deadline_);
  }

  // The end of the match that begins at `at`; nothing if none does.
  absl::StatusOr<std::optional<size_t>> MatchAt(size_t at) {
    int result = deadline_.IsOver() ? PCRE2_ERROR_CALLOUT : Run(at, PCRE2_NO_UTF_CHECK);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = Run(at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT);
    if (result == PCRE2_ERROR_NOMATCH) return std::nullopt;
    if (result < 0) {
      const std::string limit = result == PCRE2_ERROR_CALLOUT ? "time limit" : PcreMessage(result);
      return absl::ResourceExhaustedError(
          absl::StrCat("the tokenizer's split pattern takes too much time or memory at byte ", at,
                       " of ", text_.size(), ": ", limit));
    }
    return pcre2_get_ovector_pointer(data_.get())[1];
  }

 private:
  int Run(size_t at, uint32_t options) {
    return pcre2_match(code_, reinterpret_cast<PCRE2_SPTR>(text_.data()), text_.size(), at, options,
                       data_.get(), context_.get());
  }

  const pcre2_code* code_;
  std::string_view text_;
  MatchData data_;
  MatchContext context_;
  JitStack stack_;
  Deadline deadline_;
};

}  // namespace

Splitter::Splitter(std::unique_ptr<Compiled> compiled) : compiled_(std::move(compiled)) {}
Splitter::~Splitter() = default;

absl::StatusOr<std::unique_ptr<Splitter>> Splitter::Create(std::string_view pattern) {
  HEARTH_ASSIGN_OR_RETURN(const std::string translated, TranslateSplitPattern(pattern));
  const CompileContext context(pcre2_compile_context_create(nullptr));
  HEARTH_CHECK(context != nullptr);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(context.get(), kMaxNesting);
  int error = 0;
  size_t at = 0;
  // Anchored and without searches ahead for needed characters: these scan the text where no callout
  // can stop them.
  auto compiled = std::make_unique<Compiled>();
  compiled->code.reset(
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED | PCRE2_NO_START_OPTIMIZE, &error, &at,
                    context.get()));
  if (compiled->code == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("split pattern: ", PcreMessage(error)));
  }
  // Without a JIT (a machine that forbids it) pcre2_match interprets: same pieces, slower.
  pcre2_jit_compile(compiled->code.get(), PCRE2_JIT_COMPLETE);
  return std::unique_ptr<Splitter>(new Splitter(std::move(compiled)));
}

absl::Status Splitter::Split(std::string_view text,
                             const std::function<void(std::string_view)>& piece) const {
  Matcher matcher(compiled_->code.get(), text);
  size_t from = 0;  // what stands before was given out
  const auto give_until = [&](size_t end) {
    if (end > from) piece(text.substr(from, end - from));
    from = end;
  };
  for (size_t at = 0; at < text.size();) {
    HEARTH_ASSIGN_OR_RETURN(const std::optional<size_t> end, matcher.MatchAt(at));
    if (end) give_until(at);  // an empty match ends a piece as well
    if (end && *end > at) {
      give_until(*end);
      at = *end;
    } else {
      at += CharacterBytes(text, at);
    }
  }
  give_until(text.size());
  return absl::OkStatus();
}

}  // namespace hearth
