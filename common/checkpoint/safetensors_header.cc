#include "common/checkpoint/safetensors_header.h"

#include <array>
#include <boost/json/basic_parser_impl.hpp>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/json.h"
#include "common/base/status.h"

namespace hearth {
namespace {

struct DtypeInfo {
  std::string_view name;
  int64_t bytes;
};
// In the order of Dtype.
constexpr std::array<DtypeInfo, 15> kDtypes = {{{"F64", 8},
                                                {"F32", 4},
                                                {"F16", 2},
                                                {"BF16", 2},
                                                {"I64", 8},
                                                {"I32", 4},
                                                {"I16", 2},
                                                {"I8", 1},
                                                {"U64", 8},
                                                {"U32", 4},
                                                {"U16", 2},
                                                {"U8", 1},
                                                {"BOOL", 1},
                                                {"F8_E4M3", 1},
                                                {"F8_E5M2", 1}}};

std::optional<Dtype> DtypeByName(std::string_view name) {
  for (size_t i = 0; i < kDtypes.size(); ++i) {
    if (kDtypes[i].name == name) return static_cast<Dtype>(i);
  }
  return std::nullopt;
}

constexpr size_t kMaxNameBytes = 512;

// Boost.JSON's event interface. A DOM of a large header would take twenty times its length, and
// would silently keep the last of two equal keys.
class HeaderHandler {
 public:
  static constexpr size_t max_object_size = static_cast<size_t>(-1);
  static constexpr size_t max_array_size = 1024;
  static constexpr size_t max_key_size = kMaxNameBytes;
  static constexpr size_t max_string_size = 1 << 20;
  using Error = json::error_code;
  using Text = json::string_view;

  SafetensorsHeader header;
  std::string problem;  // set whenever a callback returns false

  bool on_document_begin(Error&) { return true; }
  bool on_document_end(Error&) { return true; }

  bool on_object_begin(Error& error) {
    if (where_ == Where::kStart) return Enter(Where::kTop);
    if (where_ == Where::kTop) {
      if (text_ == "__metadata__") {
        if (seen_metadata_) return Fail(error, "__metadata__: given twice");
        seen_metadata_ = true;
        return Enter(Where::kMetadata);
      }
      BeginTensor();
      return Enter(Where::kTensor);
    }
    return Fail(error, absl::StrCat(Place(), ": an object where none belongs"));
  }

  bool on_object_end(size_t, Error& error) {
    if (where_ == Where::kTensor) {
      if (seen_ != 7) {
        return Fail(error, absl::StrCat(Place(), ": needs dtype, shape and data_offsets"));
      }
      header.entries.push_back(entry_);
    }
    where_ = where_ == Where::kTop ? Where::kEnd : Where::kTop;
    return true;
  }

  bool on_array_begin(Error& error) {
    if (where_ != Where::kTensor || (field_ != kShape && field_ != kOffsets)) {
      return Fail(error, absl::StrCat(Place(), ": an array where none belongs"));
    }
    n_numbers_ = 0;
    return Enter(Where::kNumbers);
  }

  bool on_array_end(size_t, Error& error) {
    where_ = Where::kTensor;
    if (field_ == kOffsets && n_numbers_ != 2) {
      return Fail(error,
                  absl::StrCat(Place(), ": data_offsets needs two numbers, has ", n_numbers_));
    }
    return true;
  }

  bool on_key_part(Text part, size_t, Error&) { return Collect(part); }
  bool on_key(Text part, size_t, Error& error) {
    Finish(part);
    if (where_ == Where::kMetadata) metadata_key_ = text_;
    if (where_ != Where::kTensor) return true;
    const int bit = text_ == "dtype"          ? kDtype
                    : text_ == "shape"        ? kShape
                    : text_ == "data_offsets" ? kOffsets
                                              : 0;
    if (bit == 0) return Fail(error, absl::StrCat(Place(), ": unknown field \"", text_, "\""));
    if ((seen_ & bit) != 0) return Fail(error, absl::StrCat(Place(), ": ", text_, " given twice"));
    seen_ |= bit;
    field_ = bit;
    return true;
  }

  bool on_string_part(Text part, size_t, Error&) { return Collect(part); }
  bool on_string(Text part, size_t, Error& error) {
    Finish(part);
    if (where_ == Where::kMetadata) {
      if (header.metadata.emplace(metadata_key_, text_).second) return true;
      return Fail(error, absl::StrCat("__metadata__: \"", metadata_key_, "\" given twice"));
    }
    if (where_ != Where::kTensor || field_ != kDtype) {
      return Fail(error, absl::StrCat(Place(), ": a string where none belongs"));
    }
    const auto dtype = DtypeByName(text_);
    if (!dtype) return Fail(error, absl::StrCat(Place(), ": unknown dtype \"", text_, "\""));
    entry_.dtype = *dtype;
    return true;
  }

