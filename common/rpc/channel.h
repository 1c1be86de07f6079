// Client side: channels with keep-alive (5 s, 3 s for the answer), so that a hung peer is noticed
// in seconds.
#pragma once

#include <grpcpp/channel.h>

#include <memory>
#include <string>

namespace hearth {

enum class ChannelReuse { kShared, kOwnConnection };

// `address`: "unix:/path" or "host:port". Reconnects by itself with backoff 0.1 to 2 s.
// kOwnConnection: never shares a connection with other channels of this process.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address,
                                           ChannelReuse reuse = ChannelReuse::kShared);

}  // namespace hearth
