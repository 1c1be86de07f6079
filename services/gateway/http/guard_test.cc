// Who may ask, and what paths there are.
#include "services/gateway/http/guard.h"

#include <cstdlib>
#include <fstream>

#include "common/testing/status_matchers.h"
#include "services/gateway/http/request_id.h"
#include "services/gateway/http/route.h"

namespace hearth::gateway {
namespace {

using ::hearth::testing::IsStatus;
using ::testing::_;
using ::testing::HasSubstr;

Guard MakeGuard(std::vector<std::string> hosts = {}, std::vector<std::string> origins = {}) {
  return *Guard::Create(std::move(hosts), std::move(origins), "");
}
HttpHeader Header(const char* host, const char* origin = nullptr) {
  HttpHeader header;
  header.version(11);
  if (host != nullptr) header.set(http::field::host, host);
  if (origin != nullptr) header.set(http::field::origin, origin);
  return header;
}

TEST(Guard, LoopbackNamesAndAddressesAreTheServersOwn) {
  const Guard guard = MakeGuard();
  for (const char* host : {"localhost", "localhost:8080", "LOCALHOST:80", "a.localhost",
                           "127.0.0.1", "127.0.0.1:1", "[::1]:8080", "[::1]", "192.168.1.5:8080"}) {
    EXPECT_TRUE(guard.IsAllowedHost(host)) << host;
  }
  for (const char* host :
       {"evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example",
        "notlocalhost", "", ":80", "[", "[evil]", "2130706433", "0x7f.1"}) {
    EXPECT_FALSE(guard.IsAllowedHost(host)) << host;
  }
}

TEST(Guard, NamesCanBeAllowed) {
  const Guard guard = MakeGuard({"Chat.Example"});
  EXPECT_TRUE(guard.IsAllowedHost("chat.example:443"));
  EXPECT_TRUE(guard.IsAllowedHost("CHAT.example"));
  EXPECT_FALSE(guard.IsAllowedHost("www.chat.example"));
}

// S12's matrix, the part of Host and Origin.
TEST(Guard, OnlyTheServersOwnPagesAndAllowedOnesMayCall) {
  const Guard guard = MakeGuard({"chat.example"}, {"https://app.example"});
  const struct {
    const char* host;
    const char* origin;
    bool is_allowed;
  } rows[] = {
      {"localhost:80", nullptr, true},
      {"localhost:80", "http://localhost:80", true},
      {"localhost:80", "http://localhost:81", false},
      {"localhost:80", "https://localhost:80", false},
      {"localhost:80", "http://localhost", false},
      {"localhost:80", "http://127.0.0.1:80", false},
      {"localhost:80", "http://evil.example", false},
      {"localhost:80", "null", false},
      {"localhost:80", "https://app.example", true},
      {"localhost:80", "https://app.example.evil", false},
      {"localhost:80", "http://app.example", false},
      {"127.0.0.1:80", "http://127.0.0.1:80", true},
      {"chat.example", "http://chat.example", true},
      {"chat.example", "https://app.example", true},
      {"evil.example", nullptr, false},
      {"evil.example", "http://evil.example", false},
      {"evil.example", "https://app.example", false},
  };
  for (const auto& row : rows) {
    const absl::Status status = guard.CheckOrigins(Header(row.host, row.origin));
    EXPECT_EQ(status.ok(), row.is_allowed) << row.host << " " << (row.origin ? row.origin : "-");
    if (!row.is_allowed) {
      EXPECT_THAT(status, IsStatus(absl::StatusCode::kPermissionDenied, _));
    }
  }
}

TEST(Guard, AMissingHostIsRefusedInHttp11Only) {
  const Guard guard = MakeGuard();
  EXPECT_THAT(guard.CheckOrigins(Header(nullptr)),
              IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("Host")));
  HttpHeader old = Header(nullptr);
  old.version(10);
  EXPECT_OK(guard.CheckOrigins(old));
}

TEST(Guard, OtherOriginsSeeTheAnswerOnlyWhereAllowedAndNeverWithCredentials) {
  const Guard guard = MakeGuard({}, {"https://app.example"});
  EXPECT_TRUE(guard.CorsHeaders(Header("localhost")).empty());
  EXPECT_TRUE(guard.CorsHeaders(Header("localhost", "http://localhost")).empty());
  const auto headers = guard.CorsHeaders(Header("localhost", "https://app.example"));
  ASSERT_FALSE(headers.empty());
  EXPECT_EQ(headers[0], std::pair(http::field::access_control_allow_origin,
                                  std::string("https://app.example")));
  for (const auto& [name, value] : headers) {
    EXPECT_NE(name, http::field::access_control_allow_credentials);
  }
  EXPECT_TRUE(MakeGuard({}, {"*"}).IsAllowedOrigin("null", "localhost"));
}

class GuardKeys : public ::testing::Test {
 protected:
  ~GuardKeys() override { std::filesystem::remove(file_); }
  absl::StatusOr<Guard> WithKeys(const std::string& text) {
    std::ofstream(file_) << text;
    return Guard::Create({}, {}, file_);
  }
  static absl::Status Check(const Guard& guard, const char* authorization) {
    HttpHeader header = Header("localhost");
    if (authorization != nullptr) header.set(http::field::authorization, authorization);
    return guard.CheckKey(header);
  }
  const std::filesystem::path file_ = [] {
    std::string name = ::testing::TempDir() + "hearth-keys-XXXXXX";
    ::close(::mkstemp(name.data()));
    return name;
  }();
};

TEST_F(GuardKeys, OneOfTheFilesKeysIsAskedFor) {
  ASSERT_OK_AND_ASSIGN(const Guard guard, WithKeys("sk-one\r\n\n  sk-two  \n"));
  EXPECT_OK(Check(guard, "Bearer sk-one"));
  EXPECT_OK(Check(guard, "bearer  sk-two "));
  for (const char* bad : {"Bearer sk-on", "Bearer sk-one2", "Bearer ", "Bearer", "sk-one",
                          "Basic sk-one", "", "Bearer sk-one sk-two"}) {
    EXPECT_THAT(Check(guard, bad), IsStatus(absl::StatusCode::kUnauthenticated, _)) << bad;
  }
  EXPECT_THAT(Check(guard, nullptr), IsStatus(absl::StatusCode::kUnauthenticated, _));
}

TEST_F(GuardKeys, WithoutAFileNoneIsAskedForAndAnEmptyFileIsAMistake) {
  EXPECT_OK(Check(MakeGuard(), nullptr));
  EXPECT_THAT(WithKeys("\n \n"), IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("no key")));
  EXPECT_FALSE(Guard::Create({}, {}, "/nonexistent/keys").ok());
}

