// How many rows go through the steps together.
#ifndef FASTMTR_CORE_TILE_H
#define FASTMTR_CORE_TILE_H

#include <cstddef>

namespace fastmtr {

// `asked` rows, or with 0 as many as keep the workspace within half of the second-level cache.
size_t tile_rows(size_t floats_a_row, size_t asked);

}  // namespace fastmtr
#endif
