#include "core/key_map.h"

#include <algorithm>

namespace fastmtr {

// Fibonacci hashing of the mixed key: neighbouring keys, and keys that differ in high bits alone, spread over the
// table.
size_t KeyMap::home(int64_t key) const {
  uint64_t x = static_cast<uint64_t>(key);
  x ^= x >> 32;
  x *= 0x9E3779B97F4A7C15u;
  return static_cast<size_t>(x >> shift_);
}

KeyMap::Repeat KeyMap::build(const int64_t* keys, uint32_t n) {
  int bits = 1;
  while ((uint64_t{1} << bits) < uint64_t{n} * 2) ++bits;
  shift_ = 64 - bits;
  slots_ = Aligned<Slot>(size_t{1} << bits);
  const size_t mask = slots_.size() - 1;
  for (uint32_t row = 0; row < n; ++row) {
    size_t at = home(keys[row]);
    while (slots_[at].row != kNoRow) {
      if (slots_[at].key == keys[row]) return {slots_[at].row, row};
      at = (at + 1) & mask;
    }
    slots_[at].key = keys[row];
    slots_[at].row = row;
  }
  return {};
}

uint32_t KeyMap::find(int64_t key) const {
  if (slots_.size() == 0) return kNoRow;
  const size_t mask = slots_.size() - 1;
  size_t at = home(key);
  while (slots_[at].row != kNoRow && slots_[at].key != key) at = (at + 1) & mask;
  return slots_[at].row;
}

uint64_t KeyMap::find(const int64_t* keys, uint64_t n, uint32_t* rows) const {
  constexpr uint64_t kAhead = 12;
  uint64_t missing = 0;
  for (uint64_t i = 0; i < n; ++i) {
    if (i + kAhead < n && slots_.size() != 0) __builtin_prefetch(slots_.data() + home(keys[i + kAhead]));
    rows[i] = find(keys[i]);
    missing += rows[i] == kNoRow;
  }
  return missing;
}

}  // namespace fastmtr
