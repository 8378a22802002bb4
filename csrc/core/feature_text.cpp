#include "core/feature_text.h"

#include <algorithm>
#include <cstring>
#include <iterator>

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

bool is_space(uint32_t point) {
  return (point >= 0x9 && point <= 0xD) || (point >= 0x1C && point <= 0x20) || point == 0x85 || point == 0xA0 ||
         point == 0x1680 || (point >= 0x2000 && point <= 0x200A) || point == 0x2028 || point == 0x2029 ||
         point == 0x202F || point == 0x205F || point == 0x3000;
}

// The code point of valid UTF-8 at `at`, which then stands behind it.
uint32_t next_point(const unsigned char*& at) {
  const uint32_t lead = *at++;
  if (lead < 0x80) return lead;
  const int more = 1 + (lead >= 0xE0) + (lead >= 0xF0);
  uint32_t point = lead & (0x3Fu >> more);
  for (int i = 0; i < more; ++i) point = point << 6 | (*at++ & 0x3Fu);
  return point;
}

void append_point(std::vector<char>& out, uint32_t point) {
  const auto put = [&](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (point < 0x80) {
    put(point);
  } else if (point < 0x800) {
    put(0xC0 | point >> 6);
    put(0x80 | (point & 0x3F));
  } else if (point < 0x10000) {
    put(0xE0 | point >> 12);
    put(0x80 | (point >> 6 & 0x3F));
    put(0x80 | (point & 0x3F));
  } else {
    put(0xF0 | point >> 18);
    put(0x80 | (point >> 12 & 0x3F));
    put(0x80 | (point >> 6 & 0x3F));
    put(0x80 | (point & 0x3F));
  }
}

}  // namespace

bool is_utf8(std::string_view text) {
  const auto* at = reinterpret_cast<const unsigned char*>(text.data());
  const unsigned char* const end = at + text.size();
  while (at < end) {
    if (end - at >= 8) {
      uint64_t word;
      std::memcpy(&word, at, 8);
      if ((word & 0x8080808080808080u) == 0) {
        at += 8;
        continue;
      }
    }
    const uint32_t lead = *at++;
    if (lead < 0x80) continue;
    if (lead < 0xC2 || lead > 0xF4) return false;
    const int more = 1 + (lead >= 0xE0) + (lead >= 0xF0);
    if (end - at < more) return false;
    // The second byte tells overlong forms, surrogates and what is beyond U+10FFFF.
    const uint32_t least = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    const uint32_t most = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    if (*at < least || *at > most) return false;
    for (int i = 1; i < more; ++i)
      if ((at[i] & 0xC0) != 0x80) return false;
    at += more;
  }
  return true;
}

std::string_view stripped(std::string_view text) {
  const auto* begin = reinterpret_cast<const unsigned char*>(text.data());
  const unsigned char* end = begin + text.size();
  while (begin < end) {
    const unsigned char* next = begin;
    if (!is_space(next_point(next))) break;
    begin = next;
  }
  while (begin < end) {
    const unsigned char* last = end - 1;
    while (last > begin && (*last & 0xC0) == 0x80) --last;
    const unsigned char* at = last;
    if (!is_space(next_point(at))) break;
    end = last;
  }
  return {reinterpret_cast<const char*>(begin), static_cast<size_t>(end - begin)};
}

void Words::read(std::string_view given) {
  static const Ascii ascii;
  text.clear();
  begins.clear();
  ends.clear();
  const auto* at = reinterpret_cast<const unsigned char*>(given.data());
  const unsigned char* const end = at + given.size();
  bool inside = false;
  while (at < end) {
    uint32_t point;
    bool word;
    if (*at < 0x80) {
      point = ascii.lowered[*at++];
      word = point != 0;
    } else {
      point = lower(next_point(at));
      word = is_word(point);
    }
    if (word && !inside) {
      if (!begins.empty()) text.push_back(' ');
      begins.push_back(text.size());
    }
    if (!word && inside) ends.push_back(text.size());
    inside = word;
    if (word) append_point(text, point);
  }
  if (inside) ends.push_back(text.size());
}

}  // namespace fastmtr