  bool on_number_part(Text, Error&) { return true; }
  bool on_int64(int64_t value, Text, Error& error) {
    if (value < 0) return Fail(error, absl::StrCat(Place(), ": negative number ", value));
    return OnNumber(static_cast<uint64_t>(value), error);
  }
  bool on_uint64(uint64_t value, Text, Error& error) { return OnNumber(value, error); }
  bool on_double(double value, Text, Error& error) {
    return Fail(error, absl::StrCat(Place(), ": ", value, " is no 64-bit whole number"));
  }
  bool on_bool(bool, Error& error) { return Fail(error, absl::StrCat(Place(), ": a boolean")); }
  bool on_null(Error& error) { return Fail(error, absl::StrCat(Place(), ": null")); }
  bool on_comment_part(Text, Error&) { return true; }
  bool on_comment(Text, Error&) { return true; }

 private:
  enum class Where { kStart, kTop, kTensor, kNumbers, kMetadata, kEnd };
  enum Field { kDtype = 1, kShape = 2, kOffsets = 4 };

  bool Enter(Where where) {
    where_ = where;
    return true;
  }

  bool Fail(Error& error, std::string what) {
    problem = std::move(what);
    error = json::error::exception;  // any error stops the parser; `problem` is what is reported
    return false;
  }

  std::string Place() const {
    if (where_ == Where::kTensor || where_ == Where::kNumbers) {
      return absl::StrCat("tensor ", ToAbsl(header.NameOf(entry_)));
    }
    if (where_ == Where::kMetadata) return "__metadata__";
    return where_ == Where::kTop ? absl::StrCat("tensor ", text_) : "header";
  }

  // Keys and strings arrive in parts: `collecting_` says that `text_` already holds the first ones.
  bool Collect(Text part) {
    if (!std::exchange(collecting_, true)) text_.clear();
    text_.append(part.data(), part.size());
    return true;
  }
  void Finish(Text part) {
    Collect(part);
    collecting_ = false;
  }

  void BeginTensor() {
    entry_ = {};
    entry_.name_begin = header.names.size();
    entry_.name_size = static_cast<uint32_t>(text_.size());
    entry_.dims_begin = header.dims.size();
    header.names.insert(header.names.end(), text_.begin(), text_.end());
    seen_ = 0;
  }

  bool OnNumber(uint64_t value, Error& error) {
    if (where_ != Where::kNumbers) {
      return Fail(error, absl::StrCat(Place(), ": a number where none belongs"));
    }
    ++n_numbers_;
    if (field_ == kOffsets) {
      (n_numbers_ == 1 ? entry_.begin : entry_.end) = value;
      return true;
    }
    if (n_numbers_ > SafetensorsFile::kMaxRank) {
      return Fail(error,
                  absl::StrCat(Place(), ": more than ", SafetensorsFile::kMaxRank, " dimensions"));
    }
    header.dims.push_back(value);
    entry_.rank = static_cast<uint32_t>(n_numbers_);
    return true;
  }

  Where where_ = Where::kStart;
  std::string text_;
  std::string metadata_key_;
  bool collecting_ = false;
  bool seen_metadata_ = false;
  SafetensorsHeader::Entry entry_;
  int seen_ = 0;   // bits of Field
  int field_ = 0;  // the one being read
  int n_numbers_ = 0;
};

}  // namespace

std::string_view DtypeName(Dtype dtype) { return kDtypes[static_cast<size_t>(dtype)].name; }
int64_t DtypeBytes(Dtype dtype) { return kDtypes[static_cast<size_t>(dtype)].bytes; }

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view text) {
  json::parse_options options;
  options.max_depth = 3;  // header, tensor, shape
  json::basic_parser<HeaderHandler> parser(options);
  json::error_code error;
  const size_t used = parser.write_some(false, text.data(), text.size(), error);
  HeaderHandler& handler = parser.handler();
  if (!handler.problem.empty()) return absl::InvalidArgumentError(handler.problem);
  if (error == json::error::key_too_large) {
    return absl::InvalidArgumentError(
        absl::StrCat("header byte ", used, ": name longer than ", kMaxNameBytes, " bytes"));
  }
  if (error || !parser.done()) {
    return absl::InvalidArgumentError(
        absl::StrCat("header byte ", used, ": ", error ? error.message() : "incomplete JSON"));
  }
  // Writers pad with spaces; one NUL-terminated variant is known of no writer.
  if (text.find_first_not_of(" \t\r\n", used) != std::string_view::npos) {
    return absl::InvalidArgumentError(absl::StrCat("header byte ", used, ": text after the JSON"));
  }
  return std::move(handler.header);
}

}  // namespace hearth
