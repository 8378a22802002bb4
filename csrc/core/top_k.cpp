#include "core/top_k.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>

#include "core/key_map.h"

namespace fastmtr {

uint64_t rank_key(float score, uint32_t position) {
  uint32_t order = 0;  // NaN: below -infinity
  if (!std::isnan(score)) {
    const uint32_t bits = std::bit_cast<uint32_t>(score + 0.0f);  // -0 and 0 are one score
    order = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  }
  return uint64_t{order} << 32 | (UINT32_MAX - position);
}

uint32_t position_of(uint64_t key) { return UINT32_MAX - static_cast<uint32_t>(key); }

uint64_t top_k(const float* scores, uint64_t n, const uint32_t* rows, uint64_t k, uint64_t* best) {
  if (k == 0) return 0;
  uint64_t count = 0;
  for (uint64_t i = 0; i < n; ++i) {
    if (rows != nullptr && rows[i] == kNoRow) continue;
    const uint64_t key = rank_key(scores[i], static_cast<uint32_t>(i));
    if (count < k) {
      best[count++] = key;
      std::push_heap(best, best + count, std::greater<>());  // the worst in front
    } else if (key > best[0]) {
      std::pop_heap(best, best + count, std::greater<>());
      best[count - 1] = key;
      std::push_heap(best, best + count, std::greater<>());
    }
  }
  std::sort_heap(best, best + count, std::greater<>());
  return count;
}

}  // namespace fastmtr
