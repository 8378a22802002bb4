// Texts in UTF-8, point by point. Plain functions without a library, for the host and as device code.
#ifndef FASTMTR_CORE_FEATURE_UTF8_H
#define FASTMTR_CORE_FEATURE_UTF8_H

#include "core/feature_kernels.h"

namespace fastmtr {
namespace kernels {

// Well-formed UTF-8 without surrogates.
FMTR_HD bool is_utf8(const unsigned char* at, uint64_t size) {
  const unsigned char* const end = at + size;
  while (at < end) {
    if (end - at >= 8 && (word64(at) & 0x8080808080808080ull) == 0) {
      at += 8;
      continue;
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

// The code point of valid UTF-8 at `at`, which then stands behind it.
FMTR_HD uint32_t next_point(const unsigned char*& at) {
  const uint32_t lead = *at++;
  if (lead < 0x80) return lead;
  const int more = 1 + (lead >= 0xE0) + (lead >= 0xF0);
  uint32_t point = lead & (0x3Fu >> more);
  for (int i = 0; i < more; ++i) point = point << 6 | (*at++ & 0x3Fu);
  return point;
}

// Writes a code point, and says in how many bytes (at most 4).
FMTR_HD int put_point(unsigned char* out, uint32_t point) {
  const int more = (point >= 0x80) + (point >= 0x800) + (point >= 0x10000);
  if (more == 0) {
    out[0] = static_cast<unsigned char>(point);
    return 1;
  }
  for (int i = more; i > 0; --i, point >>= 6) out[i] = static_cast<unsigned char>(0x80 | (point & 0x3F));
  out[0] = static_cast<unsigned char>((0xF80 >> more & 0xFF) | point);
  return more + 1;
}

// White space, as Python's str.strip knows it.
FMTR_HD bool is_space(uint32_t point) {
  return (point >= 0x9 && point <= 0xD) || (point >= 0x1C && point <= 0x20) || point == 0x85 || point == 0xA0 ||
         point == 0x1680 || (point >= 0x2000 && point <= 0x200A) || point == 0x2028 || point == 0x2029 ||
         point == 0x202F || point == 0x205F || point == 0x3000;
}

// Leaves out the white space at both ends. Of valid UTF-8.
FMTR_HD void strip(const unsigned char*& begin, const unsigned char*& end) {
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
}

}  // namespace kernels
}  // namespace fastmtr
#endif