TEST(Route, PathsAreFoundWithAndWithoutAQuery) {
  std::string model;
  EXPECT_EQ(FindRoute("/v1/chat/completions", &model)->endpoint, kChat);
  EXPECT_EQ(FindRoute("/v1/completions?x=1", &model)->endpoint, kCompletion);
  EXPECT_EQ(FindRoute("/health?", &model)->page, Page::kHealth);
  for (const char* unknown : {"", "*", "/v1", "/v1/models/", "/v1/chat/completions/", "//health",
                              "/Health", "/../health", "http://localhost/health"}) {
    EXPECT_FALSE(FindRoute(unknown, &model)) << unknown;
  }
}

TEST(Route, AModelsNameIsDecoded) {
  std::string model;
  EXPECT_EQ(FindRoute("/v1/models/Qwen%2FQwen3%20Next?x", &model)->page, Page::kModel);
  EXPECT_EQ(model, "Qwen/Qwen3 Next");
  for (const char* bad : {"/v1/models/a%", "/v1/models/%2", "/v1/models/%zz"}) {
    EXPECT_FALSE(FindRoute(bad, &model)) << bad;
  }
}

TEST(Route, OnlyProbesPassWithoutAKey) {
  std::string model;
  for (const char* path : {"/", "/health", "/ready", "/metrics"}) {
    EXPECT_FALSE(FindRoute(path, &model)->needs_key) << path;
  }
  for (const char* path : {"/v1/models", "/v1/models/a", "/v1/chat/completions", "/v1/completions",
                           "/tokenize", "/detokenize", "/apply-template"}) {
    EXPECT_TRUE(FindRoute(path, &model)->needs_key) << path;
  }
}

TEST(RequestId, AFitOneIsKept) {
  HttpHeader header;
  header.set("x-request-id", "a.B-9_");
  EXPECT_EQ(RequestIdOf(header), "a.B-9_");
  for (const std::string& bad : {std::string(), std::string("a b"), std::string("a\"b"),
                                 std::string(65, 'x'), std::string("\xc3\xa9")}) {
    header.set("x-request-id", bad);
    EXPECT_NE(RequestIdOf(header), bad);
    EXPECT_EQ(RequestIdOf(header).size(), 24u);
  }
  EXPECT_NE(NewRequestId(), NewRequestId());
}

}  // namespace
}  // namespace hearth::gateway
