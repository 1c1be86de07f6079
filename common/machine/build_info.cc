#include "common/machine/machine_info.h"
#include "hearth_commit.h"

namespace hearth {

BuildInfo ThisBuild() { return {HEARTH_COMMIT, HEARTH_DIRTY}; }

}  // namespace hearth
