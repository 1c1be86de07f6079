#include "common/synthetic/byte_tokenizer.h"

#include <array>
#include <string>

#include "absl/strings/str_cat.h"

namespace hearth {
namespace {

constexpr const char* kTemplate =
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";

std::string Utf8(uint32_t character) {
  if (character < 0x80) return {static_cast<char>(character)};
  return {static_cast<char>(0xC0 | (character >> 6)), static_cast<char>(0x80 | (character & 0x3F))};
}

// Byte-level BPE writes a byte as a printable character: itself where it is one, else the next free
// one from U+0100 on.
std::array<std::string, 256> ByteCharacters() {
  std::array<std::string, 256> characters;
  uint32_t next = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool is_printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
    characters[byte] = Utf8(is_printable ? byte : next++);
  }
  return characters;
}

json::object AddedToken(int32_t id, const char* content) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", true}};
}

}  // namespace

json::object ByteTokenizerJson(int vocab_size) {
  json::object vocabulary;
  const auto characters = ByteCharacters();
  for (int byte = 0; byte < 256; ++byte) vocabulary[characters[static_cast<size_t>(byte)]] = byte;
  json::array added = {AddedToken(kByteEndOfText, "<|endoftext|>"),
                       AddedToken(kByteStartOfTurn, "<|im_start|>"),
                       AddedToken(kByteEndOfTurn, "<|im_end|>")};
  // The last id, so that every id which the model can choose is one of the tokenizer's.
  if (vocab_size > kByteEndOfTurn + 1) {
    added.push_back(AddedToken(vocab_size - 1, "<|last|>"));
  }
  return {{"version", "1.0"},
          {"added_tokens", added},
          {"normalizer", nullptr},
          {"pre_tokenizer",
           {{"type", "ByteLevel"},
            {"add_prefix_space", false},
            {"trim_offsets", true},
            {"use_regex", true}}},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", json::array()}}}};
}

std::string_view ByteChatTemplate() { return kTemplate; }

json::object ByteTokenizerConfig() {
  return {{"tokenizer_class", "Qwen2Tokenizer"},
          {"bos_token", nullptr},
          {"eos_token", "<|im_end|>"},
          {"pad_token", "<|endoftext|>"},
          {"chat_template", kTemplate}};
}

}  // namespace hearth
