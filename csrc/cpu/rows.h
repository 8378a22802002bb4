// Rows of a tile, and what is done to one element after the other: copies and activations.
#ifndef FASTMTR_CPU_ROWS_H
#define FASTMTR_CPU_ROWS_H

#include "../backend.h"
#include "vec_math.h"

namespace fastmtr {
namespace {

// Numbers that lie before row r.
FASTMTR_INLINE size_t place(const Rows& x, size_t r) { return (x.gather ? x.gather[r * x.gather_step] : r) * x.stride; }
FASTMTR_INLINE const float* row(const Rows& x, size_t r) { return x.data + place(x, r); }
FASTMTR_INLINE const int32_t* row(const IdRows& x, size_t r) { return x.data + r * x.stride; }
FASTMTR_INLINE float* row(const Out& x, size_t r) { return x.data + r * x.stride; }

constexpr size_t kLineFloats = 16;

FASTMTR_INLINE F max_or_nan(F a, F b) { return a == a ? max(a, b) : a; }
FASTMTR_INLINE F min_or_nan(F a, F b) { return a == a ? min(a, b) : a; }

// The first m of a vector's lanes, where the end of a row may cut it short.
FASTMTR_INLINE F load_part(const float* p, size_t m) { return m == W ? load(p) : load_n(p, m); }
FASTMTR_INLINE void store_part(float* p, F x, size_t m) { m == W ? store(p, x) : store_n(p, x, m); }

// Moves bits: right for int32 columns too.
FASTMTR_INLINE void copy_floats(float* to, const float* from, size_t n) {
  size_t i = 0;
  for (; i + W <= n; i += W) store(to + i, load(from + i));
  if (i < n) store_n(to + i, load_n(from + i, n - i), n - i);
}

// to[i] = fn(from[i], i) for vectors of columns.
template <class Fn>
FASTMTR_INLINE void map(const float* from, float* to, size_t n, Fn fn) {
  size_t i = 0;
  for (; i + W <= n; i += W) store(to + i, fn(load(from + i), i, W));
  if (i < n) store_n(to + i, fn(load_n(from + i, n - i), i, n - i), n - i);
}

inline void activate(const float* from, float* to, size_t n, Activation fn, float alpha, const float* slope) {
  switch (fn) {
    case Activation::none:
      return map(from, to, n, [](F x, size_t, size_t) { return x; });
    case Activation::relu:
      return map(from, to, n, [](F x, size_t, size_t) { return max(zero(), x); });
    case Activation::leaky_relu:
      return map(from, to, n, [alpha](F x, size_t, size_t) { return x > 0.0f ? x : x * alpha; });
    case Activation::prelu:
      return map(from, to, n, [slope](F x, size_t i, size_t m) { return x > 0.0f ? x : x * load_n(slope + i, m); });
    case Activation::elu:
      return map(from, to, n, [alpha](F x, size_t, size_t) { return x > 0.0f ? x : expm1_negative(x) * alpha; });
    case Activation::sigmoid:
      return map(from, to, n, [](F x, size_t, size_t) { return sigmoid(x); });
    case Activation::tanh:
      return map(from, to, n, [](F x, size_t, size_t) { return tanh(x); });
    case Activation::silu:
      return map(from, to, n, [](F x, size_t, size_t) { return silu(x); });
    case Activation::gelu:
      return map(from, to, n, [](F x, size_t, size_t) { return gelu(x); });
    case Activation::gelu_tanh:
      return map(from, to, n, [](F x, size_t, size_t) { return gelu_tanh(x); });
    case Activation::softplus:
      return map(from, to, n, [](F x, size_t, size_t) { return softplus(x); });
    case Activation::exp:
      return map(from, to, n, [](F x, size_t, size_t) { return exp(x); });
    case Activation::selu:
      return map(from, to, n, [](F x, size_t, size_t) { return selu(x); });
    case Activation::mish:
      return map(from, to, n, [](F x, size_t, size_t) { return mish(x); });
    case Activation::relu6:
      return map(from, to, n, [](F x, size_t, size_t) { return relu6(x); });
    case Activation::hard_sigmoid:
      return map(from, to, n, [](F x, size_t, size_t) { return relu6(x + 3.0f) / 6.0f; });
    case Activation::hard_swish:
      return map(from, to, n, [](F x, size_t, size_t) { return x * (relu6(x + 3.0f) / 6.0f); });
    case Activation::softsign:
      return map(from, to, n, [](F x, size_t, size_t) { return x / (abs(x) + 1.0f); });
    case Activation::log:
      return map(from, to, n, [](F x, size_t, size_t) { return log_or_nan(x); });
    case Activation::sqrt:
      return map(from, to, n, [](F x, size_t, size_t) { return sqrt(x); });
    case Activation::abs:
      return map(from, to, n, [](F x, size_t, size_t) { return abs(x); });
  }
}

// Few columns (a task's output has one) leave most lanes empty: then many rows go through the lanes side by side.
inline void activate_rows(size_t rows, size_t width, Activation fn, float alpha, const float* slope, Rows x, Out out) {
  constexpr size_t kStaged = 16 * W;
  if (width == 0) return;
  if (rows == 1 || width > W / 2 || slope) {
    for (size_t r = 0; r < rows; ++r) activate(row(x, r), row(out, r), width, fn, alpha, slope);
    return;
  }
  float staged[kStaged];
  const size_t step = kStaged / width;
  for (size_t first = 0; first < rows; first += step) {
    const size_t n = less(step, rows - first);
    for (size_t r = 0; r < n; ++r) {
      const float* from = row(x, first + r);
      for (size_t i = 0; i < width; ++i) staged[r * width + i] = from[i];
    }
    activate(staged, staged, n * width, fn, alpha, nullptr);
    for (size_t r = 0; r < n; ++r) {
      float* to = row(out, first + r);
      for (size_t i = 0; i < width; ++i) to[i] = staged[r * width + i];
    }
  }
}

}  // namespace
}  // namespace fastmtr
#endif
