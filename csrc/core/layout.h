// Where the buffers of a tile lie: those that are never alive together share memory.
#ifndef FASTMTR_CORE_LAYOUT_H
#define FASTMTR_CORE_LAYOUT_H

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace fastmtr {

constexpr size_t kForever = SIZE_MAX;

// [first, last]: positions of the steps between which the buffer holds something.
struct Life {
  size_t first = kForever, last = 0;
  bool meets(const Life& other) const { return first <= other.last && other.first <= last; }
};

// Gives each of these buffers a place, in numbers a row; returns how many a row they all take. Widest first; each goes
// to the lowest place where nothing that lives at the same time lies.
inline size_t lay_out_buffers(std::vector<uint32_t> buffers, const std::vector<Life>& lives,
                              const std::vector<size_t>& strides, std::vector<size_t>* places) {
  size_t total = 0;
  std::stable_sort(buffers.begin(), buffers.end(), [&](uint32_t a, uint32_t b) { return strides[a] > strides[b]; });
  for (size_t i = 0; i < buffers.size(); ++i) {
    const uint32_t b = buffers[i];
    std::vector<uint32_t> neighbours;
    for (size_t j = 0; j < i; ++j)
      if (lives[b].meets(lives[buffers[j]])) neighbours.push_back(buffers[j]);
    std::sort(neighbours.begin(), neighbours.end(),
              [&](uint32_t x, uint32_t y) { return (*places)[x] < (*places)[y]; });
    size_t at = 0;
    for (const uint32_t other : neighbours) {
      if (at + strides[b] <= (*places)[other]) break;
      at = std::max(at, (*places)[other] + strides[other]);
    }
    (*places)[b] = at;
    total = std::max(total, at + strides[b]);
  }
  return total;
}

}  // namespace fastmtr
#endif
