#include "core/top_k.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

#include "core/key_map.h"

namespace fastmtr {

namespace {
constexpr uint32_t kSign = 0x80000000u;
}

uint64_t rank_key(float score, uint32_t position) {
  uint32_t order = 0;  // NaN: below -infinity
  if (!std::isnan(score)) {
    const uint32_t bits = std::bit_cast<uint32_t>(score + 0.0f);  // -0 and 0 are one score
    order = (bits & kSign) != 0 ? ~bits : bits | kSign;
  }
  return uint64_t{order} << 32 | (UINT32_MAX - position);
}

uint32_t position_of(uint64_t key) { return UINT32_MAX - static_cast<uint32_t>(key); }

float score_of(uint64_t key) {
  const auto order = static_cast<uint32_t>(key >> 32);
  if (order == 0) return std::numeric_limits<float>::quiet_NaN();
  return std::bit_cast<float>((order & kSign) != 0 ? order & ~kSign : ~order);
}

void Best::add(float score, uint32_t position) {
  const uint64_t key = rank_key(score, position);
  if (count_ < k_) {
    keys_[count_++] = key;
    std::push_heap(keys_, keys_ + count_, std::greater<>());  // the worst in front
  } else if (k_ > 0 && key > keys_[0]) {
    std::pop_heap(keys_, keys_ + count_, std::greater<>());
    keys_[count_ - 1] = key;
    std::push_heap(keys_, keys_ + count_, std::greater<>());
  }
}

uint64_t Best::sort() {
  std::sort_heap(keys_, keys_ + count_, std::greater<>());
  return count_;
}

uint64_t top_k(const float* scores, uint64_t n, const uint32_t* slots, uint64_t k, uint64_t* best) {
  Best found(best, k);
  for (uint64_t i = 0; i < n; ++i)
    if (slots == nullptr || slots[i] != kNoSlot) found.add(scores[i], static_cast<uint32_t>(i));
  return found.sort();
}

}  // namespace fastmtr
