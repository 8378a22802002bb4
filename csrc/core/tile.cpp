#include "core/tile.h"

#include <unistd.h>

#include <algorithm>

namespace fastmtr {

namespace {

size_t second_level_cache() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  const long bytes = ::sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (bytes > 0) return static_cast<size_t>(bytes);
#endif
  return 512 * 1024;
}

}  // namespace

size_t tile_rows(size_t floats_a_row, size_t asked) {
  // At least enough rows to use each weight often while it is in the first cache; more than kMost gain nothing.
  constexpr size_t kStep = 32, kMost = 512;
  if (asked > 0) return asked;
  static const size_t budget = second_level_cache() / 2;
  const size_t rows = budget / (std::max<size_t>(floats_a_row, 1) * sizeof(float));
  return std::clamp(rows / kStep * kStep, kStep, kMost);
}

}  // namespace fastmtr
