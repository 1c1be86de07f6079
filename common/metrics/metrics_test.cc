#include "common/metrics/metrics.h"

#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>
#include <string>

#include "common/testing/status_matchers.h"

namespace hearth {
namespace {

using ::hearth::testing::IsStatus;
using ::testing::HasSubstr;
namespace asio = boost::asio;

std::string Get(int port, const std::string& request) {
  asio::io_context io;
  asio::ip::tcp::socket socket(io);
  socket.connect({asio::ip::make_address("127.0.0.1"), static_cast<uint16_t>(port)});
  asio::write(socket, asio::buffer(request));
  std::string answer;
  boost::system::error_code error;
  asio::read(socket, asio::dynamic_buffer(answer), error);
  return answer;
}

TEST(MetricsServer, ServesWhatWasCounted) {
  auto registry = std::make_shared<prometheus::Registry>();
  auto& counter = AddCounter(*registry, "hearth_test_total", "Things.", {{"kind", "good"}});
  auto& gauge = AddGauge(*registry, "hearth_test_bytes", "Bytes.");
  counter.Increment(3);
  ASSERT_OK_AND_ASSIGN(const auto server,
                       MetricsServer::Start("127.0.0.1:0", registry, [&] { gauge.Set(42); }));
  const std::string answer = Get(server->port(), "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(answer, HasSubstr("200 OK"));
  EXPECT_THAT(answer, HasSubstr("hearth_test_total{kind=\"good\"} 3"));
  EXPECT_THAT(answer, HasSubstr("hearth_test_bytes 42"));
  EXPECT_THAT(answer, HasSubstr("process_resident_memory_bytes"));
  EXPECT_THAT(Get(server->port(), "GET /health HTTP/1.1\r\nHost: x\r\n\r\n"), HasSubstr("ok"));
  EXPECT_THAT(Get(server->port(), "GET /x HTTP/1.1\r\nHost: x\r\n\r\n"), HasSubstr("404"));
  EXPECT_THAT(Get(server->port(), "PUT /metrics HTTP/1.1\r\nHost: x\r\n\r\n"), HasSubstr("405"));
}

TEST(MetricsServer, BadAddressesAreRefused) {
  const auto registry = std::make_shared<prometheus::Registry>();
  EXPECT_THAT(MetricsServer::Start("nonsense", registry, nullptr),
              IsStatus(absl::StatusCode::kInvalidArgument, HasSubstr("HOST:PORT")));
  EXPECT_FALSE(MetricsServer::Start("127.0.0.1:99999", registry, nullptr).ok());
  ASSERT_OK_AND_ASSIGN(const auto first, MetricsServer::Start("127.0.0.1:0", registry, nullptr));
  EXPECT_THAT(MetricsServer::Start("127.0.0.1:" + std::to_string(first->port()), registry, nullptr),
              IsStatus(absl::StatusCode::kAlreadyExists, HasSubstr("127.0.0.1")));
}

}  // namespace
}  // namespace hearth
