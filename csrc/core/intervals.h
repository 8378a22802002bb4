// A set of columns, kept as sorted disjoint intervals.
#ifndef FASTMTR_CORE_INTERVALS_H
#define FASTMTR_CORE_INTERVALS_H

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>

namespace fastmtr {

class Intervals {
 public:
  void add(uint64_t begin, uint64_t end) {
    if (begin >= end) return;
    auto next = spans_.upper_bound(begin);
    if (next != spans_.begin() && std::prev(next)->second >= begin) {
      --next;
      begin = next->first;
      end = std::max(end, next->second);
      next = spans_.erase(next);
    }
    while (next != spans_.end() && next->first <= end) {
      end = std::max(end, next->second);
      next = spans_.erase(next);
    }
    spans_.emplace(begin, end);
  }

  // The first column of begin .. end that is not in the set; end if all are.
  uint64_t first_missing(uint64_t begin, uint64_t end) const {
    const auto next = spans_.upper_bound(begin);
    if (next == spans_.begin()) return begin;
    return std::min(std::max(std::prev(next)->second, begin), end);
  }

  bool overlaps(uint64_t begin, uint64_t end) const {
    const auto next = spans_.lower_bound(end);
    return begin < end && next != spans_.begin() && std::prev(next)->second > begin;
  }

 private:
  std::map<uint64_t, uint64_t> spans_;  // begin → end; touching spans are merged
};

}  // namespace fastmtr
#endif
