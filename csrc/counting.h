// How often each value of a column occurs: what the fitting of features counts, without Python objects.
#ifndef FASTMTR_COUNTING_H
#define FASTMTR_COUNTING_H

#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string_view>
#include <vector>

namespace fastmtr {

struct Text {
  const uint8_t* bytes;
  uint32_t size;

  std::string_view view() const { return {reinterpret_cast<const char*>(bytes), size}; }
};

// Texts side by side; text i is data[offsets[i]] .. data[offsets[i + 1]].
template <class Offset>
struct Texts {
  const uint8_t* data;
  int64_t size;
  const Offset* offsets;

  Text operator[](int64_t i) const {
    const uint64_t start = static_cast<int64_t>(offsets[i]), length = static_cast<int64_t>(offsets[i + 1]) - start;
    const uint64_t all = size;
    if (start > all || length > std::min<uint64_t>(all - start, std::numeric_limits<uint32_t>::max()))
      throw std::invalid_argument("offsets must ascend within the data, in steps below 4 GiB");
    return {data + start, static_cast<uint32_t>(length)};
  }
};

// Distinct values in the order in which they first occur, and the count of each.
struct IntCounts {
  std::vector<int64_t> values, counts;
};
struct TextCounts {
  std::vector<Text> texts;  // they lie where they were found
  std::vector<int64_t> counts;
};

// Value i counts weights[i] times, or once without weights; what is not valid, or of weight 0, leaves no trace.
IntCounts count_ints(const int64_t* values, int64_t n, const uint8_t* valid, const int64_t* weights);

template <class Offset>  // int32_t or int64_t
TextCounts count_texts(const Texts<Offset>& texts, int64_t n, const uint8_t* valid, const int64_t* weights);

// The rows of n texts, the largest count first; those of one count ascend by their bytes. No count is negative.
std::vector<int64_t> order_texts(const Texts<int64_t>& texts, int64_t n, const int64_t* counts);

}  // namespace fastmtr

#endif
