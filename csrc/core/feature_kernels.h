// What one raw value becomes: hashes, logarithms, scales, look-ups. Plain functions without a library, for the host and
// as device code; the definitions are those of docs/features.md, and every execution gives their bits.
//
// No product and sum may be fused: host files are compiled with -ffp-contract=off, and device code rounds each step.
#ifndef FASTMTR_CORE_FEATURE_KERNELS_H
#define FASTMTR_CORE_FEATURE_KERNELS_H

#if !defined(__CUDACC_RTC__)
#include <stdint.h>
#endif

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define FMTR_HD __host__ __device__ inline
#else
#define FMTR_HD inline
#endif

namespace fastmtr {

#if defined(__CUDACC_RTC__)  // which has no headers
using uint8_t = unsigned char;
using int32_t = int;
using uint32_t = unsigned;
using int64_t = long long;
using uint64_t = unsigned long long;
#endif

namespace kernels {

// What makes a feature: see docs/features.md.
enum class FeatureOp : uint8_t {
  category,
  cross,
  bucket,
  many,
  attribute,
  words,
  tfidf,
  scale,
  recency,
  cyclic,
  gaps,
  table,
  vector
};

constexpr int32_t kMissing = 0, kUnseen = 1;

// ---- arithmetic in float64, one rounding a step

FMTR_HD double mul(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

FMTR_HD double add(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dadd_rn(a, b);
#else
  return a + b;
#endif
}

FMTR_HD double root(double x) {
#if defined(__CUDA_ARCH__)
  return __dsqrt_rn(x);
#else
  return __builtin_sqrt(x);
#endif
}

// In device code as instructions of their own: what compiles it may be told to flush numbers that are not normal.
FMTR_HD float single(double x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("cvt.rn.f32.f64 %0, %1;" : "=f"(y) : "d"(x));
  return y;
#else
  return static_cast<float>(x);
#endif
}

FMTR_HD double widened(float x) {
#if defined(__CUDA_ARCH__)
  double y;
  asm("cvt.f64.f32 %0, %1;" : "=d"(y) : "f"(x));
  return y;
#else
  return static_cast<double>(x);
#endif
}

FMTR_HD uint64_t bits_of(double x) {
  union {
    double number;
    uint64_t bits;
  } u;
  u.number = x;
  return u.bits;
}

FMTR_HD double of_bits(uint64_t bits) {
  union {
    uint64_t bits;
    double number;
  } u;
  u.bits = bits;
  return u.number;
}

FMTR_HD double horner(const double* coefficients, int n, double z) {
  double p = coefficients[0];
  for (int i = 1; i < n; ++i) p = add(mul(p, z), coefficients[i]);
  return p;
}

// log(1 + a) of a finite a >= 0, by the series of the inverse hyperbolic tangent.
FMTR_HD double log1p(double a) {
  constexpr double kAtanh[12] = {1.0 / 23, 1.0 / 21, 1.0 / 19, 1.0 / 17, 1.0 / 15, 1.0 / 13,
                                 1.0 / 11, 1.0 / 9,  1.0 / 7,  1.0 / 5,  1.0 / 3,  1.0};
  const double u = add(1.0, a);
  const double c = a < 9007199254740992.0 ? add(a, -add(u, -1.0)) / u : 0.0;  // what rounding took from 1 + a
  const uint64_t bits = bits_of(u);
  const uint64_t mantissa = (bits & 0xFFFFFFFFFFFFFull) | (uint64_t{1023} << 52);
  const bool upper = mantissa >= 0x3FF6A09E667F3BCDull;
  const double e = static_cast<double>(static_cast<int64_t>(bits >> 52) - 1023 + upper);
  const double m = of_bits(mantissa);
  const double f = add(upper ? mul(m, 0.5) : m, -1.0);
  const double s = f / add(2.0, f);
  const double p = horner(kAtanh, 12, mul(s, s));
  return add(mul(e, of_bits(0x3FE62E42FEE00000ull)),
             add(mul(mul(2.0, s), p), add(mul(e, of_bits(0x3DEA39EF35793C76ull)), c)));
}

FMTR_HD double signed_log1p(double x) {
  const double y = log1p(x < 0 ? -x : x);
  return of_bits((bits_of(y) & 0x7FFFFFFFFFFFFFFFull) | (bits_of(x) & 0x8000000000000000ull));
}

// Sine and cosine of 2 pi phase, 0 <= phase < 1, by Taylor's series in the eighth of a turn.
FMTR_HD void sincos_of_turn(double phase, double* sine, double* cosine) {
  constexpr double kSin[9] = {1.0 / 355687428096000.0,
                              -1.0 / 1307674368000.0,
                              1.0 / 6227020800.0,
                              -1.0 / 39916800.0,
                              1.0 / 362880.0,
                              -1.0 / 5040.0,
                              1.0 / 120.0,
                              -1.0 / 6.0,
                              1.0};
  constexpr double kCos[9] = {1.0 / 20922789888000.0,
                              -1.0 / 87178291200.0,
                              1.0 / 479001600.0,
                              -1.0 / 3628800.0,
                              1.0 / 40320.0,
                              -1.0 / 720.0,
                              1.0 / 24.0,
                              -1.0 / 2.0,
                              1.0};
  const double t = mul(8.0, phase);
  const int octant = static_cast<int>(t);
  double r = add(t, -static_cast<double>(octant));
  if (octant & 1) r = add(1.0, -r);
  const double a = mul(r, 0.78539816339744830962);
  const double z = mul(a, a);
  const double s = mul(horner(kSin, 9, z), a), c = horner(kCos, 9, z);
  const bool swapped = ((octant + 1) & 2) == 2;
  const double y = swapped ? c : s, x = swapped ? s : c;
  *sine = octant >= 4 ? -y : y;
  *cosine = ((octant + 2) & 4) == 4 ? -x : x;
}

// ---- time

// Whole seconds of a tick within a period; before 1970 as after it.
FMTR_HD int64_t within(int64_t tick, int64_t ticks_per_second, int64_t period, int64_t shift) {
  int64_t seconds = tick / ticks_per_second;
  if (tick % ticks_per_second < 0) --seconds;
  int64_t place = seconds % period;
  if (place < 0) place += period;
  place = (place + shift) % period;
  return place < 0 ? place + period : place;
}

enum class ClockPart : uint8_t { none, hour, weekday, hour_of_week, year };

// What ticks mean.
struct Clock {
  int64_t ticks_per_second, offset;  // local time minus UTC in seconds
};

constexpr int64_t kDay = 86'400, kWeek = 604'800, kYear = 31'556'952, kMonday = 3 * kDay;

// The local hour, weekday or hour of the week.
FMTR_HD int64_t clock_part(int64_t tick, ClockPart part, const Clock& clock) {
  if (part == ClockPart::hour) return within(tick, clock.ticks_per_second, kDay, clock.offset) / 3600;
  const int64_t place = within(tick, clock.ticks_per_second, kWeek, kMonday + clock.offset);
  return place / (part == ClockPart::weekday ? kDay : 3600);
}

// Sine and cosine of the place in the day, the week or the year.
FMTR_HD void cycle(int64_t tick, ClockPart part, const Clock& clock, float* out) {
  const bool of_week = part == ClockPart::weekday;
  const int64_t period = of_week ? kWeek : part == ClockPart::hour ? kDay : kYear;
  const int64_t place = within(tick, clock.ticks_per_second, period, (of_week ? kMonday : 0) + clock.offset);
  double sine, cosine;
  sincos_of_turn(static_cast<double>(place) / static_cast<double>(period), &sine, &cosine);
  out[0] = single(sine);
  out[1] = single(cosine);
}

constexpr int64_t kMost = 0x7FFFFFFFFFFFFFFF, kLeast = -kMost - 1;

// Seconds from one tick to a later one, 0 where it is earlier.
FMTR_HD double elapsed(int64_t now, int64_t then, int64_t ticks_per_second) {
  const uint64_t difference = static_cast<uint64_t>(now) - static_cast<uint64_t>(then);
  int64_t ticks = static_cast<int64_t>(difference);
  if (((now ^ then) & (now ^ ticks)) < 0) ticks = now < 0 ? kLeast : kMost;
  const double seconds = static_cast<double>(ticks) / static_cast<double>(ticks_per_second);
  return seconds > 0 ? seconds : 0.0;
}

// ---- XXH64 (Yann Collet's xxHash)

constexpr uint64_t kP1 = 0x9E3779B185EBCA87ull, kP2 = 0xC2B2AE3D27D4EB4Full, kP3 = 0x165667B19E3779F9ull,
                   kP4 = 0x85EBCA77C2B2AE63ull, kP5 = 0x27D4EB2F165667C5ull;

FMTR_HD uint64_t rotated(uint64_t x, int by) { return x << by | x >> (64 - by); }
FMTR_HD uint64_t xxh_round(uint64_t total, uint64_t word) { return rotated(total + word * kP2, 31) * kP1; }
FMTR_HD uint64_t xxh_lane(uint64_t h, uint64_t word) { return rotated(h ^ xxh_round(0, word), 27) * kP1 + kP4; }
FMTR_HD uint64_t xxh_finish(uint64_t h) {
  h = (h ^ h >> 33) * kP2;
  h = (h ^ h >> 29) * kP3;
  return h ^ h >> 32;
}

// Little-endian; compilers make one load of it.
FMTR_HD uint64_t word64(const unsigned char* at) {
  return uint64_t{at[0]} | uint64_t{at[1]} << 8 | uint64_t{at[2]} << 16 | uint64_t{at[3]} << 24 |
         uint64_t{at[4]} << 32 | uint64_t{at[5]} << 40 | uint64_t{at[6]} << 48 | uint64_t{at[7]} << 56;
}
FMTR_HD uint64_t word32(const unsigned char* at) {
  return uint64_t{at[0]} | uint64_t{at[1]} << 8 | uint64_t{at[2]} << 16 | uint64_t{at[3]} << 24;
}

FMTR_HD uint64_t hash_bytes(const unsigned char* data, uint64_t size, uint64_t seed) {
  const unsigned char* const end = data + size;
  uint64_t h = seed + kP5;
  if (size >= 32) {
    uint64_t a = seed + kP1 + kP2, b = seed + kP2, c = seed, d = seed - kP1;
    for (; end - data >= 32; data += 32) {
      a = xxh_round(a, word64(data));
      b = xxh_round(b, word64(data + 8));
      c = xxh_round(c, word64(data + 16));
      d = xxh_round(d, word64(data + 24));
    }
    h = rotated(a, 1) + rotated(b, 7) + rotated(c, 12) + rotated(d, 18);
    h = (h ^ xxh_round(0, a)) * kP1 + kP4;
    h = (h ^ xxh_round(0, b)) * kP1 + kP4;
    h = (h ^ xxh_round(0, c)) * kP1 + kP4;
    h = (h ^ xxh_round(0, d)) * kP1 + kP4;
  }
  h += size;
  for (; end - data >= 8; data += 8) h = xxh_lane(h, word64(data));
  if (end - data >= 4) {
    h = rotated(h ^ word32(data) * kP1, 23) * kP2 + kP3;
    data += 4;
  }
  for (; data < end; ++data) h = rotated(h ^ *data * kP5, 11) * kP1;
  return xxh_finish(h);
}

FMTR_HD uint64_t hash_int(int64_t value, uint64_t seed) {
  return xxh_finish(xxh_lane(seed + kP5 + 8, static_cast<uint64_t>(value)));
}

// ---- vocabularies: open addressing over a power of two of places, at most half full

constexpr uint32_t kNoRank = 0xFFFFFFFFu;

struct IntEntry {
  int64_t value;
  uint32_t rank;  // kNoRank: empty
  uint32_t unused;
};

// A text of up to kInline bytes stands in its entry; of a longer one the place of its bytes.
struct TextEntry {
  static constexpr uint32_t kInline = 16;
  uint64_t hash;
  uint32_t rank;
  uint32_t size;
  union {
    unsigned char text[kInline];
    uint64_t offset;
  };
};

FMTR_HD uint32_t find_int(const IntEntry* entries, uint64_t mask, int64_t value, uint64_t hash) {
  for (uint64_t at = hash & mask;; at = (at + 1) & mask) {
    if (entries[at].rank == kNoRank || entries[at].value == value) return entries[at].rank;
  }
}

// Puts an id, which is not 0, into a set of open addressing, whose empty places are 0; whether it was there.
FMTR_HD bool put_id(int32_t* places, uint64_t mask, int32_t id) {
  uint64_t at = (static_cast<uint32_t>(id) * 0x9E3779B97F4A7C15ull >> 32) & mask;
  for (; places[at] != 0; at = (at + 1) & mask)
    if (places[at] == id) return true;
  places[at] = id;
  return false;
}

FMTR_HD bool same_bytes(const unsigned char* a, const unsigned char* b, uint64_t n) {
  uint64_t i = 0;
  for (; i + 8 <= n; i += 8)
    if (word64(a + i) != word64(b + i)) return false;
  for (; i < n; ++i)
    if (a[i] != b[i]) return false;
  return true;
}

FMTR_HD uint32_t find_text(const TextEntry* entries, uint64_t mask, const unsigned char* bytes,
                           const unsigned char* text, uint64_t size, uint64_t hash) {
  for (uint64_t at = hash & mask;; at = (at + 1) & mask) {
    const TextEntry& entry = entries[at];
    if (entry.rank == kNoRank) return kNoRank;
    if (entry.hash != hash || entry.size != size) continue;
    const unsigned char* known = size <= TextEntry::kInline ? entry.text : bytes + entry.offset;
    if (same_bytes(known, text, size)) return entry.rank;
  }
}

// Puts a value into a vocabulary; false: it stands there already.
inline bool put_int(IntEntry* entries, uint64_t mask, int64_t value, uint32_t rank) {
  uint64_t at = hash_int(value, 0) & mask;
  for (; entries[at].rank != kNoRank; at = (at + 1) & mask)
    if (entries[at].value == value) return false;
  entries[at] = {value, rank, 0};
  return true;
}

inline bool put_text(TextEntry* entries, uint64_t mask, const unsigned char* bytes, uint64_t offset, uint32_t size,
                     uint32_t rank) {
  const unsigned char* const text = bytes + offset;
  const uint64_t hash = hash_bytes(text, size, 0);
  if (find_text(entries, mask, bytes, text, size, hash) != kNoRank) return false;
  uint64_t at = hash & mask;
  while (entries[at].rank != kNoRank) at = (at + 1) & mask;
  TextEntry& entry = entries[at];
  entry.hash = hash;
  entry.rank = rank;
  entry.size = size;
  if (size > TextEntry::kInline)
    entry.offset = offset;
  else
    for (uint32_t i = 0; i < size; ++i) entry.text[i] = text[i];
  return true;
}

// ---- numbers

constexpr double kFloatMax = 3.4028234663852886e38;

FMTR_HD float to_float(double x) { return single(x > kFloatMax ? kFloatMax : x < -kFloatMax ? -kFloatMax : x); }

// How many bounds are at most x.
FMTR_HD uint64_t bounds_below(const double* bounds, uint64_t n, double x) {
  uint64_t begin = 0, end = n;
  while (begin < end) {
    const uint64_t middle = begin + (end - begin) / 2;
    if (bounds[middle] <= x)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

enum class Range : uint8_t { keep, clip, null, error };

struct Scale {
  double low, high, least, most, shift, factor;
  float filler;
  bool log1p;
  Range out_of_range;
  uint64_t n_knots;  // 0: (x - shift) / factor
  const double* knots;
  const double* levels;
};

struct Scaled {
  float value;
  bool null, beyond;
};

FMTR_HD Scaled scale(const Scale& rule, double x) {
  Scaled out{rule.filler, x != x, false};
  if (out.null) return out;
  const bool below = x<rule.low, above = x> rule.high;
  out.beyond = below || above;
  if (out.beyond) {
    if (rule.out_of_range == Range::null) {
      out.null = true;
      return out;
    }
    if (rule.out_of_range == Range::clip) x = below ? rule.low : rule.high;
  }
  x = x > kFloatMax ? rule.high : x < -kFloatMax ? rule.low : x;
  x = x < rule.least ? rule.least : x;
  x = x > rule.most ? rule.most : x;
  x = add(x, 0.0);
  if (rule.log1p) x = signed_log1p(x);
  if (rule.n_knots == 0) {
    out.value = to_float(add(x, -rule.shift) / rule.factor);
  } else if (rule.n_knots == 1) {
    out.value = single(rule.levels[0]);
  } else {
    uint64_t left = bounds_below(rule.knots, rule.n_knots, x);
    left = left == 0 ? 0 : left - 1;
    if (left > rule.n_knots - 2) left = rule.n_knots - 2;
    const double part = add(x, -rule.knots[left]) / add(rule.knots[left + 1], -rule.knots[left]);
    out.value = to_float(add(rule.levels[left], mul(part, add(rule.levels[left + 1], -rule.levels[left]))));
  }
  return out;
}

}  // namespace kernels
}  // namespace fastmtr
#endif
