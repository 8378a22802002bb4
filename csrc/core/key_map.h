// Item key → catalogue row: open addressing, at most half full, looked up by many threads and never changed.
#ifndef FASTMTR_CORE_KEY_MAP_H
#define FASTMTR_CORE_KEY_MAP_H

#include <cstdint>

#include "core/arena.h"

namespace fastmtr {

constexpr uint32_t kNoRow = UINT32_MAX;

class KeyMap {
 public:
  KeyMap() = default;

  // Rows of equal keys, if a key stands twice; else both kNoRow.
  struct Repeat {
    uint32_t first = kNoRow, second = kNoRow;
  };
  Repeat build(const int64_t* keys, uint32_t n);

  // The row, or kNoRow.
  uint32_t find(int64_t key) const;
  // find() for n keys; reads ahead, so that many lookups wait for memory together. Returns how many were not found.
  uint64_t find(const int64_t* keys, uint64_t n, uint32_t* rows) const;

  size_t bytes() const { return slots_.bytes(); }

 private:
  struct Slot {
    int64_t key = 0;
    uint32_t row = kNoRow;
    uint32_t unused = 0;
  };
  size_t home(int64_t key) const;

  Aligned<Slot> slots_;
  int shift_ = 63;
};

}  // namespace fastmtr
#endif
