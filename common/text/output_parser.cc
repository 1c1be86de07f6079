#include "common/text/output_parser.h"

#include <algorithm>
#include <utility>

#include "common/text/tool_call.h"

namespace hearth {
namespace {

using Kind = OutputPiece::Kind;

constexpr std::string_view kThink = "<think>", kThinkEnd = "</think>", kCall = "<tool_call>",
                           kCallEnd = "</tool_call>", kSpace = " \t\r\n";

// White space that may belong to a tag is held back up to here, so that an answer of nothing else
// costs no more than any.
constexpr size_t kMaxHeldSpace = 1024;

// How many bytes at the end of `text` may be the begin of `tag`.
size_t OpenTail(std::string_view text, std::string_view tag) {
  for (size_t n = std::min(text.size(), tag.size() - 1); n > 0; --n) {
    if (text.ends_with(tag.substr(0, n))) return n;
  }
  return 0;
}

bool MayBecome(std::string_view text, std::string_view tag) {
  return text.size() < tag.size() && tag.starts_with(text);
}

}  // namespace

OutputParser::OutputParser(const OutputOptions& options)
    : options_(options),
      state_(options.parses_reasoning && options.starts_in_reasoning ? State::kReasoningBegin
                                                                     : State::kBegin) {}

std::vector<OutputPiece> OutputParser::Push(std::string_view text) {
  buffer_.append(text);
  while (Step()) {
  }
  return Take();
}

std::vector<OutputPiece> OutputParser::Finish() {
  while (state_ == State::kToolCall) {
    if (call_.end_in_string != 0) {
      CloseToolCall(call_.end_in_string, call_.end_in_string + kCallEnd.size());
    } else {
      CloseToolCall(call_.at, buffer_.size());
    }
    while (Step()) {
    }
  }
  const bool is_reasoning = state_ == State::kReasoningBegin || state_ == State::kReasoning;
  const bool drops_space = state_ != State::kBegin && state_ != State::kContent;
  if (!drops_space || Rest().find_first_not_of(kSpace) != std::string_view::npos)
    Emit(is_reasoning ? Kind::kReasoning : Kind::kContent, buffer_.size());
  return Take();
}

bool OutputParser::Step() {
  switch (state_) {
    case State::kBegin:
    case State::kAfterReasoning:
    case State::kAfterCall:
      return StepGap();
    case State::kReasoningBegin:
      DropNewlines();
      if (Rest().empty()) return false;
      state_ = State::kReasoning;
      return true;
    case State::kReasoning:
      return StepReasoning();
    case State::kContent:
      return StepContent();
    case State::kToolCall:
      return StepToolCall();
  }
  return false;
}

bool OutputParser::StepGap() {
  if (state_ == State::kAfterReasoning) DropNewlines();
  const std::string_view rest = Rest();
  if (rest.empty()) return false;
  const bool may_think = state_ == State::kBegin && options_.parses_reasoning;
  const bool may_call = options_.parses_tool_calls;
  const size_t space = std::min(rest.find_first_not_of(kSpace), rest.size());
  if (space <= kMaxHeldSpace && (may_think || may_call)) {
    const std::string_view word = rest.substr(space);
    if (may_think && word.starts_with(kThink)) {
      at_ += space + kThink.size();
      state_ = State::kReasoningBegin;
      return true;
    }
    if (may_call && word.starts_with(kCall)) {
      OpenToolCall(at_ + space);
      return true;
    }
    if ((may_think && MayBecome(word, kThink)) || (may_call && MayBecome(word, kCall)))
      return false;
  }
  state_ = State::kContent;
  return true;
}

bool OutputParser::StepReasoning() {
  const size_t tag = buffer_.find(kThinkEnd, at_);
  const bool is_closed = tag != std::string::npos;
  size_t end = is_closed ? tag : buffer_.size() - OpenTail(Rest(), kThinkEnd);
  for (size_t n = 0; n < kMaxHeldSpace && end > at_ && buffer_[end - 1] == '\n'; ++n) --end;
  Emit(Kind::kReasoning, end);
  if (!is_closed) return false;
  at_ = tag + kThinkEnd.size();
  state_ = State::kAfterReasoning;
  return true;
}

bool OutputParser::StepContent() {
  if (!options_.parses_tool_calls) {
    Emit(Kind::kContent, buffer_.size());
    return false;
  }
  const size_t tag = buffer_.find(kCall, at_);
  if (tag != std::string::npos) {
    Emit(Kind::kContent, BeforeNewline(tag));
    OpenToolCall(tag);
    return true;
  }
  Emit(Kind::kContent, BeforeNewline(buffer_.size() - OpenTail(Rest(), kCall)));
  return false;
}

// Looks for the tag that ends the block. Inside a string of the arguments it may be meant as text:
// there it counts only once the string turns out to be none.
bool OutputParser::StepToolCall() {
  for (; call_.at < buffer_.size(); ++call_.at) {
    if (call_.at - call_.body > options_.max_tool_call_bytes) {
      Emit(Kind::kContent, call_.at);
      state_ = State::kContent;
      return true;
    }
    const std::string_view rest = Rest(call_.at);
    if (rest[0] == '<') {
      if (MayBecome(rest, kCallEnd) || MayBecome(rest, kCall)) return false;
      const bool is_end = rest.starts_with(kCallEnd);
      if (is_end && call_.in_string && call_.end_in_string == 0) call_.end_in_string = call_.at;
      // A new block where none should begin: the closing tag was forgotten.
      if (!call_.in_string && (is_end || rest.starts_with(kCall))) {
        CloseToolCall(call_.at, call_.at + (is_end ? kCallEnd.size() : 0));
        return true;
      }
    }
    ScanJson(rest[0]);
    if (call_.is_broken && call_.end_in_string != 0) {
      CloseToolCall(call_.end_in_string, call_.end_in_string + kCallEnd.size());
      return true;
    }
  }
  return false;
}

// Follows the body only as far as strings go. Strings of JSON hold no control characters, and
// backslashes stand in strings alone: what breaks this is no JSON, and its quotes say nothing.
void OutputParser::ScanJson(char c) {
  if (call_.is_broken) return;
  if (!call_.in_string) {
    call_.in_string = c == '"';
    call_.is_broken = c == '\\';
  } else if (static_cast<unsigned char>(c) < 0x20) {
    call_.is_broken = true;
    call_.in_string = false;
  } else if (call_.is_escaped) {
    call_.is_escaped = false;
  } else if (c == '\\') {
    call_.is_escaped = true;
  } else if (c == '"') {
    call_.in_string = false;
    call_.end_in_string = 0;
  }
}

// What stands between at_ and the tag belongs to the block: dropped if it is a call, content if
// not.
void OutputParser::OpenToolCall(size_t tag) {
  const size_t body = tag + kCall.size();
  call_ = {.body = body, .at = body};
  state_ = State::kToolCall;
}

void OutputParser::CloseToolCall(size_t body_end, size_t block_end) {
  auto call = ParseToolCall(std::string_view(buffer_).substr(call_.body, body_end - call_.body));
  if (!call.has_value()) {
    Emit(Kind::kContent, block_end);
    state_ = State::kContent;
    return;
  }
  pieces_.push_back({.kind = Kind::kToolCall,
                     .text = "",
                     .name = std::move(call->name),
                     .arguments_json = std::move(call->arguments_json)});
  at_ = block_end;
  state_ = State::kAfterCall;
}

// `end`, less the one newline before it that the format puts before a call.
size_t OutputParser::BeforeNewline(size_t end) const {
  return end > at_ && buffer_[end - 1] == '\n' ? end - 1 : end;
}

void OutputParser::DropNewlines() {
  while (at_ < buffer_.size() && buffer_[at_] == '\n') ++at_;
}

void OutputParser::Emit(Kind kind, size_t end) {
  if (end <= at_) return;
  const std::string_view text = Rest().substr(0, end - at_);
  if (!pieces_.empty() && pieces_.back().kind == kind) {
    pieces_.back().text.append(text);
  } else {
    pieces_.push_back({.kind = kind, .text = std::string(text), .name = "", .arguments_json = ""});
  }
  at_ = end;
}

std::vector<OutputPiece> OutputParser::Take() {
  buffer_.erase(0, at_);
  if (state_ == State::kToolCall) {
    call_.body -= at_;
    call_.at -= at_;
    if (call_.end_in_string != 0) call_.end_in_string -= at_;
  }
  at_ = 0;
  return std::exchange(pieces_, {});
}

bool PromptOpensReasoning(std::string_view prompt) {
  const size_t last = prompt.find_last_not_of(kSpace);
  return last != std::string_view::npos && prompt.substr(0, last + 1).ends_with(kThink);
}

}  // namespace hearth
