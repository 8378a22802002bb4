// What is done to matrices that a row holds, such as the steps of a sequence: products, rearrangements, masks, and the
// gates of a recurrent unit.
#ifndef FASTMTR_CPU_SEQUENCE_H
#define FASTMTR_CPU_SEQUENCE_H

#include "operators.h"

namespace fastmtr {
namespace {

// ---- products of a row's own matrices -----------------------------------------------------------------------------

// Rows of a product that read the same matrix b.
struct Lines {
  const float* a[4];
  float* out[4];
};

// `count` columns of MR lines; k ascending, one sum an element.
template <size_t MR>
inline void multiply_lines(const Lines& lines, const float* b, size_t k, size_t n) {
  for (size_t j = 0; j < n; j += W) {
    const size_t m = less(W, n - j);
    F sums[MR] = {};
    for (size_t i = 0; i < k; ++i) {
      const F w = load_part(b + i * n + j, m);
      for (size_t r = 0; r < MR; ++r) sums[r] = fma(set1(lines.a[r][i]), w, sums[r]);
    }
    for (size_t r = 0; r < MR; ++r) store_part(lines.out[r] + j, sums[r], m);
  }
}

// The same for b transposed.
template <size_t MR>
inline void dot_lines(const Lines& lines, const float* b, size_t k, size_t n) {
  for (size_t j = 0; j < n; ++j)
    for (size_t r = 0; r < MR; ++r) lines.out[r][j] = dot_row(lines.a[r], b + j * k, k);
}

inline void matmul(const MatmulArgs* pointer) {
  const MatmulArgs& args = *pointer;
  const size_t m = args.m, k = args.k, n = args.n;
  const bool dots = args.transpose_b || n == 1;  // one column is one row, too
  // Where b is the same for all rows, their lines go through it together.
  const bool together = args.b.stride == 0;
  const size_t rows_at_once = together ? args.rows : 1;
  for (size_t first = 0; first < args.rows; first += rows_at_once)
    for (size_t o = 0; o < args.outer; ++o) {
      const float* b = row(args.b, first) + o * k * n;
      const size_t count = rows_at_once * m;
      for (size_t done = 0; done < count;) {
        const size_t some = count - done < 4 ? 1 : 4;
        Lines lines;
        for (size_t i = 0; i < some; ++i) {
          const size_t r = first + (done + i) / m, line = o * m + (done + i) % m;
          lines.a[i] = row(args.a, r) + line * k;
          lines.out[i] = row(args.out, r) + line * n;
        }
        if (some == 4)
          dots ? dot_lines<4>(lines, b, k, n) : multiply_lines<4>(lines, b, k, n);
        else
          dots ? dot_lines<1>(lines, b, k, n) : multiply_lines<1>(lines, b, k, n);
        done += some;
      }
    }
}

// ---- rearrangements -----------------------------------------------------------------------------------------------

FASTMTR_INLINE void fill(float* to, size_t n, float value) {
  map(to, to, n, [value](F, size_t, size_t) { return set1(value); });
}

inline void arrange_row(const Arrangement& order, const float* x, float* out) {
  for (size_t o = 0; o < order.outer; ++o)
    for (size_t i = 0; i < order.m; ++i)
      for (size_t j = 0; j < order.n; ++j, out += order.inner) {
        const size_t at = o * order.outer_step + i * order.m_step + j * order.n_step;
        if (at < order.before || at - order.before >= order.width)
          fill(out, order.inner, 0.0f);
        else if (order.inner == 1)
          *out = x[at - order.before];
        else
          copy_floats(out, x + at - order.before, order.inner);
      }
}

inline void arrange(size_t rows, const Arrangement* order, Rows x, Out out) {
  for (size_t r = 0; r < rows; ++r) arrange_row(*order, row(x, r), row(out, r));
}

// ---- padding ------------------------------------------------------------------------------------------------------

inline void present(size_t rows, size_t n_ids, IdRows ids, int64_t padding, Out out) {
  for (size_t r = 0; r < rows; ++r) {
    const int32_t* from = row(ids, r);
    float* to = row(out, r);
    for (size_t i = 0; i < n_ids; ++i) to[i] = from[i] == padding ? 0.0f : 1.0f;
  }
}

inline void mask(size_t rows, size_t n_ids, size_t inner, IdRows ids, int64_t padding, float value, Rows x, Out out) {
  for (size_t r = 0; r < rows; ++r) {
    const int32_t* id = row(ids, r);
    const float* from = row(x, r);
    float* to = row(out, r);
    for (size_t i = 0; i < n_ids; ++i, from += inner, to += inner) {
      if (id[i] == padding)
        fill(to, inner, value);
      else
        copy_floats(to, from, inner);
    }
  }
}

// ---- gated recurrent unit -----------------------------------------------------------------------------------------

inline void gru_step(size_t rows, size_t hidden, Rows of_x, Rows of_state, IdRows ids, int64_t padding, Out state,
                     Out out) {
  for (size_t r = 0; r < rows; ++r) {
    float* to = out.data ? row(out, r) : nullptr;
    if (ids.data && *row(ids, r) == padding) {
      if (to) fill(to, hidden, 0.0f);
      continue;
    }
    const float* x = row(of_x, r);
    const float* s = row(of_state, r);
    float* h = row(state, r);
    for (size_t i = 0; i < hidden; i += W) {
      const size_t m = less(W, hidden - i);
      const auto both = [&](size_t gate) {
        return load_part(x + gate * hidden + i, m) + load_part(s + gate * hidden + i, m);
      };
      const F reset = sigmoid(both(0)), update = sigmoid(both(1));
      const F fresh = tanh(fma(reset, load_part(s + 2 * hidden + i, m), load_part(x + 2 * hidden + i, m)));
      const F next = fma(update, load_part(h + i, m), (1.0f - update) * fresh);
      store_part(h + i, next, m);
      if (to) store_part(to + i, next, m);
    }
  }
}

}  // namespace
}  // namespace fastmtr
#endif
