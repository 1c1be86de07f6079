#include "common/text/tokenizer_json.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/base/json.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"
#include "common/text/byte_level.h"
#include "common/text/split_pattern.h"
#include "common/text/utf8.h"

namespace hearth {
namespace {

constexpr int kMaxDepth = 16;
constexpr size_t kMaxQuoted = 64;

std::string_view View(const json::string& text) { return {text.data(), text.size()}; }

// For messages: short, and whole characters.
std::string Quoted(std::string_view text) {
  const bool cut = text.size() > kMaxQuoted;
  if (cut) text = text.substr(0, CompletePrefixLength(text.substr(0, kMaxQuoted)));
  return absl::StrCat("\"", ToAbsl(text), cut ? "...\"" : "\"");
}

absl::Status Invalid(std::string_view field, std::string_view problem) {
  return absl::InvalidArgumentError(
      absl::StrCat("tokenizer.json: ", ToAbsl(field), " ", ToAbsl(problem)));
}

absl::Status Unsupported(std::string_view field, std::string_view value) {
  return absl::UnimplementedError(
      absl::StrCat("tokenizer.json: ", ToAbsl(field), " ", Quoted(value), " is not supported"));
}

bool IsAbsent(const json::value* value) { return value == nullptr || value->is_null(); }

absl::StatusOr<const json::object*> GetObject(const json::object& parent, const char* key,
                                              std::string_view field) {
  const json::value* value = parent.if_contains(key);
  if (value == nullptr || !value->is_object()) return Invalid(field, "must be an object");
  return &value->get_object();
}

absl::StatusOr<bool> GetBool(const json::object& parent, const char* key, bool otherwise,
                             std::string_view field) {
  const json::value* value = parent.if_contains(key);
  if (IsAbsent(value)) return otherwise;
  if (!value->is_bool())
    return Invalid(absl::StrCat(ToAbsl(field), ".", key), "must be true or false");
  return value->get_bool();
}

absl::StatusOr<std::string_view> GetString(const json::object& parent, const char* key,
                                           std::string_view field) {
  const json::value* value = parent.if_contains(key);
  if (value == nullptr || !value->is_string()) {
    return Invalid(absl::StrCat(ToAbsl(field), ".", key), "must be a string");
  }
  return View(value->get_string());
}

absl::StatusOr<int32_t> ReadId(const json::value& value, std::string_view field) {
  int64_t id = -1;
  if (value.is_int64()) id = value.get_int64();
  if (id < 0 || id > kMaxTokenId) {
    return Invalid(field, absl::StrCat("must be a token id from 0 to ", kMaxTokenId));
  }
  return static_cast<int32_t>(id);
}

// The parser of one file. Fills `tables_` step by step; `spelling_of_id_` remembers how each id is
// spelled.
class Reader {
 public:
  explicit Reader(const json::object& root) : root_(root) {}

  absl::StatusOr<TokenizerTables> Read() {
    HEARTH_RETURN_IF_ERROR(ReadNormalizer());
    HEARTH_RETURN_IF_ERROR(ReadPreTokenizer());
    HEARTH_RETURN_IF_ERROR(ReadDecoder());
    HEARTH_ASSIGN_OR_RETURN(const json::object* model, GetObject(root_, "model", "model"));
    HEARTH_RETURN_IF_ERROR(ReadModelOptions(*model));
    HEARTH_RETURN_IF_ERROR(ReadVocabulary(*model));
    HEARTH_RETURN_IF_ERROR(ReadByteIds());
    HEARTH_RETURN_IF_ERROR(ReadMerges(*model));
    HEARTH_RETURN_IF_ERROR(ReadAddedTokens());
    FillPool();
    return std::move(tables_);
  }

 private:
  absl::Status ReadNormalizer();
  absl::Status ReadPreTokenizer();
  absl::Status ReadByteLevel(const json::object& byte_level, bool is_alone, std::string_view field);
  absl::Status ReadSplit(const json::object& split, std::string_view field);
  absl::Status ReadDecoder();
  absl::Status ReadModelOptions(const json::object& model);
  absl::Status ReadVocabulary(const json::object& model);
  absl::Status ReadByteIds();
  absl::Status ReadMerges(const json::object& model);
  absl::StatusOr<Bpe::Merge> ReadMerge(const json::value& merge, std::string_view field) const;
  absl::Status ReadAddedTokens();
  absl::Status ReadAddedToken(const json::value& value, std::string_view field);
  absl::Status Spell(int32_t id, std::string_view spelling, std::string_view field);
  void FillPool();

  std::optional<int32_t> IdOf(std::string_view spelling) const {
    const auto found = id_of_spelling_.find(spelling);
    if (found == id_of_spelling_.end()) return std::nullopt;
    return found->second;
  }

