// Vectors without intrinsics: the compiler lowers them to what the target has (SSE2 on x86-64). A multiply-add rounds
// twice. Set FASTMTR_PLAIN_LANES and FASTMTR_PLAIN_ROWS (of a block of sums) first.
#ifndef FASTMTR_CPU_VEC_PLAIN_H
#define FASTMTR_CPU_VEC_PLAIN_H

#include <stddef.h>
#include <stdint.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace fastmtr {
namespace {
constexpr size_t kSkipVectors = 8;  // sums of one row in registers
constexpr size_t W = FASTMTR_PLAIN_LANES;
constexpr size_t kBlockRows = FASTMTR_PLAIN_ROWS;
typedef float F __attribute__((vector_size(4 * FASTMTR_PLAIN_LANES)));
typedef uint32_t U __attribute__((vector_size(4 * FASTMTR_PLAIN_LANES)));
typedef int32_t S __attribute__((vector_size(4 * FASTMTR_PLAIN_LANES)));
}  // namespace
}  // namespace fastmtr

#include "vec_ops.h"

namespace fastmtr {
namespace {

FASTMTR_INLINE F fma(F a, F b, F c) { return a * b + c; }
FASTMTR_INLINE float fma(float a, float b, float c) { return a * b + c; }

// As x86 has them: b where either is NaN.
FASTMTR_INLINE F min(F a, F b) { return a < b ? a : b; }
FASTMTR_INLINE F max(F a, F b) { return a > b ? a : b; }
FASTMTR_INLINE F sqrt(F x) {
  for (size_t i = 0; i < W; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
}

// The first n lanes; zeros beyond.
FASTMTR_INLINE F load_n(const float* p, size_t n) {
  F x = zero();
  memcpy(&x, p, n * sizeof(float));
  return x;
}
FASTMTR_INLINE void store_n(float* p, F x, size_t n) { memcpy(p, &x, n * sizeof(float)); }

// binary16 has a sign, 5 bits of exponent (less 15) and 10 of fraction. Neither way do subnormal floats occur, which
// the process may have told the processor to take for zeros.
typedef uint16_t H __attribute__((vector_size(2 * FASTMTR_PLAIN_LANES)));
FASTMTR_INLINE F from_halves(const uint16_t* p) {
  H h;
  memcpy(&h, p, sizeof h);
  const U all = __builtin_convertvector(h, U), size = (all & 0x7fffu) << 13, exponent = size >> 23;
  const U normal = size + (112u << 23), special = size + (224u << 23);  // infinite or NaN
  const U subnormal = bits(from_bits(size + (113u << 23)) - set1(0x1p-14f));
  return from_bits((exponent == 0u ? subnormal : exponent == 31u ? special : normal) | (all & 0x8000u) << 16);
}
// |x| < 65520.
FASTMTR_INLINE void to_halves(F x, uint16_t* p) {
  const U size = bits(abs(x));
  const U normal = (size - (112u << 23) + 0xfffu + (size >> 13 & 1u)) >> 13;
  const U subnormal = bits(abs(x) + set1(0.5f)) - bits(set1(0.5f));  // whose last place is that of the smallest half
  const H h = __builtin_convertvector((abs(x) < 0x1p-14f ? subnormal : normal) | (bits(x) >> 16 & 0x8000u), H);
  memcpy(p, &h, sizeof h);
}

template <class T>
FASTMTR_INLINE S widen(const T* p) {
  T x __attribute__((vector_size(FASTMTR_PLAIN_LANES)));
  memcpy(&x, p, sizeof x);
  return __builtin_convertvector(x, S);
}

FASTMTR_INLINE uint32_t nonzero_lanes(F x) {
  uint32_t lanes = 0;
  for (size_t i = 0; i < W; ++i) lanes |= (uint32_t)(x[i] != 0.0f) << i;
  return lanes;
}

// Halves onto halves: a fixed tree.
FASTMTR_INLINE float sum_lanes(F x) {
  for (size_t half = W / 2; half > 0; half /= 2)
    for (size_t i = 0; i < half; ++i) x[i] += x[i + half];
  return x[0];
}
FASTMTR_INLINE float max_lanes(F x) {
  for (size_t half = W / 2; half > 0; half /= 2)
    for (size_t i = 0; i < half; ++i) x[i] = x[i] > x[i + half] ? x[i] : x[i + half];
  return x[0];
}

FASTMTR_INLINE S max_signed(S a, S b) { return a > b ? a : b; }
FASTMTR_INLINE U max_unsigned(U a, U b) { return a > b ? a : b; }

typedef int16_t Signed8;
FASTMTR_INLINE S dot(S sum, S x, S w) {
#if defined(__SSE2__) && FASTMTR_PLAIN_LANES == 4
  return sum + (S)_mm_madd_epi16((__m128i)x, (__m128i)w);
#else
  return dot_of_pairs(sum, x, w);
#endif
}

}  // namespace
}  // namespace fastmtr
#endif
