// Sixteen lanes: AVX-512 F, BW, DQ, VL.
#ifndef FASTMTR_CPU_VEC_AVX512_H
#define FASTMTR_CPU_VEC_AVX512_H

#include <stddef.h>
#include <stdint.h>

// GCC sees its own _mm512_undefined_ps() as a mistake (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include "vec_x86.h"

namespace fastmtr {
namespace {
constexpr size_t kBlockRows =
    14;  // x two vectors of sums, and a register each for weights and x, fill the register file
constexpr size_t kSkipVectors = 8;  // sums of one row in registers
constexpr size_t W = 16;
typedef __m512 F;
typedef uint32_t U __attribute__((vector_size(64)));
typedef int32_t S __attribute__((vector_size(64)));
}  // namespace
}  // namespace fastmtr

#include "vec_ops.h"

namespace fastmtr {
namespace {

FASTMTR_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
FASTMTR_INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
FASTMTR_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
FASTMTR_INLINE F sqrt(F x) { return _mm512_sqrt_ps(x); }

FASTMTR_INLINE __mmask16 first_lanes(size_t n) { return (__mmask16)((1u << n) - 1u); }
FASTMTR_INLINE F load_n(const float* p, size_t n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
FASTMTR_INLINE void store_n(float* p, F x, size_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), x); }

FASTMTR_INLINE F from_halves(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
FASTMTR_INLINE void to_halves(F x, uint16_t* p) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

FASTMTR_INLINE S widen(const int8_t* p) { return (S)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)); }
FASTMTR_INLINE S widen(const uint8_t* p) { return (S)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)); }

// The lanes that are not zero (NaN is not), the first in the lowest bit.
FASTMTR_INLINE uint32_t nonzero_lanes(F x) { return _mm512_cmp_ps_mask(x, zero(), _CMP_NEQ_UQ); }

FASTMTR_INLINE float sum_lanes(F x) {
  return sum_lanes_256(_mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1)));
}
FASTMTR_INLINE float max_lanes(F x) {
  return max_lanes_256(_mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1)));
}

FASTMTR_INLINE S max_signed(S a, S b) { return (S)_mm512_max_epi32((__m512i)a, (__m512i)b); }
FASTMTR_INLINE U max_unsigned(U a, U b) { return (U)_mm512_max_epu32((__m512i)a, (__m512i)b); }

#if defined(__AVX512VNNI__)
typedef int8_t Signed8;
FASTMTR_INLINE S dot(S sum, S x, S w) { return (S)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)w); }
#else
typedef int16_t Signed8;  // pairs of bytes would saturate: 2 * 255 * 127 is beyond 16 bits
FASTMTR_INLINE S dot(S sum, S x, S w) { return sum + (S)_mm512_madd_epi16((__m512i)x, (__m512i)w); }
#endif

}  // namespace
}  // namespace fastmtr
#endif
