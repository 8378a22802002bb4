#include "core/key_map.h"


namespace fastmtr {

namespace {
constexpr uint32_t kGone = UINT32_MAX - 1;  // in KeyIndex::changed_: a key that is there no more
}

KeyMap::KeyMap(uint64_t most) {
  int bits = 1;
  while ((uint64_t{1} << bits) < most * 2) ++bits;
  shift_ = 64 - bits;
  entries_ = Aligned<Entry>(size_t{1} << bits);
}

// Fibonacci hashing of the mixed key: neighbouring keys, and keys that differ in high bits alone, spread over the
// table.
size_t KeyMap::home(int64_t key) const {
  uint64_t x = static_cast<uint64_t>(key);
  x ^= x >> 32;
  x *= 0x9E3779B97F4A7C15u;
  return static_cast<size_t>(x >> shift_);
}

size_t KeyMap::place(int64_t key) const {
  const size_t mask = entries_.size() - 1;
  size_t at = home(key);
  while (entries_[at].slot != kNoSlot && entries_[at].key != key) at = (at + 1) & mask;
  return at;
}

KeyMap::Repeat KeyMap::build(const int64_t* keys, uint32_t n) {
  *this = KeyMap(n);
  for (uint32_t i = 0; i < n; ++i) {
    Entry& at = entries_[place(keys[i])];
    if (at.slot != kNoSlot) return {at.slot, i};
    at.key = keys[i];
    at.slot = i;
  }
  count_ = n;
  return {};
}

void KeyMap::set(int64_t key, uint32_t slot) {
  Entry& at = entries_[place(key)];
  count_ += at.slot == kNoSlot;
  at.key = key;
  at.slot = slot;
}

uint32_t KeyMap::find(int64_t key) const { return entries_.size() == 0 ? kNoSlot : entries_[place(key)].slot; }

void KeyMap::prefetch(int64_t key) const {
  if (entries_.size() != 0) __builtin_prefetch(entries_.data() + home(key));
}

uint32_t KeyIndex::find(int64_t key) const {
  const uint32_t changed = changed_.find(key);
  if (changed == kGone) return kNoSlot;
  return changed != kNoSlot || all_ == nullptr ? changed : all_->find(key);
}

uint64_t KeyIndex::find(const int64_t* keys, uint64_t n, uint32_t* slots) const {
  constexpr uint64_t kAhead = 12;
  uint64_t missing = 0;
  for (uint64_t i = 0; i < n; ++i) {
    if (i + kAhead < n && all_ != nullptr) all_->prefetch(keys[i + kAhead]);
    slots[i] = find(keys[i]);
    missing += slots[i] == kNoSlot;
  }
  return missing;
}

KeyIndex KeyIndex::with(const int64_t* keys, const uint32_t* slots, uint64_t n) const {
  KeyIndex next;
  next.all_ = all_;
  next.changed_ = KeyMap(changed_.count() + n);
  changed_.for_each([&](int64_t key, uint32_t slot) { next.changed_.set(key, slot); });
  for (uint64_t i = 0; i < n; ++i) next.changed_.set(keys[i], slots[i] == kNoSlot ? kGone : slots[i]);
  return next;
}

}  // namespace fastmtr
