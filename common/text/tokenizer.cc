#include "common/text/tokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/base/file.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "common/text/added_tokens.h"
#include "common/text/bpe.h"
#include "common/text/normalizer.h"
#include "common/text/splitter.h"
#include "common/text/tokenizer_json.h"
#include "common/text/utf8.h"

namespace hearth {
namespace {

// Positions inside a piece are 32 bits wide, and normal form C may triple a text.
constexpr uint64_t kMaxTextBytes = uint64_t{1} << 29;

std::vector<AddedToken> WithNormalized(std::span<const AddedToken> tokens, bool normalized,
                                       bool nfc) {
  std::vector<AddedToken> chosen;
  for (const AddedToken& token : tokens) {
    if (token.normalized != normalized) continue;
    chosen.push_back(token);
    if (normalized && nfc) chosen.back().content = NormalizeNfc(token.content);
  }
  return chosen;
}

// The order of Hugging Face tokenizers: added tokens of the text as given, then per stretch of text
// between them the normal form, added tokens of that, the split pattern, and merges within each
// piece.
class ByteLevelTokenizer final : public Tokenizer {
 public:
  ByteLevelTokenizer(TokenizerTables tables, std::unique_ptr<Splitter> splitter)
      : tables_(std::move(tables)),
        splitter_(std::move(splitter)),
        raw_tokens_(WithNormalized(tables_.added_tokens, false, tables_.nfc)),
        normalized_tokens_(WithNormalized(tables_.added_tokens, true, tables_.nfc)),
        bpe_(tables_.byte_ids, tables_.merges) {
    is_special_.resize(vocab_size());
    for (const AddedToken& token : tables_.added_tokens) {
      is_special_[token.id] = token.special;
      added_ids_.emplace(token.content, token.id);
    }
    tables_.merges = {};  // bpe_ has them
  }

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              const EncodeOptions& options) const override {
    const uint64_t limit = std::min(options.max_bytes, kMaxTextBytes);
    if (text.size() > limit) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the text has ", text.size(), " bytes, the limit is ", limit));
    }
    if (const auto bad = ValidateUtf8(text)) {
      return absl::InvalidArgumentError(absl::StrCat("the text is not UTF-8 at byte ", *bad));
    }
    std::vector<int32_t> ids;
    Bpe::Scratch scratch;
    if (!options.parse_special) {
      HEARTH_RETURN_IF_ERROR(EncodeNormalized(Normalize(text), scratch, ids));
      return ids;
    }
    for (const auto& stretch : raw_tokens_.Split(text)) {
      if (stretch.id != AddedTokenMatcher::kText) {
        ids.push_back(stretch.id);
        continue;
      }
      const std::string normal = Normalize(stretch.text);
      for (const auto& part : normalized_tokens_.Split(normal)) {
        if (part.id != AddedTokenMatcher::kText) {
          ids.push_back(part.id);
        } else {
          HEARTH_RETURN_IF_ERROR(EncodeNormalized(part.text, scratch, ids));
        }
      }
    }
    return ids;
  }

  absl::StatusOr<std::string> Decode(std::span<const int32_t> ids,
                                     bool skip_special) const override {
    std::string bytes;
    for (size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] < 0 || ids[i] >= vocab_size()) {
        return absl::InvalidArgumentError(
            absl::StrCat("token ", i, " has the id ", ids[i], ", ids are 0 to ", vocab_size() - 1));
      }
      if (!skip_special || !IsSpecial(ids[i])) bytes += TokenBytes(ids[i]);
    }
    std::string text;
    text.reserve(bytes.size());
    AppendUtf8Lossy(bytes, text);
    return text;
  }

  std::string_view TokenBytes(int32_t id) const override {
    if (id < 0 || id >= vocab_size()) return {};
    const uint32_t begin = tables_.offsets[id];
    return std::string_view(tables_.pool).substr(begin, tables_.offsets[id + 1] - begin);
  }

  bool IsSpecial(int32_t id) const override {
    return id >= 0 && id < vocab_size() && is_special_[id];
  }

  std::optional<int32_t> TokenId(std::string_view content) const override {
    const auto added = added_ids_.find(content);
    if (added != added_ids_.end()) return added->second;
    return InVocabulary(content);
  }

  int32_t vocab_size() const override { return static_cast<int32_t>(tables_.offsets.size()) - 1; }

 private:
  std::string Normalize(std::string_view text) const {
    return tables_.nfc ? NormalizeNfc(text) : std::string(text);
  }

  std::optional<int32_t> InVocabulary(std::string_view bytes) const {
    const auto found = tables_.vocabulary.find(ToAbsl(bytes));
    if (found == tables_.vocabulary.end()) return std::nullopt;
    return found->second;
  }

  void EncodePiece(std::string_view piece, Bpe::Scratch& scratch, std::vector<int32_t>& ids) const {
    if (tables_.ignore_merges) {
      if (const auto whole = InVocabulary(piece)) {
        ids.push_back(*whole);
        return;
      }
    }
    bpe_.Encode(piece, scratch, ids);
  }

  absl::Status EncodeNormalized(std::string_view text, Bpe::Scratch& scratch,
                                std::vector<int32_t>& ids) const {
    std::string prefixed;
    if (tables_.add_prefix_space && !text.empty() && !text.starts_with(' ')) {
      prefixed = absl::StrCat(" ", ToAbsl(text));
      text = prefixed;
    }
    const auto encode = [&](std::string_view piece) { EncodePiece(piece, scratch, ids); };
    if (splitter_ != nullptr) return splitter_->Split(text, encode);
    if (!text.empty()) encode(text);
    return absl::OkStatus();
  }

  TokenizerTables tables_;
  std::unique_ptr<Splitter> splitter_;  // null: pieces are whole texts
  AddedTokenMatcher raw_tokens_, normalized_tokens_;
  Bpe bpe_;
  std::vector<bool> is_special_;
  absl::flat_hash_map<std::string_view, int32_t, std::hash<std::string_view>> added_ids_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::filesystem::path& file) {
  HEARTH_ASSIGN_OR_RETURN(const std::string text, ReadFile(file, kMaxTokenizerJsonBytes));
  auto tokenizer = Parse(text);
  if (!tokenizer.ok()) return Annotate(tokenizer.status(), file.parent_path().string());
  return tokenizer;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Parse(std::string_view json) {
  HEARTH_ASSIGN_OR_RETURN(TokenizerTables tables, ParseTokenizerJson(json));
  std::unique_ptr<Splitter> splitter;
  if (!tables.split_pattern.empty()) {
    auto created = Splitter::Create(tables.split_pattern);
    if (!created.ok()) return Annotate(created.status(), "tokenizer.json: pre_tokenizer");
    splitter = *std::move(created);
  }
  return std::make_unique<ByteLevelTokenizer>(std::move(tables), std::move(splitter));
}

}  // namespace hearth
