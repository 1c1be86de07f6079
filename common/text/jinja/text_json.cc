// json.dumps.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "common/text/jinja/operators.h"
#include "common/text/jinja/text.h"
#include "common/text/jinja/unicode.h"

namespace hearth::jinja {
namespace {

using Kind = Value::Kind;

void AppendUnit(TextBuilder& out, uint32_t unit) {
  char text[16];
  std::snprintf(text, sizeof(text), "\\u%04x", unit);
  out.Append(text);
}

void AppendJsonString(TextBuilder& out, std::string_view text, bool ensure_ascii) {
  out.Append("\"");
  size_t plain = 0;  // where what can be copied as it is begins
  for (size_t i = 0; i < text.size() && !out.is_full(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    if (c >= 0x20 && c != '"' && c != '\\' && (c < 0x80 || !ensure_ascii)) continue;
    out.Append(text.substr(plain, i - plain));
    plain = i + 1;
    static constexpr std::string_view kShort = "\"\\\b\f\n\r\t", kLetters = "\"\\bfnrt";
    if (const size_t k = kShort.find(text[i]); k != std::string_view::npos) {
      out.Append("\\");
      out.Append(kLetters.substr(k, 1));
    } else if (c < 0x80) {
      AppendUnit(out, c);
    } else {
      const size_t n = ByteOffset(text.substr(i, 4), 1);
      const char32_t code_point = DecodeUtf8(text.substr(i, n))[0];
      if (code_point >= 0x10000) AppendUnit(out, 0xD800 + ((code_point - 0x10000) >> 10));
      AppendUnit(out,
                 code_point >= 0x10000 ? 0xDC00 + ((code_point - 0x10000) & 0x3FF) : code_point);
      i += n - 1;
      plain = i + 1;
    }
  }
  out.Append(text.substr(std::min(plain, text.size())));
  out.Append("\"");
}

class JsonWriter {
 public:
  JsonWriter(Runtime& runtime, TextBuilder& out, const JsonStyle& style)
      : runtime_(runtime), out_(out), style_(style) {}

  absl::Status Write(const Value& value, int level) {
    switch (value.kind()) {
      case Kind::kNone:
        out_.Append("null");
        return absl::OkStatus();
      case Kind::kBool:
        out_.Append(value.integer() != 0 ? "true" : "false");
        return absl::OkStatus();
      case Kind::kInt:
      case Kind::kFloat:
        out_.Append(Number(value));
        return absl::OkStatus();
      case Kind::kString:
        AppendJsonString(out_, value.text(), style_.ensure_ascii);
        return absl::OkStatus();
      case Kind::kList:
      case Kind::kTuple:
        return Array(value.items(), level);
      case Kind::kDict:
        return Object(value.dict(), level);
      default:
        return Fail("Object of type ", TypeName(value), " is not JSON serializable");
    }
  }

 private:
  static std::string Number(const Value& value) {
    if (value.is(Kind::kInt)) return std::to_string(value.integer());
    const double number = value.number();
    if (std::isnan(number)) return "NaN";
    if (std::isinf(number)) return number > 0 ? "Infinity" : "-Infinity";
    return FloatRepr(number);
  }

  void Break(int level) {
    if (!style_.indent.has_value()) return;
    out_.Append("\n");
    out_.AppendRepeated(*style_.indent, level);
  }

  absl::Status Array(const Items& items, int level) {
    out_.Append("[");
    for (size_t i = 0; i < items.size() && !out_.is_full(); ++i) {
      if (i > 0) out_.Append(style_.item_separator);
      Break(level + 1);
      HEARTH_RETURN_IF_ERROR(Write(items[i], level + 1));
    }
    if (!items.empty()) Break(level);
    out_.Append("]");
    return absl::OkStatus();
  }

  absl::Status Key(const Value& key) {
    if (key.is_string()) {
      AppendJsonString(out_, key.text(), style_.ensure_ascii);
      return absl::OkStatus();
    }
    if (!key.is_number() && !key.is_none()) {
      return Fail("keys must be str, int, float, bool or None, not ", TypeName(key));
    }
    out_.Append("\"");
    HEARTH_RETURN_IF_ERROR(Write(key, 0));
    out_.Append("\"");
    return absl::OkStatus();
  }

  absl::Status Object(const DictObject& dict, int level) {
    Items order;
    for (size_t i = 0; i < dict.entries.size(); ++i)
      order.push_back(Value(static_cast<int64_t>(i)));
    if (style_.sort_keys) {
      Items keys;
      for (const auto& entry : dict.entries) keys.push_back(entry.first);
      HEARTH_ASSIGN_OR_RETURN(order, SortBy(runtime_, std::move(order), std::move(keys), false));
    }
    out_.Append("{");
    for (size_t i = 0; i < order.size() && !out_.is_full(); ++i) {
      const auto& [key, value] = dict.entries[static_cast<size_t>(order[i].integer())];
      if (i > 0) out_.Append(style_.item_separator);
      Break(level + 1);
      HEARTH_RETURN_IF_ERROR(Key(key));
      out_.Append(style_.key_separator);
      HEARTH_RETURN_IF_ERROR(Write(value, level + 1));
    }
    if (!order.empty()) Break(level);
    out_.Append("}");
    return absl::OkStatus();
  }

  Runtime& runtime_;
  TextBuilder& out_;
  const JsonStyle& style_;
};

}  // namespace

Result DumpJson(Runtime& runtime, const Value& value, const JsonStyle& style) {
  TextBuilder out(runtime);
  HEARTH_RETURN_IF_ERROR(JsonWriter(runtime, out, style).Write(value, 0));
  return out.Finish();
}

}  // namespace hearth::jinja
