// Chat messages of the API as the text that the model reads.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "common/text/chat_template.h"
#include "hearth/v1/inference.pb.h"

namespace hearth::worker {

// InvalidArgument, naming the field, for unknown roles, broken JSON, a tool message without its
// call's id, and what the template refuses. `chat_template` may be null: FailedPrecondition.
absl::StatusOr<std::string> RenderChat(const ChatTemplate* chat_template,
                                       const v1::ChatPrompt& chat);

}  // namespace hearth::worker
