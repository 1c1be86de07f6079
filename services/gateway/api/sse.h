// Server-sent events (WHATWG HTML, section 9.2), as OpenAI's clients read them.
#pragma once

#include <string>
#include <string_view>

namespace hearth::gateway {

// `data` is one line: JSON as we write it has no line breaks.
inline void AppendEvent(std::string_view data, std::string* out) {
  out->append("data: ").append(data).append("\n\n");
}

// What clients skip: keeps proxies from closing a quiet stream.
constexpr std::string_view kSseComment = ": \n\n";

}  // namespace hearth::gateway
