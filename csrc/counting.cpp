#include "counting.h"

#include <bit>
#include <cstring>
#include <tuple>
#include <utility>

namespace fastmtr {
namespace {

// A hash table of distinct values: a word that tells most of them apart, how long the value is, its number and its
// count.
class Table {
 public:
  struct Slot {
    uint64_t word;
    int64_t count;
    uint32_t length;
    uint32_t number;  // from 1 on; 0: empty
  };

  // The place to look at first. Short texts of one language differ in few bits; the products spread them.
  size_t home(uint64_t word, uint32_t length) const {
    uint64_t x = (word ^ length) * 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 32)) * 0xD6E8FEB86659FD93u;
    return x >> shift_;
  }

  void fetch(size_t at) const { __builtin_prefetch(&slots_[at]); }

  // Counts a value from its home on; true if it is new. `same(number)` tells whether a value of that word is it.
  template <class Same>
  bool add(size_t at, uint64_t word, uint32_t length, int64_t weight, const Same& same) {
    for (;; at = (at + 1) & (slots_.size() - 1)) {
      Slot& slot = slots_[at];
      if (slot.word == word && slot.length == length && slot.number && same(slot.number - 1)) {
        slot.count += weight;
        return false;
      }
      if (slot.number) continue;
      if (size_ == std::numeric_limits<uint32_t>::max() - 1)
        throw std::length_error("more than 4 billion different values");
      slot = {word, weight, length, ++size_};
      return true;
    }
  }

  // To be called between blocks: homes change.
  void make_room(size_t values) {
    while (2 * (size_ + values) > slots_.size()) grow();
  }

  std::vector<int64_t> counts() const {
    std::vector<int64_t> result(size_);
    for (const Slot& slot : slots_)
      if (slot.number) result[slot.number - 1] = slot.count;
    return result;
  }

 private:
  void grow() {
    std::vector<Slot> old(4 * slots_.size());
    old.swap(slots_);
    shift_ -= 2;
    for (const Slot& slot : old) {
      if (!slot.number) continue;
      size_t at = home(slot.word, slot.length);
      while (slots_[at].number) at = (at + 1) & (slots_.size() - 1);
      slots_[at] = slot;
    }
  }

  std::vector<Slot> slots_ = std::vector<Slot>(1 << 10);
  int shift_ = 64 - 10;
  uint32_t size_ = 0;
};

uint64_t load(const uint8_t* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

// All of a text of up to eight bytes; a hash of a longer one. `limit` is where the memory that may be read ends.
uint64_t word_of(Text text, const uint8_t* limit) {
  if (text.size == 0) return 0;  // there need be no memory at all
  if (text.size <= 8) {
    if (std::endian::native == std::endian::little && limit - text.bytes >= 8)
      return load(text.bytes) & (~uint64_t{0} >> (64 - 8 * text.size));
    uint64_t word = 0;
    std::memcpy(&word, text.bytes, text.size);
    return word;
  }
  uint64_t word = 0;
  const uint8_t *at = text.bytes, *end = text.bytes + text.size;
  for (; end - at > 8; at += 8) word = ((word ^ (word >> 29)) + load(at)) * 0x9FB21C651E98DF25u;
  return ((word ^ (word >> 29)) + load(end - 8)) * 0x9FB21C651E98DF25u;
}

constexpr int64_t kBlock = 32;  // values whose slots are fetched ahead

// Counts the n values whose word and length are `word(row)`; calls note(row) for each new one, in their order.
template <class Word, class Same, class Note>
std::vector<int64_t> count(int64_t n, const uint8_t* valid, const int64_t* weights, const Word& word, const Same& same,
                           const Note& note) {
  Table table;
  uint64_t words[kBlock];
  uint32_t lengths[kBlock];
  size_t homes[kBlock];
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t size = std::min(kBlock, n - start);
    table.make_room(kBlock);
    for (int64_t i = 0; i < size; ++i) {
      std::tie(words[i], lengths[i]) = word(start + i);
      homes[i] = table.home(words[i], lengths[i]);
      table.fetch(homes[i]);
    }
    for (int64_t i = 0; i < size; ++i) {
      const int64_t row = start + i;
      const int64_t weight = valid && !valid[row] ? 0 : weights ? weights[row] : 1;
      if (weight == 0) continue;
      if (table.add(homes[i], words[i], lengths[i], weight, [&](uint32_t other) { return same(other, row); }))
        note(row);
    }
  }
  return table.counts();
}

