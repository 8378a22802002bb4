// Eight lanes: AVX2 with FMA.
#ifndef FASTMTR_CPU_VEC_AVX2_H
#define FASTMTR_CPU_VEC_AVX2_H

#include <stddef.h>
#include <stdint.h>

#include "vec_x86.h"

namespace fastmtr {
namespace {
constexpr size_t kBlockRows =
    6;  // x two vectors of sums, and a register each for weights and x, fill the register file
constexpr size_t kSkipVectors = 8;  // sums of one row in registers
constexpr size_t W = 8;
typedef __m256 F;
typedef uint32_t U __attribute__((vector_size(32)));
typedef int32_t S __attribute__((vector_size(32)));
}  // namespace
}  // namespace fastmtr

#include "vec_ops.h"

namespace fastmtr {
namespace {

FASTMTR_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
FASTMTR_INLINE F min(F a, F b) { return _mm256_min_ps(a, b); }
FASTMTR_INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
FASTMTR_INLINE F sqrt(F x) { return _mm256_sqrt_ps(x); }

FASTMTR_INLINE F load_n(const float* p, size_t n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), lane));
}
// By halves: a masked store is microcode on AMD processors.
FASTMTR_INLINE void store_n(float* p, F x, size_t n) {
  if (n >= W) return store(p, x);
  __m128 part = _mm256_castps256_ps128(x);
  if (n & 4) {
    _mm_storeu_ps(p, part);
    part = _mm256_extractf128_ps(x, 1);
    p += 4;
  }
  if (n & 2) {
    memcpy(p, &part, 2 * sizeof(float));
    part = _mm_movehl_ps(part, part);
    p += 2;
  }
  if (n & 1) _mm_store_ss(p, part);
}

FASTMTR_INLINE F from_halves(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
FASTMTR_INLINE void to_halves(F x, uint16_t* p) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

FASTMTR_INLINE S widen(const int8_t* p) { return (S)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
FASTMTR_INLINE S widen(const uint8_t* p) { return (S)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)); }

FASTMTR_INLINE uint32_t nonzero_lanes(F x) {
  return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x, zero(), _CMP_NEQ_UQ));
}

FASTMTR_INLINE float sum_lanes(F x) { return sum_lanes_256(x); }
FASTMTR_INLINE float max_lanes(F x) { return max_lanes_256(x); }

FASTMTR_INLINE S max_signed(S a, S b) { return (S)_mm256_max_epi32((__m256i)a, (__m256i)b); }
FASTMTR_INLINE U max_unsigned(U a, U b) { return (U)_mm256_max_epu32((__m256i)a, (__m256i)b); }

typedef int16_t Signed8;  // vpmaddubsw would saturate: 2 * 255 * 127 is beyond 16 bits
FASTMTR_INLINE S dot(S sum, S x, S w) { return sum + (S)_mm256_madd_epi16((__m256i)x, (__m256i)w); }

}  // namespace
}  // namespace fastmtr
#endif
