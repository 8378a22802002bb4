// Functions of a vector. Errors are the largest found over floats of the whole range (by
// tests/native/test_kernels.cpp), with or without FMA. NaN gives NaN, infinities and overflow give the limit. The
// polynomials are minimax fits made for these ranges.
#ifndef FASTMTR_CPU_VEC_MATH_H
#define FASTMTR_CPU_VEC_MATH_H

#include FASTMTR_VEC

namespace fastmtr {
namespace {

template <size_t N>
FASTMTR_INLINE F polynomial(F x, const float (&c)[N]) {  // c[0] + c[1] x + ...
  F y = set1(c[N - 1]);
  for (size_t i = N - 1; i-- > 0;) y = fma(y, x, set1(c[i]));
  return y;
}

// exp(x) = 2^n (1 + p). Adding and subtracting 1.5 * 2^23 rounds to a whole number and leaves it in the low bits.
struct ExpParts {
  F p;
  U n;
};
FASTMTR_INLINE ExpParts exp_parts(F x) {
  const F magic = set1(12582912.0f);
  const F shifted = fma(x, set1(1.44269504f), magic);
  const F n = shifted - magic;
  F r = fma(n, set1(-0.693359375f), x);  // 9 bits: the product is exact with or without FMA
  r = fma(n, set1(2.12194440e-4f), r);
  constexpr float c[] = {0.5f, 1.6666518e-01f, 4.1666202e-02f, 8.368991e-03f, 1.3950665e-03f};
  return {fma(r * r, polynomial(r, c), r), bits(shifted) - bits(magic)};
}
FASTMTR_INLINE F power_of_two(U n) { return from_bits((n + set1_bits(127)) << 23); }  // -126 <= n <= 127

// Error below 1.1 ulp, subnormal results included.
FASTMTR_INLINE F exp(F x) {
  x = max(set1(-105.0f), min(set1(89.0f), x));  // constants first: a NaN stays
  const ExpParts e = exp_parts(x);
  const U half = shift_right_signed(e.n, 1);  // in two steps, for 2^n beyond the normal numbers
  return (e.p + 1.0f) * power_of_two(half) * power_of_two(e.n - half);
}

// exp(x) - 1 for x <= 0. Error below 1 ulp.
FASTMTR_INLINE F expm1_negative(F x) {
  const ExpParts e = exp_parts(max(set1(-87.0f), x));
  const F scale = power_of_two(e.n);
  return fma(scale, e.p, scale - 1.0f);
}

// x > 0 and normal, or +inf or NaN. Error below 1 ulp.
FASTMTR_INLINE F log(F x) {
  const U centre = set1_bits(0x3f3504f3u);  // sqrt(1/2)
  const U exponent = shift_right_signed(bits(x) - centre, 23);
  const F f = from_bits(bits(x) - (exponent << 23)) - 1.0f;
  const F n = __builtin_convertvector((S)exponent, F);
  constexpr float c[] = {3.3333316e-01f, -2.500081e-01f,  2.0002297e-01f, -1.6624543e-01f,
                         1.4180933e-01f, -1.3128676e-01f, 1.2883565e-01f, -7.86216e-02f};
  const F ff = f * f;
  F y = ff * f * polynomial(f, c);
  y = fma(n, set1(-2.12194440e-4f), y);
  y = fma(ff, set1(-0.5f), y) + f;
  y = fma(n, set1(0.693359375f), y);
  return x < kInfinity ? y : x;
}

// log(1 + x) for 0 <= x <= 1. Error below 2.5 ulp.
FASTMTR_INLINE F log1p_unit(F x) {
  constexpr float c[] = {1.0f,           -4.9999553e-01f, 3.3320343e-01f, -2.4852943e-01f,
                         1.9145103e-01f, -1.3746591e-01f, 7.921034e-02f,  -3.0110708e-02f,
                         5.383995e-03f};
  return x * polynomial(x, c);
}

// Error below 2.5 ulp on both sides, so a small probability keeps its digits; absolute error below 1e-7.
FASTMTR_INLINE F sigmoid(F x) {
  const F e = exp(-abs(x));
  return (x < 0.0f ? e : set1(1.0f)) / (e + 1.0f);
}

// Error below 1.5 ulp.
FASTMTR_INLINE F tanh(F x) {
  const F size = abs(x);
  const F far = 1.0f - 2.0f / (exp(size + size) + 1.0f);
  const F z = x * x;
  constexpr float c[] = {-3.3333284e-01f, 1.3331515e-01f, -5.3745143e-02f, 2.0655215e-02f, -5.721626e-03f};
  const F near = fma(x, z * polynomial(z, c), x);
  return size < 0.625f ? near : copy_sign(far, x);
}

FASTMTR_INLINE F silu(F x) { return x * sigmoid(x); }

// x times the normal distribution function, by erfc(z) = exp(-z^2) t P(t), t = 1 / (1 + 0.3 z), so the negative side
// does not cancel. Error below 1.5e-7 max(1, |x|).
FASTMTR_INLINE F gelu(F x) {
  const F t = 1.0f / fma(abs(x), set1(0.3f * 0.70710678f), set1(1.0f));
  constexpr float c[] = {1.6918744e-01f, 1.7072341e-01f,  1.4828873e-01f, 2.1509893e-01f, -9.501129e-02f,
                         5.481894e-01f,  -5.1265115e-01f, 4.8572898e-01f, -1.2955448e-01f};
  const F tail = 0.5f * exp(-0.5f * x * x) * t * polynomial(t, c);
  return x * (x < 0.0f ? tail : 1.0f - tail);
}

// 0.5 (1 + tanh u) = sigmoid(2 u). Error below 1.5e-7 max(1, |x|).
FASTMTR_INLINE F gelu_tanh(F x) {
  const F u2 = 1.59576912f * fma(x * x * x, set1(0.044715f), x);
  return x * sigmoid(u2);
}

// Error below 3 ulp.
FASTMTR_INLINE F softplus(F x) { return max(zero(), x) + log1p_unit(exp(-abs(x))); }

// Error below 1.5 ulp.
FASTMTR_INLINE F selu(F x) {
  constexpr float kScale = 1.05070099f, kAlpha = 1.67326324f;
  return x > 0.0f ? x * kScale : expm1_negative(x) * (kScale * kAlpha);
}

// x tanh(softplus(x)) = x n / (n + 2) with n = e (e + 2), e = exp(x): the negative side does not cancel. From 20 on the
// quotient is 1. Error below 4 ulp.
FASTMTR_INLINE F mish(F x) {
  const F e = exp(min(set1(20.0f), x));
  const F n = e * (e + 2.0f);
  return x * (n / (n + 2.0f));
}

FASTMTR_INLINE F relu6(F x) { return min(set1(6.0f), max(zero(), x)); }  // constants first: a NaN stays

// Of any x: subnormal numbers, -inf at 0, NaN below. Error below 1 ulp.
FASTMTR_INLINE F log_or_nan(F x) {
  constexpr float kLeastNormal = 1.17549435e-38f;
  const F y = x < kLeastNormal ? log(x * 8388608.0f) - 15.9423851f : log(x);  // 2^23, and its logarithm
  const F of_zero_or_less = x == 0.0f ? set1(-kInfinity) : set1(__builtin_nanf(""));
  return x <= 0.0f ? of_zero_or_less : y;
}

}  // namespace
}  // namespace fastmtr
#endif
