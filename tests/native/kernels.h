// What the tests of the kernels share: matrices with guards, the comparison with a double reference, the activations.
#ifndef FASTMTR_TESTS_KERNELS_H
#define FASTMTR_TESTS_KERNELS_H

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "backend.h"
#include "check.h"
#include "core/arena.h"

using namespace fastmtr;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kUntouched = -12345.5f;

inline std::mt19937 random_bits(7);
inline float uniform() { return static_cast<float>(random_bits() >> 8) / static_cast<float>(1 << 23) - 1.0f; }
inline size_t below(size_t n) { return random_bits() % n; }

// A matrix whose rows are neither aligned nor contiguous, with guards between them.
struct Matrix {
  size_t rows, width, stride;
  std::vector<float> data;

  Matrix(size_t rows_, size_t width_, bool fill = true)
      : rows(rows_), width(width_), stride(width_ + 3), data(rows_ * stride + 1, kUntouched) {
    for (size_t r = 0; fill && r < rows; ++r)
      for (size_t i = 0; i < width; ++i) at(r, i) = uniform();
  }
  float& at(size_t r, size_t i) { return data[1 + r * stride + i]; }
  float at(size_t r, size_t i) const { return data[1 + r * stride + i]; }
  Rows view(size_t first = 0) const { return {data.data() + 1 + first * stride, stride, nullptr}; }
  Rows broadcast() const { return {data.data() + 1, 0, nullptr}; }
  Rows gathered(const std::vector<uint32_t>& picks, size_t first = 0) const {
    return {data.data() + 1, stride, picks.data() + first};
  }
  Out out() { return {data.data() + 1, stride}; }
  bool guards_hold() const {
    if (data[0] != kUntouched) return false;
    for (size_t r = 0; r < rows; ++r)
      for (size_t i = width; i < stride; ++i)
        if (data[1 + r * stride + i] != kUntouched) return false;
    return true;
  }
};

// A view's value, the way backend.h defines it.
inline float value(const Rows& x, size_t r, size_t i) { return x.data[(x.gather ? x.gather[r] : r) * x.stride + i]; }

inline std::vector<uint32_t> picks(size_t n, size_t of) {
  std::vector<uint32_t> result(n);
  for (auto& p : result) p = static_cast<uint32_t>(below(of));
  return result;
}

inline bool same_bits(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; }

inline bool close(float got, double want, double tolerance) {
  if (std::isnan(want)) return std::isnan(got);
  if (std::isinf(want) || std::abs(want) > std::numeric_limits<float>::max()) return got == (want > 0 ? kInf : -kInf);
  return std::abs(got - want) <= tolerance;
}

// Compares a whole matrix with want(r, i), and its guards.
inline void compare(const std::string& what, const Matrix& got, const std::function<double(size_t, size_t)>& want,
                    double relative = 2e-6, double absolute = 1e-6) {
  for (size_t r = 0; r < got.rows; ++r)
    for (size_t i = 0; i < got.width; ++i) {
      const double w = want(r, i);
      if (!close(got.at(r, i), w, relative * std::abs(w) + absolute)) {
        char text[160];
        std::snprintf(text, sizeof text, ": row %zu column %zu is %.9g, expected %.9g", r, i, got.at(r, i), w);
        return check(false, what + text);
      }
    }
  check(got.guards_hold(), what + ": wrote outside of its columns");
}

// ---- activations --------------------------------------------------------------------------------------------------

constexpr struct {
  Activation fn;
  const char* name;
} kActivations[] = {{Activation::none, "none"},
                    {Activation::relu, "relu"},
                    {Activation::leaky_relu, "leaky_relu"},
                    {Activation::prelu, "prelu"},
                    {Activation::elu, "elu"},
                    {Activation::sigmoid, "sigmoid"},
                    {Activation::tanh, "tanh"},
                    {Activation::silu, "silu"},
                    {Activation::gelu, "gelu"},
                    {Activation::gelu_tanh, "gelu_tanh"},
                    {Activation::softplus, "softplus"},
                    {Activation::exp, "exp"},
                    {Activation::selu, "selu"},
                    {Activation::mish, "mish"},
                    {Activation::relu6, "relu6"},
                    {Activation::hard_sigmoid, "hard_sigmoid"},
                    {Activation::hard_swish, "hard_swish"},
                    {Activation::softsign, "softsign"},
                    {Activation::log, "log"},
                    {Activation::sqrt, "sqrt"},
                    {Activation::abs, "abs"}};

inline double activated(Activation fn, double x, double alpha, double slope) {
  const auto relu6 = [](double v) { return v < 0 ? 0 : v > 6 ? 6 : v; };
  const auto sigmoid = [](double v) { return v >= 0 ? 1 / (1 + std::exp(-v)) : std::exp(v) / (1 + std::exp(v)); };
  switch (fn) {
    case Activation::none:
      return x;
    case Activation::relu:
      return x < 0 ? 0 : x;
    case Activation::leaky_relu:
      return x > 0 ? x : alpha * x;
    case Activation::prelu:
      return x > 0 ? x : slope * x;
    case Activation::elu:
      return x > 0 ? x : alpha * std::expm1(x);
    case Activation::sigmoid:
      return sigmoid(x);
    case Activation::tanh:
      return std::tanh(x);
    case Activation::silu:
      return x * sigmoid(x);
    case Activation::gelu:
      return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case Activation::gelu_tanh:
      return x * sigmoid(2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x));
    case Activation::softplus:
      return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x)));
    case Activation::exp:
      return std::exp(x);
    case Activation::selu:
      return 1.0507009873554805 * (x > 0 ? x : 1.6732632423543772 * std::expm1(x));
    case Activation::mish:
      return x * std::tanh(std::log1p(std::exp(x)));
    case Activation::relu6:
      return relu6(x);
    case Activation::hard_sigmoid:
      return relu6(x + 3) / 6;
    case Activation::hard_swish:
      return x * relu6(x + 3) / 6;
    case Activation::softsign:
      return x / (1 + std::abs(x));
    case Activation::log:
      return std::log(x);
    case Activation::sqrt:
      return std::sqrt(x);
    case Activation::abs:
      return std::abs(x);
  }
  return kNaN;
}

// Runs the test with every table that this processor can run.
inline void with_each_table(void (*test)(const Kernels&)) {
  for (const auto table :
       {baseline_kernels, emulated16_kernels, avx2_kernels, avx512_kernels, avx512_vnni_kernels, neon_kernels}) {
    const char* why = "";
    if (const Kernels* kernels = table(&why))
      test(*kernels);
    else
      std::printf("not tested here: %s\n", why);
  }
}

#endif
