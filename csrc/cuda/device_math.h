// Functions of a number, on the device and on the host: the formulas of cpu/vec_math.h, so their errors are those.
#ifndef FASTMTR_CUDA_DEVICE_MATH_H
#define FASTMTR_CUDA_DEVICE_MATH_H

#include "backend.h"
#include "cuda/portable.h"

#if defined(__CUDACC__)
#define FMTR_UNROLL _Pragma("unroll")
#else
#define FMTR_UNROLL _Pragma("GCC unroll 16")
#endif

namespace fastmtr::device::math {

FMTR_DEVICE float fma(float a, float b, float c) { return fused_multiply_add(a, b, c); }
FMTR_DEVICE float infinity() { return float_of(0x7f800000u); }
FMTR_DEVICE float nan() { return float_of(0x7fc00000u); }
FMTR_DEVICE float sqrt(float x) {
#if defined(__CUDACC__)
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}
FMTR_DEVICE float abs(float x) { return float_of(bits_of(x) & 0x7fffffffu); }
FMTR_DEVICE float copy_sign(float size, float sign) {
  return float_of((bits_of(size) & 0x7fffffffu) | (bits_of(sign) & 0x80000000u));
}
// b where either is NaN.
FMTR_DEVICE float min(float a, float b) { return a < b ? a : b; }
FMTR_DEVICE float max(float a, float b) { return a > b ? a : b; }
FMTR_DEVICE float max_or_nan(float a, float b) { return a == a ? max(a, b) : a; }
FMTR_DEVICE float min_or_nan(float a, float b) { return a == a ? min(a, b) : a; }

template <int N>
FMTR_DEVICE float polynomial(float x, const float (&c)[N]) {  // c[0] + c[1] x + ...
  float y = c[N - 1];
  FMTR_UNROLL
  for (int i = N - 2; i >= 0; --i) y = fma(y, x, c[i]);
  return y;
}

// exp(x) = 2^n (1 + p).
struct ExpParts {
  float p;
  int32_t n;
};
FMTR_DEVICE ExpParts exp_parts(float x) {
  const float magic = 12582912.0f;
  const float shifted = fma(x, 1.44269504f, magic);
  const float n = shifted - magic;
  float r = fma(n, -0.693359375f, x);
  r = fma(n, 2.12194440e-4f, r);
  const float c[] = {0.5f, 1.6666518e-01f, 4.1666202e-02f, 8.368991e-03f, 1.3950665e-03f};
  return {fma(r * r, polynomial(r, c), r), (int32_t)(bits_of(shifted) - bits_of(magic))};
}
FMTR_DEVICE float power_of_two(int32_t n) { return float_of((uint32_t)(n + 127) << 23); }

FMTR_DEVICE float exp(float x) {
  x = max(-105.0f, min(89.0f, x));
  const ExpParts e = exp_parts(x);
  const int32_t half = e.n >> 1;
  return (e.p + 1.0f) * power_of_two(half) * power_of_two(e.n - half);
}

FMTR_DEVICE float expm1_negative(float x) {
  const ExpParts e = exp_parts(max(-87.0f, x));
  const float scale = power_of_two(e.n);
  return fma(scale, e.p, scale - 1.0f);
}

// x > 0 and normal, or +inf or NaN.
FMTR_DEVICE float log(float x) {
  const int32_t exponent = (int32_t)(bits_of(x) - 0x3f3504f3u) >> 23;
  const float f = float_of(bits_of(x) - ((uint32_t)exponent << 23)) - 1.0f;
  const float n = (float)exponent;
  const float c[] = {3.3333316e-01f, -2.500081e-01f,  2.0002297e-01f, -1.6624543e-01f,
                     1.4180933e-01f, -1.3128676e-01f, 1.2883565e-01f, -7.86216e-02f};
  const float ff = f * f;
  float y = ff * f * polynomial(f, c);
  y = fma(n, -2.12194440e-4f, y);
  y = fma(ff, -0.5f, y) + f;
  y = fma(n, 0.693359375f, y);
  return x < infinity() ? y : x;
}

FMTR_DEVICE float log1p_unit(float x) {
  const float c[] = {1.0f,          -4.9999553e-01f, 3.3320343e-01f, -2.4852943e-01f, 1.9145103e-01f, -1.3746591e-01f,
                     7.921034e-02f, -3.0110708e-02f, 5.383995e-03f};
  return x * polynomial(x, c);
}

FMTR_DEVICE float sigmoid(float x) {
  const float e = exp(-abs(x));
  return (x < 0.0f ? e : 1.0f) / (e + 1.0f);
}

FMTR_DEVICE float tanh(float x) {
  const float size = abs(x);
  const float far = 1.0f - 2.0f / (exp(size + size) + 1.0f);
  const float z = x * x;
  const float c[] = {-3.3333284e-01f, 1.3331515e-01f, -5.3745143e-02f, 2.0655215e-02f, -5.721626e-03f};
  const float near = fma(x, z * polynomial(z, c), x);
  return size < 0.625f ? near : copy_sign(far, x);
}

FMTR_DEVICE float gelu(float x) {
  const float t = 1.0f / fma(abs(x), 0.3f * 0.70710678f, 1.0f);
  const float c[] = {1.6918744e-01f, 1.7072341e-01f,  1.4828873e-01f, 2.1509893e-01f, -9.501129e-02f,
                     5.481894e-01f,  -5.1265115e-01f, 4.8572898e-01f, -1.2955448e-01f};
  const float tail = 0.5f * exp(-0.5f * x * x) * t * polynomial(t, c);
  return x * (x < 0.0f ? tail : 1.0f - tail);
}

FMTR_DEVICE float gelu_tanh(float x) {
  const float u2 = 1.59576912f * fma(x * x * x, 0.044715f, x);
  return x * sigmoid(u2);
}

FMTR_DEVICE float softplus(float x) { return max(0.0f, x) + log1p_unit(exp(-abs(x))); }

FMTR_DEVICE float selu(float x) {
  const float scale = 1.05070099f, alpha = 1.67326324f;
  return x > 0.0f ? x * scale : expm1_negative(x) * (scale * alpha);
}

FMTR_DEVICE float mish(float x) {
  const float e = exp(min(20.0f, x));
  const float n = e * (e + 2.0f);
  return x * (n / (n + 2.0f));
}

FMTR_DEVICE float relu6(float x) { return min(6.0f, max(0.0f, x)); }

FMTR_DEVICE float log_or_nan(float x) {
  const float least_normal = 1.17549435e-38f;
  const float y = x < least_normal ? log(x * 8388608.0f) - 15.9423851f : log(x);
  const float of_zero_or_less = x == 0.0f ? -infinity() : nan();
  return x <= 0.0f ? of_zero_or_less : y;
}

FMTR_DEVICE float activate(float x, Activation fn, float alpha, float slope) {
  switch (fn) {
    case Activation::none:
      return x;
    case Activation::relu:
      return max(0.0f, x);
    case Activation::leaky_relu:
      return x > 0.0f ? x : x * alpha;
    case Activation::prelu:
      return x > 0.0f ? x : x * slope;
    case Activation::elu:
      return x > 0.0f ? x : expm1_negative(x) * alpha;
    case Activation::sigmoid:
      return sigmoid(x);
    case Activation::tanh:
      return tanh(x);
    case Activation::silu:
      return x * sigmoid(x);
    case Activation::gelu:
      return gelu(x);
    case Activation::gelu_tanh:
      return gelu_tanh(x);
    case Activation::softplus:
      return softplus(x);
    case Activation::exp:
      return exp(x);
    case Activation::selu:
      return selu(x);
    case Activation::mish:
      return mish(x);
    case Activation::relu6:
      return relu6(x);
    case Activation::hard_sigmoid:
      return relu6(x + 3.0f) / 6.0f;
    case Activation::hard_swish:
      return x * (relu6(x + 3.0f) / 6.0f);
    case Activation::softsign:
      return x / (abs(x) + 1.0f);
    case Activation::log:
      return log_or_nan(x);
    case Activation::sqrt:
      return sqrt(x);
    case Activation::abs:
      return abs(x);
  }
  return x;
}

}  // namespace fastmtr::device::math
#endif
