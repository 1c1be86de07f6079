#include "common/text/tokenizer.h"
#include "common/text/utf8.h"

namespace hearth {

std::string StreamingDetokenizer::Push(int32_t id) {
  if (skip_special_ && tokenizer_->IsSpecial(id)) return {};
  pending_ += tokenizer_->TokenBytes(id);
  const size_t certain = CompletePrefixLength(pending_);
  std::string text;
  AppendUtf8Lossy(std::string_view(pending_).substr(0, certain), text);
  pending_.erase(0, certain);
  return text;
}

std::string StreamingDetokenizer::Flush() {
  std::string text;
  AppendUtf8Lossy(pending_, text);
  pending_.clear();
  return text;
}

}  // namespace hearth
