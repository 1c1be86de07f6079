// CHECK: an invariant of ours, on in every build. Never for files, peers, clients or devices.
#pragma once

#include <cstdio>
#include <cstdlib>

#define HEARTH_CHECK(condition)                                                          \
  do {                                                                                   \
    if (!(condition)) [[unlikely]] {                                                     \
      std::fprintf(stderr, "%s:%d: CHECK failed: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                      \
    }                                                                                    \
  } while (false)
