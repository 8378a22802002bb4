// Item key → slot: open addressing, at most half full, looked up by many threads and never changed once it is shared.
#ifndef FASTMTR_CORE_KEY_MAP_H
#define FASTMTR_CORE_KEY_MAP_H

#include <cstdint>
#include <memory>

#include "core/arena.h"

namespace fastmtr {

constexpr uint32_t kNoSlot = UINT32_MAX;

class KeyMap {
 public:
  KeyMap() = default;
  explicit KeyMap(uint64_t most);  // room for so many keys

  // Gives keys[i] the slot i. Returns the positions of equal keys, if a key stands twice; else both kNoSlot.
  struct Repeat {
    uint32_t first = kNoSlot, second = kNoSlot;
  };
  Repeat build(const int64_t* keys, uint32_t n);

  void set(int64_t key, uint32_t slot);  // there must be room for it
  uint32_t find(int64_t key) const;      // kNoSlot: not there
  void prefetch(int64_t key) const;

  // Calls each(key, slot) for all keys, in no particular order.
  template <class Each>
  void for_each(const Each& each) const {
    for (size_t i = 0; i < entries_.size(); ++i)
      if (entries_[i].slot != kNoSlot) each(entries_[i].key, entries_[i].slot);
  }

  uint64_t count() const { return count_; }
  size_t bytes() const { return entries_.bytes(); }

 private:
  struct Entry {
    int64_t key = 0;
    uint32_t slot = kNoSlot;
    uint32_t unused = 0;
  };
  size_t home(int64_t key) const;
  size_t place(int64_t key) const;  // of the key's entry, or of the empty one where it belongs

  Aligned<Entry> entries_;
  int shift_ = 63;
  uint64_t count_ = 0;
};

// A map that successive versions of a catalogue share, and the few keys that have changed since it was made.
class KeyIndex {
 public:
  KeyIndex() = default;
  explicit KeyIndex(KeyMap&& all) : all_(std::make_shared<const KeyMap>(std::move(all))) {}

  uint32_t find(int64_t key) const;  // kNoSlot: not there
  // find() for n keys; reads ahead, so that many lookups wait for memory together. Returns how many were not found.
  uint64_t find(const int64_t* keys, uint64_t n, uint32_t* slots) const;

  // This index with other slots for n keys; kNoSlot: the key goes.
  KeyIndex with(const int64_t* keys, const uint32_t* slots, uint64_t n) const;

  uint64_t n_changed() const { return changed_.count(); }
  size_t bytes() const { return (all_ == nullptr ? 0 : all_->bytes()) + changed_.bytes(); }

 private:
  std::shared_ptr<const KeyMap> all_;
  KeyMap changed_;
};

}  // namespace fastmtr
#endif