  const json::object& root_;
  TokenizerTables tables_;
  // Views into root_.
  std::vector<std::optional<std::string_view>> spelling_of_id_;
  absl::flat_hash_map<std::string_view, int32_t, std::hash<std::string_view>> id_of_spelling_;
};

absl::Status Reader::ReadNormalizer() {
  const json::value* normalizer = root_.if_contains("normalizer");
  if (IsAbsent(normalizer)) return absl::OkStatus();
  HEARTH_ASSIGN_OR_RETURN(const json::object* object, GetObject(root_, "normalizer", "normalizer"));
  HEARTH_ASSIGN_OR_RETURN(const std::string_view type, GetString(*object, "type", "normalizer"));
  if (type != "NFC") return Unsupported("normalizer.type", type);
  tables_.nfc = true;
  return absl::OkStatus();
}

absl::Status Reader::ReadByteLevel(const json::object& byte_level, bool is_alone,
                                   std::string_view field) {
  HEARTH_ASSIGN_OR_RETURN(const bool prefix, GetBool(byte_level, "add_prefix_space", true, field));
  HEARTH_ASSIGN_OR_RETURN(const bool use_regex, GetBool(byte_level, "use_regex", true, field));
  if (!is_alone && (prefix || use_regex)) {
    return Unsupported(field, "ByteLevel with add_prefix_space or use_regex after a Split");
  }
  tables_.add_prefix_space = prefix;
  if (use_regex) tables_.split_pattern = std::string(Gpt2SplitPattern());
  return absl::OkStatus();
}

absl::Status Reader::ReadSplit(const json::object& split, std::string_view field) {
  HEARTH_ASSIGN_OR_RETURN(const std::string_view behavior, GetString(split, "behavior", field));
  if (behavior != "Isolated")
    return Unsupported(absl::StrCat(ToAbsl(field), ".behavior"), behavior);
  HEARTH_ASSIGN_OR_RETURN(const bool invert, GetBool(split, "invert", false, field));
  if (invert) return Unsupported(absl::StrCat(ToAbsl(field), ".invert"), "true");
  const std::string pattern_field = absl::StrCat(ToAbsl(field), ".pattern");
  HEARTH_ASSIGN_OR_RETURN(const json::object* pattern, GetObject(split, "pattern", pattern_field));
  if (pattern->contains("String")) return Unsupported(pattern_field, "String");
  HEARTH_ASSIGN_OR_RETURN(const std::string_view regex,
                          GetString(*pattern, "Regex", pattern_field));
  if (regex.empty()) return Invalid(absl::StrCat(pattern_field, ".Regex"), "is empty");
  tables_.split_pattern = std::string(regex);
  return absl::OkStatus();
}

absl::Status Reader::ReadPreTokenizer() {
  HEARTH_ASSIGN_OR_RETURN(const json::object* object,
                          GetObject(root_, "pre_tokenizer", "pre_tokenizer"));
  HEARTH_ASSIGN_OR_RETURN(const std::string_view type, GetString(*object, "type", "pre_tokenizer"));
  if (type == "ByteLevel") return ReadByteLevel(*object, true, "pre_tokenizer");
  if (type != "Sequence") return Unsupported("pre_tokenizer.type", type);
  const json::value* steps = object->if_contains("pretokenizers");
  if (steps == nullptr || !steps->is_array()) {
    return Invalid("pre_tokenizer.pretokenizers", "must be an array");
  }
  static constexpr const char* kWanted[] = {"Split", "ByteLevel"};
  const json::array& array = steps->get_array();
  if (array.size() != std::size(kWanted)) {
    return Unsupported("pre_tokenizer.pretokenizers",
                       absl::StrCat(array.size(), " steps instead of Split, ByteLevel"));
  }
  for (size_t i = 0; i < array.size(); ++i) {
    const std::string field = absl::StrCat("pre_tokenizer.pretokenizers[", i, "]");
    const json::object* step = array[i].if_object();
    if (step == nullptr) return Invalid(field, "must be an object");
    HEARTH_ASSIGN_OR_RETURN(const std::string_view step_type, GetString(*step, "type", field));
    if (step_type != kWanted[i]) return Unsupported(absl::StrCat(field, ".type"), step_type);
    HEARTH_RETURN_IF_ERROR(i == 0 ? ReadSplit(*step, field) : ReadByteLevel(*step, false, field));
  }
  return absl::OkStatus();
}

absl::Status Reader::ReadDecoder() {
  HEARTH_ASSIGN_OR_RETURN(const json::object* decoder, GetObject(root_, "decoder", "decoder"));
  HEARTH_ASSIGN_OR_RETURN(const std::string_view type, GetString(*decoder, "type", "decoder"));
  if (type != "ByteLevel") return Unsupported("decoder.type", type);
  return absl::OkStatus();
}

absl::Status Reader::ReadModelOptions(const json::object& model) {
  // Old files leave the type out.
  if (model.contains("type")) {
    HEARTH_ASSIGN_OR_RETURN(const std::string_view type, GetString(model, "type", "model"));
    if (type != "BPE") return Unsupported("model.type", type);
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (IsAbsent(model.if_contains(key))) continue;
    HEARTH_ASSIGN_OR_RETURN(const std::string_view affix, GetString(model, key, "model"));
    if (!affix.empty()) return Unsupported(absl::StrCat("model.", key), affix);
  }
  const json::value* dropout = model.if_contains("dropout");
  const bool drops = !IsAbsent(dropout) && !(dropout->is_double() && dropout->get_double() == 0) &&
                     !(dropout->is_int64() && dropout->get_int64() == 0);
  if (drops) return Unsupported("model.dropout", "other than null or 0");
  HEARTH_ASSIGN_OR_RETURN(const bool fallback, GetBool(model, "byte_fallback", false, "model"));
  if (fallback) return Unsupported("model.byte_fallback", "true");
  HEARTH_ASSIGN_OR_RETURN(tables_.ignore_merges, GetBool(model, "ignore_merges", false, "model"));
  return absl::OkStatus();
}

absl::Status Reader::Spell(int32_t id, std::string_view spelling, std::string_view field) {
  if (static_cast<size_t>(id) >= spelling_of_id_.size()) spelling_of_id_.resize(id + 1);
  std::optional<std::string_view>& known = spelling_of_id_[id];
  if (known && *known != spelling) {
    return Invalid(field, absl::StrCat("gives id ", id, " to ", Quoted(spelling), ", but ",
                                       Quoted(*known), " has it"));
  }
  known = spelling;
  return absl::OkStatus();
}

absl::Status Reader::ReadVocabulary(const json::object& model) {
  HEARTH_ASSIGN_OR_RETURN(const json::object* vocab, GetObject(model, "vocab", "model.vocab"));
  id_of_spelling_.reserve(vocab->size());
  tables_.vocabulary.reserve(vocab->size());
  spelling_of_id_.reserve(vocab->size());
  for (const json::key_value_pair& entry : *vocab) {
    const std::string_view spelling(entry.key().data(), entry.key().size());
    const auto field = [&] { return absl::StrCat("model.vocab[", Quoted(spelling), "]"); };
    if (spelling.empty()) return Invalid(field(), "is an empty token");
    const auto id = ReadId(entry.value(), "");
    if (!id.ok()) return ReadId(entry.value(), field()).status();
    const bool is_new = static_cast<size_t>(*id) >= spelling_of_id_.size() || !spelling_of_id_[*id];
    if (!is_new) return Spell(*id, spelling, field());
    HEARTH_RETURN_IF_ERROR(Spell(*id, spelling, ""));
    id_of_spelling_.emplace(spelling, *id);
    // A token outside the byte alphabet comes from no text.
    if (auto bytes = BytesFromSpelling(spelling))
      tables_.vocabulary.emplace(*std::move(bytes), *id);
  }
  return absl::OkStatus();
}

absl::Status Reader::ReadByteIds() {
  for (int byte = 0; byte < 256; ++byte) {
    const auto found = tables_.vocabulary.find(std::string(1, static_cast<char>(byte)));
    if (found == tables_.vocabulary.end()) {
      return Invalid("model.vocab", absl::StrCat("has no token for the byte ", byte,
                                                 ": not every text could be encoded"));
    }
    tables_.byte_ids[byte] = found->second;
  }
  return absl::OkStatus();
}

absl::StatusOr<Bpe::Merge> Reader::ReadMerge(const json::value& merge,
                                             std::string_view field) const {
  std::string_view left, right;
  if (merge.is_string()) {
    const std::string_view both = View(merge.get_string());
    const size_t space = both.find(' ');
    if (space == std::string_view::npos || both.find(' ', space + 1) != std::string_view::npos) {
      return Invalid(field, "must be two tokens with a space between them");
    }
    left = both.substr(0, space);
    right = both.substr(space + 1);
  } else {
    const json::array* pair = merge.if_array();
    if (pair == nullptr || pair->size() != 2 || !(*pair)[0].is_string() ||
        !(*pair)[1].is_string()) {
      return Invalid(field, "must be a string or a pair of strings");
    }
    left = View((*pair)[0].get_string());
    right = View((*pair)[1].get_string());
  }
  const std::string joined = absl::StrCat(ToAbsl(left), ToAbsl(right));
  int32_t ids[3];
  int32_t* id = ids;
  for (const std::string_view token : {left, right, std::string_view(joined)}) {
    const std::optional<int32_t> known = IdOf(token);
    if (!known)
      return Invalid(field, absl::StrCat("needs ", Quoted(token), ", which is not in model.vocab"));
    *id++ = *known;
  }
  return Bpe::Merge{ids[0], ids[1], ids[2]};
}

absl::Status Reader::ReadMerges(const json::object& model) {
  const json::value* merges = model.if_contains("merges");
  if (merges == nullptr || !merges->is_array()) return Invalid("model.merges", "must be an array");
  const json::array& array = merges->get_array();
  tables_.merges.reserve(array.size());
  for (size_t i = 0; i < array.size(); ++i) {
    auto merge = ReadMerge(array[i], "");
    if (!merge.ok()) return ReadMerge(array[i], absl::StrCat("model.merges[", i, "]")).status();
    tables_.merges.push_back(*merge);
  }
  return absl::OkStatus();
}

absl::Status Reader::ReadAddedToken(const json::value& value, std::string_view field) {
  const json::object* object = value.if_object();
  if (object == nullptr) return Invalid(field, "must be an object");
  AddedToken token;
  HEARTH_ASSIGN_OR_RETURN(const std::string_view content, GetString(*object, "content", field));
  const std::string content_field = absl::StrCat(ToAbsl(field), ".content");
  if (content.empty()) return Invalid(content_field, "is empty");
  if (content.size() > kMaxAddedTokenBytes) {
    return Invalid(content_field, absl::StrCat("has ", content.size(), " bytes, the limit is ",
                                               kMaxAddedTokenBytes));
  }
  token.content = std::string(content);
  const json::value* id = object->if_contains("id");
  const std::string id_field = absl::StrCat(ToAbsl(field), ".id");
  HEARTH_ASSIGN_OR_RETURN(token.id, ReadId(id == nullptr ? json::value() : *id, id_field));
  const std::optional<int32_t> known = IdOf(content);
  if (known && *known != token.id) {
    return Invalid(id_field, absl::StrCat("is ", token.id, ", but ", Quoted(content), " is ",
                                          *known, " in model.vocab or an earlier added token"));
  }
  HEARTH_RETURN_IF_ERROR(Spell(token.id, content, id_field));
  id_of_spelling_.emplace(content, token.id);
  HEARTH_ASSIGN_OR_RETURN(token.special, GetBool(*object, "special", false, field));
  HEARTH_ASSIGN_OR_RETURN(token.lstrip, GetBool(*object, "lstrip", false, field));
  HEARTH_ASSIGN_OR_RETURN(token.rstrip, GetBool(*object, "rstrip", false, field));
  HEARTH_ASSIGN_OR_RETURN(token.single_word, GetBool(*object, "single_word", false, field));
  HEARTH_ASSIGN_OR_RETURN(token.normalized, GetBool(*object, "normalized", !token.special, field));
  tables_.added_tokens.push_back(std::move(token));
  return absl::OkStatus();
}

absl::Status Reader::ReadAddedTokens() {
  const json::value* tokens = root_.if_contains("added_tokens");
  if (IsAbsent(tokens)) return absl::OkStatus();
  if (!tokens->is_array()) return Invalid("added_tokens", "must be an array");
  absl::flat_hash_set<int32_t> ids;
  for (size_t i = 0; i < tokens->get_array().size(); ++i) {
    const std::string field = absl::StrCat("added_tokens[", i, "]");
    HEARTH_RETURN_IF_ERROR(ReadAddedToken(tokens->get_array()[i], field));
    const int32_t id = tables_.added_tokens.back().id;
    if (!ids.insert(id).second) {
      return Invalid(absl::StrCat(field, ".id"),
                     absl::StrCat("is ", id, ", as in an earlier added token"));
    }
  }
  return absl::OkStatus();
}

void Reader::FillPool() {
  tables_.offsets.reserve(spelling_of_id_.size() + 1);
  for (const auto& spelling : spelling_of_id_) {
    tables_.offsets.push_back(static_cast<uint32_t>(tables_.pool.size()));
    if (spelling) tables_.pool += DecodedBytes(*spelling);
  }
  tables_.offsets.push_back(static_cast<uint32_t>(tables_.pool.size()));
}

}  // namespace

absl::StatusOr<TokenizerTables> ParseTokenizerJson(std::string_view text) {
  if (text.size() > kMaxTokenizerJsonBytes) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "tokenizer.json: ", text.size(), " bytes, the limit is ", kMaxTokenizerJsonBytes));
  }
  auto root = ParseJson(text, kMaxDepth);
  if (!root.ok()) return Annotate(root.status(), "tokenizer.json");
  if (!root->is_object()) return Invalid("the file", "must hold an object");
  return Reader(root->get_object()).Read();
}

}  // namespace hearth
