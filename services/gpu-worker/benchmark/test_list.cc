#include "services/gpu-worker/benchmark/test_list.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/status.h"
#include "common/base/status_macros.h"

namespace hearth::worker {
namespace {

absl::StatusOr<int64_t> ParseCount(std::string_view text, std::string_view test, const char* what,
                                   int64_t min, int64_t max) {
  int64_t factor = 1;
  std::string_view digits = text;
  if (digits.ends_with('k')) {
    factor = 1024;
    digits.remove_suffix(1);
  }
  const bool is_number =
      !digits.empty() && digits.size() < 10 && std::ranges::all_of(digits, absl::ascii_isdigit);
  int64_t count = 0;
  if (!is_number || !absl::SimpleAtoi(ToAbsl(digits), &count) || count * factor < min ||
      count * factor > max) {
    return absl::InvalidArgumentError(absl::StrCat("'", ToAbsl(test), "': ", what, " is '",
                                                   ToAbsl(text), "', allowed are ", min, " to ",
                                                   max));
  }
  return count * factor;
}

absl::StatusOr<BenchmarkTest> ParseTest(std::string_view text) {
  BenchmarkTest test;
  const size_t colon = text.find(':');
  const std::string_view kind = text.substr(0, colon);
  if (kind == "decode") {
    test.kind = BenchmarkTest::Kind::kDecode;
  } else if (kind != "prefill") {
    return absl::InvalidArgumentError(
        absl::StrCat("'", ToAbsl(text), "' is no test: allowed are prefill:TOKENS[@CONTEXT] and ",
                     "decode:TOKENS[@CONTEXT], separated by commas"));
  }
  const std::string_view counts = colon == std::string_view::npos ? "" : text.substr(colon + 1);
  const size_t at = counts.find('@');
  HEARTH_ASSIGN_OR_RETURN(test.tokens, ParseCount(counts.substr(0, at), text,
                                                  "the number of tokens", 1, kMaxTestTokens));
  if (at != std::string_view::npos) {
    HEARTH_ASSIGN_OR_RETURN(
        test.context, ParseCount(counts.substr(at + 1), text, "the context", 0, kMaxTestTokens));
  }
  return test;
}

}  // namespace

std::string_view KindName(BenchmarkTest::Kind kind) {
  return kind == BenchmarkTest::Kind::kPrefill ? "prefill" : "decode";
}

std::string TestName(const BenchmarkTest& test) {
  return absl::StrCat(ToAbsl(KindName(test.kind)), ":", test.tokens, "@", test.context);
}

absl::StatusOr<std::vector<BenchmarkTest>> ParseTests(std::string_view tests,
                                                      std::string_view batches) {
  std::vector<BenchmarkTest> list;
  for (const absl::string_view batch : absl::StrSplit(ToAbsl(batches), ',')) {
    HEARTH_ASSIGN_OR_RETURN(const int64_t n, ParseCount(FromAbsl(batch), FromAbsl(batch),
                                                        "the batch", 1, kMaxTestBatch));
    for (const absl::string_view text : absl::StrSplit(ToAbsl(tests), ',')) {
      HEARTH_ASSIGN_OR_RETURN(BenchmarkTest test, ParseTest(FromAbsl(text)));
      test.batch = static_cast<int>(n);
      if (std::ranges::find(list, test) != list.end()) {
        return absl::InvalidArgumentError(
            absl::StrCat("'", text, "' with batch ", n, " is there twice"));
      }
      list.push_back(test);
    }
  }
  return list;
}

}  // namespace hearth::worker
