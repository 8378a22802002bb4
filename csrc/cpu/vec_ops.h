// What every vector has in common, by the compilers' vector extensions. A vec_<isa>.h defines before this header the
// types F (floats), U (uint32 bits) and S (int32), the lanes W, and afterwards fma, min, max, sqrt, load_n, store_n,
// sum_lanes, max_lanes, from_halves and to_halves (binary16), widen (bytes to S); and for products in 8 bits max_signed
// and max_unsigned, Signed8, the integer that holds a weight in memory, and dot(S sum, S x, S w): each lane of w holds
// as many Signed8 as it has room for, of x as many numbers of 0 .. 255; their products are added to the lane, exactly.
//
// Everything below csrc/cpu/*.h is in an unnamed namespace: each ISA file has its own copy, and no symbol that the
// linker could merge with a copy compiled for another instruction set.
#ifndef FASTMTR_CPU_VEC_OPS_H
#define FASTMTR_CPU_VEC_OPS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define FASTMTR_INLINE inline __attribute__((always_inline))

namespace fastmtr {
namespace {

constexpr float kInfinity = __builtin_inff();

FASTMTR_INLINE F set1(float x) { return x - F{}; }  // x - 0 is x, also for -0: no arithmetic remains
FASTMTR_INLINE F zero() { return F{}; }

// Tables come from a memory-mapped file: no alignment is assumed.
FASTMTR_INLINE F load(const float* p) {
  F x;
  memcpy(&x, p, sizeof(F));
  return x;
}
FASTMTR_INLINE void store(float* p, F x) { memcpy(p, &x, sizeof(F)); }

FASTMTR_INLINE U bits(F x) { return (U)x; }
FASTMTR_INLINE F from_bits(U x) { return (F)x; }
FASTMTR_INLINE U set1_bits(uint32_t x) { return U{} + x; }
FASTMTR_INLINE U shift_right_signed(U x, int n) { return (U)((S)x >> n); }

FASTMTR_INLINE F abs(F x) { return from_bits(bits(x) & set1_bits(0x7fffffffu)); }
FASTMTR_INLINE F copy_sign(F magnitude, F sign) {
  return from_bits((bits(magnitude) & set1_bits(0x7fffffffu)) | (bits(sign) & set1_bits(0x80000000u)));
}

// Pairs of 16 bits a lane, for instruction sets without such a product.
FASTMTR_INLINE S dot_of_pairs(S sum, S x, S w) {
  return sum + (S)((U)x << 16 >> 16) * ((S)((U)w << 16) >> 16) + (x >> 16) * (w >> 16);
}

FASTMTR_INLINE U lane_numbers() {
  U lanes;
  for (size_t i = 0; i < W; ++i) lanes[i] = (uint32_t)i;
  return lanes;
}

FASTMTR_INLINE size_t less(size_t a, size_t b) { return a < b ? a : b; }

}  // namespace
}  // namespace fastmtr
#endif
