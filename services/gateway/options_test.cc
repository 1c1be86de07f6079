#include "services/gateway/options.h"

#include <gtest/gtest.h>

#include <vector>

namespace hearth::gateway {
namespace {

ParsedCommandLine Parse(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "hearth-gateway");
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  return ParseCommandLine(static_cast<int>(argv.size()), argv.data());
}

TEST(Options, TheDefaultIsLoopbackAndTheRunFoldersWorker) {
  const auto parsed = Parse({"--run-dir", "/run/x"});
  ASSERT_TRUE(parsed.options);
  EXPECT_EQ(parsed.options->host, "127.0.0.1");
  EXPECT_EQ(parsed.options->port, 8080);
  EXPECT_EQ(parsed.options->worker, "unix:/run/x/worker.sock");
  EXPECT_TRUE(parsed.options->allowed_origins.empty());
}

TEST(Options, AddressesAreHostAndPort) {
  EXPECT_EQ(Parse({"--listen", "[::1]:0"}).options->host, "::1");
  EXPECT_EQ(Parse({"--listen", "0.0.0.0:65535"}).options->port, 65535);
  for (const char* bad : {"", ":80", "[]:80", "localhost", "localhost:", "localhost:x",
                          "localhost:65536", "localhost:-1"}) {
    const auto parsed = Parse({"--listen", bad});
    EXPECT_FALSE(parsed.options) << bad;
    EXPECT_EQ(parsed.exit_code, 2) << bad;
  }
}

TEST(Options, NumbersHaveBounds) {
  const std::vector<std::vector<std::string>> rows = {{"--max-connections", "0"},
                                                      {"--max-connections", "x"},
                                                      {"--max-requests", "0"},
                                                      {"--max-body-bytes", "1023"},
                                                      {"--max-body-bytes", "16777217"},
                                                      {"--request-timeout", "0"},
                                                      {"--request-timeout", "nan"},
                                                      {"--grace-seconds", "-1"},
                                                      {"--grace-seconds", "3601"},
                                                      {"--log-level", "loud"},
                                                      {"--unknown", "1"}};
  for (const auto& row : rows) EXPECT_EQ(Parse(row).exit_code, 2) << row[0] << " " << row[1];
  const auto good = Parse({"--grace-seconds", "0.25", "--request-timeout", "1.5"});
  EXPECT_EQ(good.options->grace.count(), 250);
  EXPECT_EQ(good.options->request_timeout.count(), 1500);
}

TEST(Options, NamesRepeat) {
  const auto parsed =
      Parse({"--allowed-host", "a", "--allowed-host", "b", "--allowed-origin", "*"});
  EXPECT_EQ(parsed.options->allowed_hosts, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(parsed.options->allowed_origins, (std::vector<std::string>{"*"}));
}

TEST(Options, HelpIsNoMistake) { EXPECT_EQ(Parse({"--help"}).exit_code, 0); }

}  // namespace
}  // namespace hearth::gateway