// The first eight bytes as a number that is ordered as they are; what is not there is 0.
uint64_t prefix_of(Text text, const uint8_t* limit) {
  const uint64_t word = text.size <= 8 ? word_of(text, limit) : load(text.bytes);
  return std::endian::native == std::endian::little ? __builtin_bswap64(word) : word;
}

struct Place {
  uint64_t order;  // the larger the count, the smaller
  uint64_t prefix;
  int64_t row;
};

// Sorts by order, then prefix: byte by byte from the last one on, leaving out bytes in which all are alike.
void sort_places(std::vector<Place>& places) {
  std::vector<Place> sorted(places.size());
  for (uint64_t Place::*key : {&Place::prefix, &Place::order})
    for (int shift = 0; shift < 64; shift += 8) {
      size_t starts[257] = {};
      const auto byte = [&](const Place& place) { return (place.*key >> shift) & 255; };
      for (const Place& place : places) ++starts[byte(place) + 1];
      if (std::find(starts, starts + 257, places.size()) != starts + 257) continue;
      for (int i = 0; i < 256; ++i) starts[i + 1] += starts[i];
      for (const Place& place : places) sorted[starts[byte(place)]++] = place;
      places.swap(sorted);
    }
}

}  // namespace

IntCounts count_ints(const int64_t* values, int64_t n, const uint8_t* valid, const int64_t* weights) {
  IntCounts result;
  result.counts = count(
      n, valid, weights, [&](int64_t i) { return std::pair(static_cast<uint64_t>(values[i]), uint32_t{8}); },
      [](uint32_t, int64_t) { return true; }, [&](int64_t i) { result.values.push_back(values[i]); });
  return result;
}

template <class Offset>
TextCounts count_texts(const Texts<Offset>& texts, int64_t n, const uint8_t* valid, const int64_t* weights) {
  TextCounts result;
  result.counts = count(
      n, valid, weights,
      [&](int64_t i) {
        const Text text = texts[i];
        return std::pair(word_of(text, texts.data + texts.size), text.size);
      },
      [&](uint32_t other, int64_t i) {
        const Text text = texts[i];
        return text.size <= 8 || std::memcmp(result.texts[other].bytes, text.bytes, text.size) == 0;
      },
      [&](int64_t i) { result.texts.push_back(texts[i]); });
  return result;
}

template TextCounts count_texts(const Texts<int32_t>&, int64_t, const uint8_t*, const int64_t*);
template TextCounts count_texts(const Texts<int64_t>&, int64_t, const uint8_t*, const int64_t*);

std::vector<int64_t> order_texts(const Texts<int64_t>& texts, int64_t n, const int64_t* counts) {
  std::vector<Place> places(n);
  const uint8_t* limit = texts.data + texts.size;
  for (int64_t i = 0; i < n; ++i) places[i] = {~static_cast<uint64_t>(counts[i]), prefix_of(texts[i], limit), i};
  sort_places(places);
  for (auto at = places.begin(); at != places.end();) {
    const auto end = std::find_if(
        at, places.end(), [&](const Place& place) { return place.order != at->order || place.prefix != at->prefix; });
    std::sort(at, end, [&](const Place& a, const Place& b) { return texts[a.row].view() < texts[b.row].view(); });
    at = end;
  }
  std::vector<int64_t> result(n);
  std::transform(places.begin(), places.end(), result.begin(), [](const Place& place) { return place.row; });
  return result;
}

}  // namespace fastmtr
