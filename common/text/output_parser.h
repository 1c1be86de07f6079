// A chat answer's text, as it is generated, into reasoning, content and tool calls. Used by
// whatever sends chat answers to clients.
//
// The format is that of Qwen's chat templates, which write back what this reads to the byte:
//
//   <think>\nREASONING\n</think>\n\nCONTENT\n<tool_call>\n{"name": ..., "arguments":
//   ...}\n</tool_call>
//
// Newlines that belong to the format are in none of the parts.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace hearth {

struct OutputOptions {
  bool parses_reasoning = true;
  // The prompt itself ends with <think>: the answer begins inside the reasoning.
  bool starts_in_reasoning = false;
  // For requests that offer tools. Otherwise <tool_call> is text like any other.
  bool parses_tool_calls = false;
  // A call is held until it is complete, since only then is it known to be one; what is longer than
  // this is content.
  size_t max_tool_call_bytes = 1 << 20;
};

struct OutputPiece {
  enum class Kind { kReasoning, kContent, kToolCall };
  Kind kind;
  std::string text;            // of reasoning or content, never empty; else empty
  std::string name;            // of a tool call
  std::string arguments_json;  // of a tool call: a JSON object, as the model wrote it

  friend bool operator==(const OutputPiece&, const OutputPiece&) = default;
};

// Holds back only what may still become a tag or the white space around one. <think> counts at the
// answer's begin, <tool_call> outside of the reasoning. A block that is no proper call (JSON
// broken, no name, arguments that are no object) is content, tags included: nothing that the model
// said is lost. However the text is cut into pushes, the pieces joined are the same. Not
// thread-safe.
class OutputParser {
 public:
  explicit OutputParser(const OutputOptions& options);

  // The pieces that are certain now, in order; may be none. Neighbours differ in kind, except
  // calls. `text` ends with a whole UTF-8 character.
  std::vector<OutputPiece> Push(std::string_view text);
  // What was held back. A last call whose closing tag is missing counts if its JSON is complete.
  // After this only the destructor may be called.
  std::vector<OutputPiece> Finish();

 private:
  enum class State {
    kBegin,           // nothing but white space yet
    kReasoningBegin,  // nothing but newlines since <think>
    kReasoning,       // inside <think>
    kAfterReasoning,  // nothing but white space since </think>
    kContent,
    kToolCall,   // inside <tool_call>
    kAfterCall,  // nothing but white space since </tool_call>
  };

  // How far the body of the open block has been read, and where in its JSON that is.
  struct CallScan {
    size_t body = 0;  // offsets in buffer_
    size_t at = 0;
    bool in_string = false;
    bool is_escaped = false;
    bool is_broken = false;    // no JSON for certain
    size_t end_in_string = 0;  // of the first closing tag inside the string that is being read
  };

  // Each reads buffer_ from at_ and moves on; false when it needs more text.
  bool Step();
  bool StepGap();
  bool StepReasoning();
  bool StepContent();
  bool StepToolCall();

  void OpenToolCall(size_t tag);
  void CloseToolCall(size_t body_end, size_t block_end);
  void ScanJson(char c);
  size_t BeforeNewline(size_t end) const;
  std::string_view Rest() const { return Rest(at_); }
  std::string_view Rest(size_t from) const { return std::string_view(buffer_).substr(from); }
  void DropNewlines();
  void Emit(OutputPiece::Kind kind, size_t end);
  std::vector<OutputPiece> Take();

  const OutputOptions options_;
  State state_;
  std::string buffer_;
  size_t at_ = 0;  // before it all of buffer_ is done with
  CallScan call_;
  std::vector<OutputPiece> pieces_;
};

// Whether a rendered prompt leaves the answer inside the reasoning.
bool PromptOpensReasoning(std::string_view prompt);

}  // namespace hearth
