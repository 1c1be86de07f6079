// The limits of what is read from a client, for the server and for the fuzzer of its bytes.
#pragma once

#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <cstddef>
#include <cstdint>

#include "services/gateway/http/message.h"

namespace hearth::gateway {

using HeaderParser = http::request_parser<http::empty_body>;
using BodyParser = http::request_parser<http::string_body>;

constexpr uint32_t kMaxHeaderBytes = 16 << 10;
// Of what is read and not understood yet: a header, a line of a chunked body, what a client sends
// ahead (peer_watch.cc).
constexpr size_t kMaxBufferedBytes = 128 << 10;

// "0\r\n\r\n". With less of a chunked body, Beast 1.81 may stop the process by an assertion.
constexpr size_t kLeastChunkedBody = 5;

inline void Limit(HeaderParser& parser) {
  parser.header_limit(kMaxHeaderBytes);
  parser.body_limit(boost::none);  // a longer one is refused by its name, by the caller
}

// For BodyParser::on_chunk_header: nobody needs chunk extensions, and some have hidden requests.
struct RefuseExtensions {
  void operator()(uint64_t /*size*/, beast::string_view extensions,
                  boost::system::error_code& error) const {
    if (!extensions.empty()) error = http::error::bad_chunk_extension;
  }
};

}  // namespace hearth::gateway
