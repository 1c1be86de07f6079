#include "common/text/jinja/format.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "common/text/jinja/operators.h"
#include "common/text/jinja/text.h"
#include "common/text/jinja/unicode.h"

namespace hearth::jinja {
namespace {

// More digits than any number has; bounds what snprintf writes.
constexpr int64_t kMaxPrecision = 1000;

std::string GroupThousands(const std::string& digits) {
  size_t end = digits.find_first_not_of("0123456789");
  if (end == std::string::npos) end = digits.size();
  std::string out;
  for (size_t i = 0; i < end; ++i) {
    if (i > 0 && (end - i) % 3 == 0) out.push_back(',');
    out.push_back(digits[i]);
  }
  return out + digits.substr(end);
}

std::string FloatDigits(const FormatSpec& spec, char type, double magnitude) {
  if (std::isnan(magnitude)) return "nan";
  if (std::isinf(magnitude)) return "inf";
  const char form[] = {'%', '.', '*', type, '\0'};
  const int precision = static_cast<int>(spec.precision < 0 ? 6 : spec.precision);
  std::string text(static_cast<size_t>(std::snprintf(nullptr, 0, form, precision, magnitude)),
                   '\0');
  std::snprintf(text.data(), text.size() + 1, form, precision, magnitude);
  return text;
}

std::string IntegerDigits(char type, uint64_t magnitude, bool alternate) {
  char buffer[80];
  if (type == 'x' || type == 'X' || type == 'o') {
    const char form[] = {'%', 'l', type, '\0'};
    std::snprintf(buffer, sizeof(buffer), form, static_cast<unsigned long>(magnitude));
    return (alternate ? std::string("0") + type : std::string()) + buffer;
  }
  if (type != 'b') return std::to_string(magnitude);
  std::string bits;
  do bits.insert(bits.begin(), static_cast<char>('0' + (magnitude & 1)));
  while ((magnitude >>= 1) != 0);
  return (alternate ? "0b" : "") + bits;
}

// One % conversion: reads its flags at `at`, takes arguments, appends.
class PercentFormatter {
 public:
  PercentFormatter(Runtime& runtime, const std::string& format, const Value& arguments)
      : runtime_(runtime), format_(format), arguments_(arguments), out_(runtime) {}

  Result Run() {
    size_t at = 0;
    while (at < format_.size()) {
      const size_t percent = std::min(format_.find('%', at), format_.size());
      out_.Append(std::string_view(format_).substr(at, percent - at));
      at = percent + 1;
      if (percent < format_.size()) HEARTH_RETURN_IF_ERROR(Conversion(at));
      if (out_.is_full()) break;
    }
    const bool all_used =
        arguments_.is(Value::Kind::kTuple)
            ? next_ >= arguments_.items().size()
            : next_ > 0 || arguments_.is_dict() || arguments_.is(Value::Kind::kList);
    if (!all_used) return Fail("not all arguments converted during string formatting");
    return out_.Finish();
  }

 private:
  Result Next() {
    if (arguments_.is(Value::Kind::kTuple)) {
      if (next_ < arguments_.items().size()) return arguments_.items()[next_++];
    } else if (next_++ == 0) {
      return arguments_;
    }
    return Fail("not enough arguments for format string");
  }

  Result Named(size_t& at) {
    const size_t end = format_.find(')', at);
    if (end == std::string::npos) return Fail("incomplete format key");
    if (!arguments_.is_dict()) return Fail("format requires a mapping");
    const Value* value =
        arguments_.dict().Find(std::string_view(format_).substr(at + 1, end - at - 1));
    if (value == nullptr)
      return Fail(QuotedRepr(std::string_view(format_).substr(at + 1, end - at - 1)));
    at = end + 1;
    return *value;
  }

  absl::StatusOr<int64_t> Count(size_t& at) {
    if (at >= format_.size() || format_[at] != '*') return ReadCount(runtime_, format_, at);
    ++at;
    HEARTH_ASSIGN_OR_RETURN(const Value value, Next());
    if (!value.is_integer()) return Fail("* wants int");
    if (std::abs(value.number()) > static_cast<double>(runtime_.max_text_bytes()))
      return runtime_.TooLong();
    return value.integer();
  }

  absl::Status Conversion(size_t& at) {
    FormatSpec spec;
    std::optional<Value> value;
    if (at < format_.size() && format_[at] == '(') {
      HEARTH_ASSIGN_OR_RETURN(value, Named(at));
    }
    for (; at < format_.size() &&
           std::string_view("-+ #0").find(format_[at]) != std::string_view::npos;
         ++at) {
      if (format_[at] == '-') spec.align = '<';
      if (format_[at] == '+' || (format_[at] == ' ' && spec.sign != '+')) spec.sign = format_[at];
      if (format_[at] == '#') spec.alternate = true;
      if (format_[at] == '0') spec.fill = "0";
    }
    HEARTH_ASSIGN_OR_RETURN(spec.width, Count(at));
    if (spec.width < 0) spec.align = '<';
    spec.width = std::abs(spec.width);
    if (at < format_.size() && format_[at] == '.') {
      ++at;
      HEARTH_ASSIGN_OR_RETURN(spec.precision, Count(at));
    }
    if (at >= format_.size()) return Fail("incomplete format");
    spec.type = format_[at++];
    if (spec.type == '%') {
      out_.Append("%");
      return absl::OkStatus();
    }
    if (!value.has_value()) {
      HEARTH_ASSIGN_OR_RETURN(value, Next());
    }
    return Convert(spec, *value);
  }

