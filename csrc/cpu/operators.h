// The kernels that are not a product: over the columns of each row, in an order that depends on the width alone.
#ifndef FASTMTR_CPU_OPERATORS_H
#define FASTMTR_CPU_OPERATORS_H

#include "encodings.h"

namespace fastmtr {
namespace {

// value(i, m) gives the vector of columns i .. i + m, zeros beyond. Lanes are summed apart and then in the lane tree.
template <class Value>
FASTMTR_INLINE float sum_over(size_t n, Value value) {
  F sums[4] = {zero(), zero(), zero(), zero()};
  size_t i = 0;
  for (; i + 4 * W <= n; i += 4 * W)
    for (size_t j = 0; j < 4; ++j) sums[j] = sums[j] + value(i + j * W, W);
  for (; i < n; i += W) sums[0] = sums[0] + value(i, less(W, n - i));
  return sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// -inf beyond m: neither a maximum nor, after exp, a sum sees those lanes.
FASTMTR_INLINE F load_or_lowest(const float* p, size_t m) {
  if (m == W) return load(p);
  alignas(64) float lanes[W];
  store(lanes, set1(-kInfinity));
  store_n(lanes, load_n(p, m), m);
  return load(lanes);
}

inline float max_of(const float* x, size_t n) {
  F best = set1(-kInfinity);
  for (size_t i = 0; i < n; i += W) best = max_or_nan(best, load_or_lowest(x + i, less(W, n - i)));
  // The lane tree may lose a NaN; a sum of zeros and NaNs does not.
  const F nans = best == best ? zero() : best;
  return max_lanes(best) + sum_lanes(nans);
}

inline void softmax_run(const float* x, size_t n, float* out) {
  const F top = set1(max_of(x, n));
  const float total = sum_over(n, [&](size_t i, size_t m) {
    const F e = exp(load_or_lowest(x + i, m) - top);
    store_part(out + i, e, m);
    return e;
  });
  map(out, out, n, [total](F e, size_t, size_t) { return e / set1(total); });
}

// Runs of at most W columns (the gates of a few experts) would leave most lanes empty: W of them go through the lanes
// side by side, the columns of each summed ascending.
inline void softmax_short(size_t rows, size_t width, size_t size, Rows x, Out out) {
  struct Run {
    size_t row, column;
  };
  const auto after = [&](Run run) {
    run.column += size;
    return run.column < width ? run : Run{run.row + 1, 0};
  };
  alignas(64) float columns[W * W] = {};  // [size][W]
  for (Run next = {0, 0}; next.row < rows;) {
    const Run first = next;
    size_t n = 0;
    for (; n < W && next.row < rows; ++n, next = after(next)) {
      const float* from = row(x, next.row) + next.column;
      for (size_t i = 0; i < size; ++i) columns[i * W + n] = from[i];
    }
    F top = load(columns), total = zero();
    for (size_t i = 1; i < size; ++i) top = max_or_nan(top, load(columns + i * W));
    for (size_t i = 0; i < size; ++i) {
      const F e = exp(load(columns + i * W) - top);
      store(columns + i * W, e);
      total = total + e;
    }
    for (size_t i = 0; i < size; ++i) store(columns + i * W, load(columns + i * W) / total);
    next = first;
    for (size_t j = 0; j < n; ++j, next = after(next)) {
      float* to = row(out, next.row) + next.column;
      for (size_t i = 0; i < size; ++i) to[i] = columns[i * W + j];
    }
  }
}

inline void softmax(size_t rows, size_t width, size_t size, Rows x, Out out) {
  if (size <= W) return softmax_short(rows, width, size, x, out);
  for (size_t r = 0; r < rows; ++r)
    for (size_t i = 0; i < width; i += size) softmax_run(row(x, r) + i, size, row(out, r) + i);
}

// V vectors of one row, starting at column i; the last has m lanes.
template <size_t V>
FASTMTR_INLINE void mix(const float* gate, const Rows* experts, size_t n_experts, size_t r, size_t i, size_t m,
                        float* out) {
  F sums[V] = {};
  for (size_t e = 0; e < n_experts; ++e) {
    const float* expert = row(experts[e], r) + i;
    const F g = set1(gate[e]);
    for (size_t v = 0; v < V; ++v) {
      const F x = load_part(expert + v * W, v + 1 == V ? m : W);
      sums[v] = e == 0 ? g * x : fma(g, x, sums[v]);
    }
  }
  for (size_t v = 0; v < V; ++v) store_part(out + i + v * W, sums[v], v + 1 == V ? m : W);
}

inline void mixture(size_t rows, size_t width, size_t n_experts, Rows gate, const Rows* experts, Out out) {
  for (size_t r = 0; r < rows; ++r) {
    size_t i = 0;
    for (; i + 4 * W <= width; i += 4 * W) mix<4>(row(gate, r), experts, n_experts, r, i, W, row(out, r));
    for (; i < width; i += W) mix<1>(row(gate, r), experts, n_experts, r, i, less(W, width - i), row(out, r));
  }
}

template <class Fn>
FASTMTR_INLINE void combine(size_t rows, size_t width, Rows a, bool a_scalar, Rows b, bool b_scalar, Out out, Fn fn) {
  for (size_t r = 0; r < rows; ++r) {
    const float* x = row(a, r);
    const float* y = row(b, r);
    float* to = row(out, r);
    for (size_t i = 0; i < width; i += W) {
      const size_t m = less(W, width - i);
      const F u = a_scalar ? set1(x[0]) : load_part(x + i, m);
      const F v = b_scalar ? set1(y[0]) : load_part(y + i, m);
      store_part(to + i, fn(u, v), m);
    }
  }
}

inline void binary(size_t rows, size_t width, Binary fn, Rows a, int32_t a_scalar, Rows b, int32_t b_scalar, Out out) {
  const auto run = [&](auto f) { combine(rows, width, a, a_scalar != 0, b, b_scalar != 0, out, f); };
  switch (fn) {
    case Binary::add:
      return run([](F u, F v) { return u + v; });
    case Binary::sub:
      return run([](F u, F v) { return u - v; });
    case Binary::mul:
      return run([](F u, F v) { return u * v; });
    case Binary::div:
      return run([](F u, F v) { return u / v; });
    case Binary::max:
      return run([](F u, F v) { return max_or_nan(u, v); });
    case Binary::min:
      return run([](F u, F v) { return min_or_nan(u, v); });
  }
}

inline void scale_shift(size_t rows, size_t width, Rows x, const float* scale, const float* shift, Out out) {
  for (size_t r = 0; r < rows; ++r)
    map(row(x, r), row(out, r), width, [&](F v, size_t i, size_t m) {
      if (scale) v = v * load_part(scale + i, m);
      return shift ? v + load_part(shift + i, m) : v;
    });
}

// Over the middle of [outer, axis, inner]. With inner == 1 the lanes go along the axis, else along inner, axis
// ascending.
inline void reduce_row(size_t outer, size_t axis, size_t inner, Reduce fn, const float* x, float* out) {
  const F divisor = set1(fn == Reduce::mean ? (float)axis : 1.0f);
  for (size_t o = 0; o < outer; ++o, x += axis * inner, out += inner) {
    if (inner == 1) {
      out[0] = fn == Reduce::max ? max_of(x, axis)
                                 : sum_over(axis, [&](size_t i, size_t m) { return load_part(x + i, m); }) / divisor[0];
      continue;
    }
    for (size_t i = 0; i < inner; i += W) {
      const size_t m = less(W, inner - i);
      F total = load_part(x + i, m);
      for (size_t a = 1; a < axis; ++a) {
        const F v = load_part(x + a * inner + i, m);
        total = fn == Reduce::max ? max_or_nan(total, v) : total + v;
      }
      store_part(out + i, total / divisor, m);
    }
  }
}

inline void reduce(size_t rows, size_t outer, size_t axis, size_t inner, Reduce fn, Rows x, Out out) {
  for (size_t r = 0; r < rows; ++r) reduce_row(outer, axis, inner, fn, row(x, r), row(out, r));
}

// Mean first, then the variance around it: no cancellation.
inline void layer_norm_run(size_t n, float eps, const float* scale, const float* shift, const float* x, float* out) {
  const auto count = (float)n;
  const float mean = sum_over(n, [&](size_t i, size_t m) { return load_part(x + i, m); }) / count;
  const float variance = sum_over(n,
                                  [&](size_t i, size_t m) {
                                    alignas(64) float lanes[W] = {};  // zeros, not -mean, beyond the run
                                    const F d = load_part(x + i, m) - mean;
                                    if (m == W) return d * d;
                                    store_n(lanes, d * d, m);
                                    return load(lanes);
                                  }) /
                         count;
  const float factor = 1.0f / __builtin_sqrtf(variance + eps);
  map(x, out, n, [&](F v, size_t i, size_t m) {
    v = (v - mean) * factor;
    if (scale) v = v * load_part(scale + i, m);
    return shift ? v + load_part(shift + i, m) : v;
  });
}

inline void layer_norm(size_t rows, size_t width, size_t size, float eps, const float* scale, const float* shift,
                       Rows x, Out out) {
  for (size_t r = 0; r < rows; ++r)
    for (size_t i = 0; i < width; i += size) layer_norm_run(size, eps, scale, shift, row(x, r) + i, row(out, r) + i);
}

FASTMTR_INLINE float dot_row(const float* a, const float* b, size_t n) {
  F sums[4] = {zero(), zero(), zero(), zero()};
  size_t i = 0;
  for (; i + 4 * W <= n; i += 4 * W)
    for (size_t j = 0; j < 4; ++j) sums[j] = fma(load(a + i + j * W), load(b + i + j * W), sums[j]);
  for (; i < n; i += W) sums[0] = fma(load_part(a + i, less(W, n - i)), load_part(b + i, less(W, n - i)), sums[0]);
  return sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

inline void dot(size_t rows, size_t width, Rows a, Rows b, Out out) {
  for (size_t r = 0; r < rows; ++r) row(out, r)[0] = dot_row(row(a, r), row(b, r), width);
}

inline void l2_normalize(size_t rows, size_t width, size_t size, float eps, Rows x, Out out) {
  for (size_t r = 0; r < rows; ++r)
    for (size_t i = 0; i < width; i += size) {
      const float* from = row(x, r) + i;
      const float norm = __builtin_sqrtf(dot_row(from, from, size));
      const float divisor = norm < eps ? eps : norm;  // a NaN stays
      map(from, row(out, r) + i, size, [divisor](F v, size_t, size_t) { return v / divisor; });
    }
}

inline void activation(size_t rows, size_t width, Activation fn, float alpha, const float* slope, Rows x, Out out) {
  activate_rows(rows, width, fn, alpha, slope, x, out);
}

// Moves bits where nothing is to decode: right for int32 columns too.
inline void copy(size_t rows, size_t width, Rows x, Out out) {
  const size_t ahead = 1 + 1024 / (width + 1);
  for (size_t r = 0; r < rows; ++r)
    read_row(x, r, 0, ahead, rows, [&](const auto& from) {
      float* to = row(out, r);
      for (size_t i = 0; i < width; i += W) {
        from.fetch(i);
        const size_t m = less(W, width - i);
        store_part(to + i, from.get(i, m), m);
      }
    });
}

// ---- fusion -------------------------------------------------------------------------------------------------------

// W candidates side by side; tasks ascending.
inline void fuse(size_t rows, size_t n, const uint32_t* columns, const float* weights, const float* offsets,
                 int32_t product, const float* scores, size_t stride, float* fused) {
  for (size_t r = 0; r < rows; r += W) {
    const size_t m = less(W, rows - r);
    F total = zero();
    for (size_t t = 0; t < n; ++t) {
      alignas(64) float lanes[W] = {};
      for (size_t i = 0; i < m; ++i) lanes[i] = scores[(r + i) * stride + columns[t]];
      F p = load(lanes);
      if (product) p = log(max(set1(1e-12f), p + set1(offsets ? offsets[t] : 0.0f)));  // a NaN stays
      total = fma(set1(weights[t]), p, total);
    }
    store_part(fused + r, product ? exp(total) : total, m);
  }
}

}  // namespace
}  // namespace fastmtr
#endif
