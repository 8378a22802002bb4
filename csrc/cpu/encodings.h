// Rows kept in fewer bits: decoded in registers as they are read, encoded when a catalogue is built.
#ifndef FASTMTR_CPU_ENCODINGS_H
#define FASTMTR_CPU_ENCODINGS_H

#include "rows.h"

namespace fastmtr {
namespace {

FASTMTR_INLINE F decode(const float* p) { return load(p); }
FASTMTR_INLINE F decode(const uint16_t* p) { return from_halves(p); }
FASTMTR_INLINE F decode(const int8_t* p) { return __builtin_convertvector(widen(p), F); }

FASTMTR_INLINE F decode(const uint8_t* p) { return __builtin_convertvector(widen(p), F); }

struct Nibbles {  // two columns
  uint8_t both;
};
FASTMTR_INLINE F decode(const Nibbles* p) {
  uint64_t word = 0;
  memcpy(&word, p, W / 2);
  const U lane = lane_numbers(), low = set1_bits((uint32_t)word);
  const U here = W <= 8 ? low : lane < 8u ? low : set1_bits((uint32_t)(word >> 32));
  return __builtin_convertvector((S)(here >> (lane % 8u * 4u) & 15u), F);
}

FASTMTR_INLINE size_t bytes_of(Encoding encoding) {
  return encoding == Encoding::f32 ? 4 : encoding == Encoding::f16 ? 2 : 1;
}

template <class T>
constexpr size_t kColumnsOf = 1;
template <>
constexpr size_t kColumnsOf<Nibbles> = 2;

// The first m columns, anything beyond; nothing beyond their bytes is read.
template <class T>
FASTMTR_INLINE F decode_part(const T* p, size_t m) {
  if (m == W) return decode(p);
  T some[W] = {};
  for (size_t i = 0; i * kColumnsOf<T> < m; ++i) some[i] = p[i];
  return decode(some);
}
FASTMTR_INLINE F decode_part(const float* p, size_t m) { return load_part(p, m); }

// A row from column `first` on. T: what a number is kept in. The row `distance` rows on, where it is gathered, is
// fetched meanwhile.
template <class T>
struct Reader {
  static constexpr bool kScaled = sizeof(T) == 1;
  static constexpr size_t kLine = 64 / sizeof(T);
  const T* at;
  const T* ahead = nullptr;
  float scale = 1.0f;

  FASTMTR_INLINE Reader(const Rows& x, size_t r, size_t first, size_t distance, size_t rows)
      : at(row_of(x, r) + first) {
    const bool fetches = x.gather && r + distance < rows + x.rows_after;
    if (fetches) ahead = row_of(x, r + distance) + first;
    if (kScaled) {
      scale = *scale_of(x, r);
      if (fetches) __builtin_prefetch(scale_of(x, r + distance), 0, 2);
    }
  }

  FASTMTR_INLINE F get(size_t i, size_t m) const {
    const F x = decode_part(at + i, m);
    return kScaled ? x * scale : x;
  }
  FASTMTR_INLINE F add_to(F sum, size_t i, size_t m) const {
    const F x = decode_part(at + i, m);
    return kScaled ? fma(x, set1(scale), sum) : sum + x;
  }
  FASTMTR_INLINE void fetch(size_t i) const {
    if (ahead && i % kLine == 0) __builtin_prefetch(ahead + i, 0, 2);  // into L2
  }

 private:
  static const T* row_of(const Rows& x, size_t r) { return (const T*)x.data + place(x, r); }
  static const float* scale_of(const Rows& x, size_t r) {
    return (const float*)((const char*)x.scales + place(x, r) * sizeof(T));
  }
};

// fn(reader), by the encoding of x.
template <class Fn>
FASTMTR_INLINE void read_row(const Rows& x, size_t r, size_t first, size_t distance, size_t rows, Fn fn) {
  switch (x.encoding) {
    case Encoding::f32:
      return fn(Reader<float>(x, r, first, distance, rows));
    case Encoding::f16:
      return fn(Reader<uint16_t>(x, r, first, distance, rows));
    case Encoding::i8:
      return fn(Reader<int8_t>(x, r, first, distance, rows));
  }
}

// ---- encoding -----------------------------------------------------------------------------------------------------

typedef int8_t I8 __attribute__((vector_size(W)));

constexpr float kRound = 12582912.0f;   // 1.5 * 2^23: adding it leaves the nearest whole number in the low bits
constexpr float kHalfLimit = 65520.0f;  // rounds to infinity
constexpr float kLeastRange = 1e-30f;   // a row of smaller numbers is taken for zeros: levels / range must not overflow
constexpr float kSignedLevels = 127.0f;

FASTMTR_INLINE uint32_t largest_lane(U x) {
  alignas(64) uint32_t lanes[W];
  memcpy(lanes, &x, sizeof x);
  uint32_t largest = 0;
  for (size_t i = 0; i < W; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
  return largest;
}

// The largest |x| of a row; NaN or infinite where one is.
FASTMTR_INLINE float largest_size(const float* x, size_t n) {
  U most = {};  // as unsigned integers, sizes are in order, and what is not finite comes last
  for (size_t i = 0; i < n; i += W) {
    const U size = bits(abs(load_part(x + i, less(W, n - i))));
    most = size > most ? size : most;
  }
  const uint32_t best = largest_lane(most);
  float largest;
  memcpy(&largest, &best, sizeof largest);
  return largest;
}

inline void encode_halves(const float* x, size_t n, uint16_t* to) {
  size_t i = 0;
  for (; i + W <= n; i += W) to_halves(load(x + i), to + i);
  uint16_t lanes[W];
  to_halves(load_n(x + i, n - i), lanes);
  for (size_t j = 0; i + j < n; ++j) to[i + j] = lanes[j];
}

inline void encode_bytes(const float* x, size_t n, float largest, int8_t* to, float* scale) {
  const float inverse = largest > kLeastRange ? kSignedLevels / largest : 0.0f;
  *scale = inverse > 0.0f ? largest / kSignedLevels : 0.0f;
  for (size_t i = 0; i < n; i += W) {
    const size_t m = less(W, n - i);
    const F shifted = load_part(x + i, m) * inverse + set1(kRound);
    const I8 q = __builtin_convertvector((S)(bits(shifted) - bits(set1(kRound))), I8);
    if (m == W) {
      memcpy(to + i, &q, sizeof q);
    } else {
      for (size_t j = 0; j < m; ++j) to[i + j] = q[j];
    }
  }
}

inline size_t encode(size_t rows, size_t width, Rows x, EncodedOut out) {
  const bool halves = out.encoding == Encoding::f16;
  for (size_t r = 0; r < rows; ++r) {
    const float* from = row(x, r);
    const float largest = largest_size(from, width);
    if (!(largest < (halves ? kHalfLimit : kInfinity))) return r;
    if (halves) {
      encode_halves(from, width, (uint16_t*)out.data + r * out.stride);
    } else {
      auto* scale = (float*)((char*)out.scales + r * out.stride);
      encode_bytes(from, width, largest, (int8_t*)out.data + r * out.stride, scale);
    }
  }
  return rows;
}

}  // namespace
}  // namespace fastmtr
#endif
