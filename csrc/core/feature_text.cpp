#include "core/feature_text.h"

#include <algorithm>

#include "core/feature_utf8.h"

namespace fastmtr {

namespace {

struct LowerRun {
  uint32_t first, last, step;  // every step-th code point of the range
  int32_t shift;
};
struct WordRun {
  uint32_t first, last;
};
#include "core/unicode_tables.inc"

template <class Run, size_t N>
const Run* run_of(const Run (&runs)[N], uint32_t point) {
  const Run* after = std::upper_bound(runs, runs + N, point, [](uint32_t p, const Run& run) { return p < run.first; });
  return after == runs || point > (after - 1)->last ? nullptr : after - 1;
}

uint32_t lower(uint32_t point) {
  const LowerRun* run = run_of(kLower, point);
  return run == nullptr || (point - run->first) % run->step != 0 ? point : point + static_cast<uint32_t>(run->shift);
}

bool is_word(uint32_t point) { return run_of(kWord, point) != nullptr; }

// What ASCII characters become in words; 0: none is of a word.
struct Ascii {
  unsigned char lowered[128] = {};
  Ascii() {
    for (uint32_t c = 0; c < 128; ++c) lowered[c] = is_word(lower(c)) ? static_cast<unsigned char>(lower(c)) : 0;
  }
};

const unsigned char* bytes_of(std::string_view text) { return reinterpret_cast<const unsigned char*>(text.data()); }

}  // namespace

bool is_utf8(std::string_view text) { return kernels::is_utf8(bytes_of(text), text.size()); }

std::string_view stripped(std::string_view text) {
  const unsigned char *begin = bytes_of(text), *end = begin + text.size();
  kernels::strip(begin, end);
  return {reinterpret_cast<const char*>(begin), static_cast<size_t>(end - begin)};
}

void Words::read(std::string_view given) {
  static const Ascii ascii;
  text.clear();
  begins.clear();
  ends.clear();
  const unsigned char* at = bytes_of(given);
  const unsigned char* const end = at + given.size();
  bool inside = false;
  while (at < end) {
    uint32_t point;
    bool word;
    if (*at < 0x80) {
      point = ascii.lowered[*at++];
      word = point != 0;
    } else {
      point = lower(kernels::next_point(at));
      word = is_word(point);
    }
    if (word && !inside) {
      if (!begins.empty()) text.push_back(' ');
      begins.push_back(text.size());
    }
    if (!word && inside) ends.push_back(text.size());
    inside = word;
    if (word && point < 0x80) {
      text.push_back(static_cast<char>(point));
    } else if (word) {
      unsigned char encoded[4];
      text.insert(text.end(), encoded, encoded + kernels::put_point(encoded, point));
    }
  }
  if (inside) ends.push_back(text.size());
}

}  // namespace fastmtr
