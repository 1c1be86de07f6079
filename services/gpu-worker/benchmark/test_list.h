// What `hearth benchmark` shall measure: --tests and --batch.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace hearth::worker {

struct BenchmarkTest {
  enum class Kind { kPrefill, kDecode };
  Kind kind = Kind::kPrefill;
  int64_t tokens = 0;   // of each sequence
  int64_t context = 0;  // tokens before them
  int batch = 1;        // sequences at once

  bool operator==(const BenchmarkTest&) const = default;
};
std::string_view KindName(BenchmarkTest::Kind kind);  // "prefill", "decode"
std::string TestName(const BenchmarkTest& test);      // "decode:128@2048"

inline constexpr int64_t kMaxTestTokens = 1 << 20;
inline constexpr int kMaxTestBatch = 256;

// "prefill:128,decode:32@2048" for each batch of "1,2,4": a test is KIND:TOKENS[@CONTEXT], with k
// for 1024. InvalidArgument quotes the part that is wrong.
absl::StatusOr<std::vector<BenchmarkTest>> ParseTests(std::string_view tests,
                                                      std::string_view batches);

}  // namespace hearth::worker