  absl::Status Convert(FormatSpec& spec, const Value& value) {
    if (spec.type == 's' || spec.type == 'r') {
      HEARTH_ASSIGN_OR_RETURN(Value text,
                              spec.type == 's' ? Str(runtime_, value) : Repr(runtime_, value));
      if (spec.precision >= 0 && spec.precision < text.string().n_code_points) {
        text = Value(text.text().substr(0, ByteOffset(text.text(), spec.precision)));
      }
      spec.fill = " ";
      AppendPadded(out_, spec, text.text(), '>');
      return absl::OkStatus();
    }
    if (std::string_view("diufFeEgGxXo").find(spec.type) == std::string_view::npos) {
      return Fail("unsupported format character '", std::string(1, spec.type), "'");
    }
    HEARTH_RETURN_IF_ERROR(CheckDefined(value));
    if (!value.is_number()) {
      return Fail("%", std::string(1, spec.type), " format: a real number is required, not ",
                  TypeName(value));
    }
    const bool is_decimal = spec.type == 'd' || spec.type == 'i' || spec.type == 'u';
    if (is_decimal) spec.type = 'd';
    Value number = value;
    if (is_decimal && value.is(Value::Kind::kFloat)) {
      if (!(std::abs(value.number()) < 9e18)) return Fail("cannot convert this float to integer");
      number = Value(static_cast<int64_t>(value.number()));
    }
    HEARTH_ASSIGN_OR_RETURN(const std::string text, FormatNumber(spec, number));
    if (spec.align == '<') spec.fill = " ";
    AppendPadded(out_, spec, text, spec.fill == "0" ? '=' : '>');
    return absl::OkStatus();
  }

  Runtime& runtime_;
  const std::string& format_;
  const Value& arguments_;
  TextBuilder out_;
  size_t next_ = 0;
};

}  // namespace

absl::StatusOr<int64_t> ReadCount(const Runtime& runtime, std::string_view text, size_t& at) {
  int64_t count = 0;
  for (; at < text.size() && text[at] >= '0' && text[at] <= '9'; ++at) {
    count = count * 10 + (text[at] - '0');
    if (count > runtime.limits().max_output_bytes) return runtime.TooLong();
  }
  return count;
}

absl::StatusOr<std::string> FormatNumber(const FormatSpec& spec, const Value& value) {
  if (spec.precision > kMaxPrecision) return Fail("precision too big");
  const bool is_float_type = std::string_view("fFeEgG%").find(spec.type) != std::string_view::npos;
  std::string digits;
  bool is_negative = false;
  if (is_float_type || (value.is(Value::Kind::kFloat) && spec.type == '\0')) {
    const double number = value.number() * (spec.type == '%' ? 100 : 1);
    is_negative = std::signbit(number) && !std::isnan(number);
    const double magnitude = std::abs(number);
    if (spec.type == '\0' && spec.precision < 0) {
      digits = FloatRepr(magnitude);
    } else {
      digits = FloatDigits(spec,
                           spec.type == '%'    ? 'f'
                           : spec.type == '\0' ? 'g'
                                               : spec.type,
                           magnitude);
    }
    if (spec.type == '%') digits += "%";
  } else {
    if (!value.is_integer()) {
      return Fail("%", std::string(1, spec.type), " format: an integer is required, not ",
                  TypeName(value));
    }
    is_negative = value.integer() < 0;
    const auto bits = static_cast<uint64_t>(value.integer());
    digits = IntegerDigits(spec.type, is_negative ? ~bits + 1 : bits, spec.alternate);
    if (spec.precision > static_cast<int64_t>(digits.size())) {
      digits.insert(0, static_cast<size_t>(spec.precision) - digits.size(), '0');
    }
  }
  if (spec.comma) digits = GroupThousands(digits);
  if (is_negative) return "-" + digits;
  return spec.sign == '-' ? digits : std::string(1, spec.sign) + digits;
}

void AppendPadded(TextBuilder& out, const FormatSpec& spec, const std::string& text,
                  char default_align) {
  const int64_t missing = std::max<int64_t>(0, spec.width - CountCodePoints(text));
  const char align = spec.align == '\0' ? default_align : spec.align;
  const size_t sign = align == '=' && !text.empty() &&
                      std::string_view("+- ").find(text[0]) != std::string_view::npos;
  const int64_t before = align == '<' ? 0 : align == '^' ? missing / 2 : missing;
  out.Append(std::string_view(text).substr(0, sign));
  out.AppendRepeated(spec.fill, before);
  out.Append(std::string_view(text).substr(sign));
  out.AppendRepeated(spec.fill, missing - before);
}

Result FormatPercent(Runtime& runtime, const std::string& format, const Value& arguments) {
  return PercentFormatter(runtime, format, arguments).Run();
}

}  // namespace hearth::jinja
