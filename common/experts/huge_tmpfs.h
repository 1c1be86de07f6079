// A tmpfs of our own whose files lie in huge pages, with no place in any folder: it is reached
// through a descriptor and is gone with the last one. /dev/shm and memfd have 4 KiB pages wherever
// shmem_enabled is "never", which is every distribution's default; a tmpfs decides for itself.
#pragma once

#include <filesystem>

#include "absl/status/statusor.h"
#include "common/base/unique_fd.h"

namespace hearth {

// The root of a new one, mode 0700, as large as the machine's memory. Mounted by this process where
// it may (root), else by a child in a user and mount namespace of its own, which needs no rights.
// Unavailable says what refused it: a sandbox or container without that right, or an old kernel.
absl::StatusOr<UniqueFd> OpenHugeTmpfs();

// The folder that `fd` is, for this process and for children that inherit `fd`.
std::filesystem::path FdFolder(int fd);

}  // namespace hearth
