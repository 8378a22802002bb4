// Four lanes: AArch64 NEON, which always has FMA.
#ifndef FASTMTR_CPU_VEC_NEON_H
#define FASTMTR_CPU_VEC_NEON_H

#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>

namespace fastmtr {
namespace {
constexpr size_t kBlockRows =
    8;  // x two vectors of sums, and a register each for weights and x, fill the register file
constexpr size_t kSkipVectors = 16;  // sums of one row in registers
constexpr size_t W = 4;
typedef float F __attribute__((vector_size(16)));
typedef uint32_t U __attribute__((vector_size(16)));
typedef int32_t S __attribute__((vector_size(16)));
}  // namespace
}  // namespace fastmtr

#include "vec_ops.h"

namespace fastmtr {
namespace {

FASTMTR_INLINE F fma(F a, F b, F c) { return (F)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
FASTMTR_INLINE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
// As x86 has them, b where either is NaN: the kernels count on it.
FASTMTR_INLINE F min(F a, F b) {
  return (F)vbslq_f32(vcltq_f32((float32x4_t)a, (float32x4_t)b), (float32x4_t)a, (float32x4_t)b);
}
FASTMTR_INLINE F max(F a, F b) {
  return (F)vbslq_f32(vcgtq_f32((float32x4_t)a, (float32x4_t)b), (float32x4_t)a, (float32x4_t)b);
}
FASTMTR_INLINE F sqrt(F x) { return (F)vsqrtq_f32((float32x4_t)x); }

FASTMTR_INLINE F load_n(const float* p, size_t n) {
  F x = zero();
  memcpy(&x, p, n * sizeof(float));
  return x;
}
FASTMTR_INLINE void store_n(float* p, F x, size_t n) { memcpy(p, &x, n * sizeof(float)); }

FASTMTR_INLINE F from_halves(const uint16_t* p) { return (F)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
FASTMTR_INLINE void to_halves(F x, uint16_t* p) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)x))); }

FASTMTR_INLINE S widen(const int8_t* p) {
  uint32_t four;
  memcpy(&four, p, sizeof four);
  return (S)vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(four)))));
}
FASTMTR_INLINE S widen(const uint8_t* p) {
  uint32_t four;
  memcpy(&four, p, sizeof four);
  return (S)vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)))));
}

FASTMTR_INLINE uint32_t nonzero_lanes(F x) {
  const uint32x4_t bit = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(vmvnq_u32(vceqzq_f32((float32x4_t)x)), bit));
}

FASTMTR_INLINE float sum_lanes(F x) { return (x[0] + x[2]) + (x[1] + x[3]); }
FASTMTR_INLINE float max_lanes(F x) { return vmaxvq_f32((float32x4_t)x); }

FASTMTR_INLINE S max_signed(S a, S b) { return a > b ? a : b; }
FASTMTR_INLINE U max_unsigned(U a, U b) { return a > b ? a : b; }

typedef int16_t Signed8;
FASTMTR_INLINE S dot(S sum, S x, S w) { return dot_of_pairs(sum, x, w); }

}  // namespace
}  // namespace fastmtr
#endif
