// Lane trees of 128- and 256-bit registers, for the AVX2 and AVX-512 vectors.
#ifndef FASTMTR_CPU_VEC_X86_H
#define FASTMTR_CPU_VEC_X86_H

#include <immintrin.h>

namespace fastmtr {
namespace {

inline __attribute__((always_inline)) float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

inline __attribute__((always_inline)) float sum_lanes_256(__m256 x) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline __attribute__((always_inline)) float max_lanes_256(__m256 x) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

}  // namespace
}  // namespace fastmtr
#endif
