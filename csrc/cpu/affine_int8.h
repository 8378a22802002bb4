// out = act(W x + b + addends) with W and x in 8 bits: what backend.h says of Int8Kernels.
//
// Weights lie as in affine.h, in panels of two vectors of columns, but kTogether of k side by side: one lane takes so
// many products at once. A block of rows of x is quantised to the stack, then all panels of its group pass over it.
#ifndef FASTMTR_CPU_AFFINE_INT8_H
#define FASTMTR_CPU_AFFINE_INT8_H

#include "affine.h"

namespace fastmtr {
namespace {

constexpr size_t kTogether = sizeof(int32_t) / sizeof(Signed8);
constexpr size_t kMostK8 = 2048;
// Rows of the block lie an odd number of cache lines apart: see kXStride.
constexpr size_t kStride8 = kMostK8 + 64 / sizeof(Unsigned8);
constexpr size_t kMostMade = 512;  // k of rows that are made on the way
constexpr size_t kMadeStride = kMostMade + kLineFloats;
constexpr float kLevels = 255.0f;

FASTMTR_INLINE size_t round_up_to(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// ---- weights ------------------------------------------------------------------------------------------------------

// Of a group: its columns' scales, the sums of their weights, and the panels.
struct Packed8 {
  const float* scales;
  const int32_t* sums;
  const Signed8* panels;
};

FASTMTR_INLINE size_t group_bytes(size_t n, size_t k) {
  const size_t columns = vectors_of(n) * W;
  return round_up_to(columns * (sizeof(float) + sizeof(int32_t) + round_up_to(k, kTogether) * sizeof(Signed8)), 64);
}

FASTMTR_INLINE Packed8 group_of(const void* packed, size_t g, size_t n, size_t k) {
  const char* at = (const char*)packed + g * group_bytes(n, k);
  const size_t columns = vectors_of(n) * W;
  return {(const float*)at, (const int32_t*)(at + columns * 4), (const Signed8*)(at + columns * 8)};
}

inline size_t packed_bytes_int8(size_t groups, size_t n, size_t k) { return groups * group_bytes(n, k); }

// One column: its weights to to[i / kTogether * step + i % kTogether].
inline void quantise_column(const float* w, size_t k, Signed8* to, size_t step, float* scale, int32_t* sum) {
  float largest = 0;
  bool finite = true;
  for (size_t i = 0; i < k; ++i) {
    const float size = __builtin_fabsf(w[i]);
    finite = finite && size < kInfinity;
    largest = size > largest ? size : largest;
  }
  const float inverse = largest > kLeastRange ? kSignedLevels / largest : 0.0f;
  *scale = finite ? largest / kSignedLevels : __builtin_nanf("");
  *sum = 0;
  for (size_t i = 0; i < k; ++i) {
    const float q = finite ? (w[i] * inverse + kRound) - kRound : 0.0f;
    to[i / kTogether * step + i % kTogether] = (Signed8)q;
    *sum += (int32_t)q;
  }
}

inline void pack_int8(const float* w, size_t groups, size_t n, size_t k, void* dst) {
  memset(dst, 0, packed_bytes_int8(groups, n, k));  // columns and k beyond the end
  const size_t steps = round_up_to(k, kTogether) / kTogether;
  for (size_t g = 0; g < groups; ++g) {
    const Packed8 to = group_of(dst, g, n, k);
    auto* panel = (Signed8*)to.panels;
    for (size_t first = 0; first < n; first += kPanel) {
      const size_t width = less(kPanel, vectors_of(n - first) * W);
      for (size_t j = 0; j < width && first + j < n; ++j, w += k)
        quantise_column(w, k, panel + j * kTogether, width * kTogether, (float*)to.scales + first + j,
                        (int32_t*)to.sums + first + j);
      panel += width * steps * kTogether;
    }
  }
}

// ---- x ------------------------------------------------------------------------------------------------------------

struct Quantised {
  float scale;
  int32_t zero;
};

typedef Unsigned8 V8 __attribute__((vector_size(W * sizeof(Unsigned8))));

// The least and the largest number of a row, and 0, as bits: in these orders what is not finite comes last.
struct Range {
  uint32_t high, low;  // of those that are not negative, as signed integers; of the negative, as unsigned ones
};

FASTMTR_INLINE Range range_of(const float* x, size_t k) {
  S high = {};
  U low = {};
  const size_t whole = k / W * W;
#pragma GCC unroll 4
  for (size_t i = 0; i < whole; i += W) {
    high = max_signed(high, (S)bits(load(x + i)));
    low = max_unsigned(low, bits(load(x + i)));
  }
  if (whole < k) {
    high = max_signed(high, (S)bits(load_n(x + whole, k - whole)));
    low = max_unsigned(low, bits(load_n(x + whole, k - whole)));
  }
  return {largest_lane((U)high), largest_lane(low)};
}

// A row: x[i] is nearly scale * (to[i] - zero).
FASTMTR_INLINE Quantised quantise(const float* x, size_t k, const Range& found, Unsigned8* to) {
  float largest, least = 0;
  memcpy(&largest, &found.high, sizeof largest);
  if (found.low >> 31) memcpy(&least, &found.low, sizeof least);
  const float range = largest - least;
  const bool finite = range < kInfinity;
  const float inverse = finite && range > kLeastRange ? kLevels / range : 0.0f;
  const float zero = finite ? (-least * inverse + kRound) - kRound : 0.0f;
  const F shift = set1(kRound + zero), top = set1(kRound + kLevels);
  const auto put = [&](size_t i, F v) {  // of a NaN any byte will do: the scale is NaN
    const V8 q = __builtin_convertvector(bits(min(top, v * inverse + shift)) & 255u, V8);
    memcpy(to + i, &q, sizeof q);
  };
  const size_t whole = k / W * W;
#pragma GCC unroll 4
  for (size_t i = 0; i < whole; i += W) put(i, load(x + i));
  if (whole < k) put(whole, load_n(x + whole, k - whole));
  return {finite ? range / kLevels : __builtin_nanf(""), (int32_t)zero};
}

// ---- product ------------------------------------------------------------------------------------------------------

// Where a micro kernel leaves its results, and what makes them of the sums.
struct Finish8 {
  float* to;
  size_t stride;
  const Quantised* rows;
  const float* scales;  // of the panels' columns
  const int32_t* sums;  // the same
  const float* bias;    // NULL: none
  bool relu;
};

template <size_t MR, size_t NV, size_t NP>
__attribute__((noinline)) void micro_int8(const Unsigned8* x, const Signed8* panels, size_t panel_size, size_t steps,
                                          const Finish8& end) {
  S sum[MR][NP * NV] = {};
  for (size_t i = 0; i < steps; ++i) {
    S w[NP * NV];
#pragma GCC unroll kUnroll
    for (size_t p = 0; p < NP; ++p)
#pragma GCC unroll kUnroll
      for (size_t v = 0; v < NV; ++v)
        memcpy(&w[p * NV + v], panels + p * panel_size + (i * NV + v) * W * kTogether, sizeof(S));
#pragma GCC unroll kUnroll
    for (size_t r = 0; r < MR; ++r) {
      int32_t together;
      memcpy(&together, x + r * kStride8 + i * kTogether, sizeof together);
      const S a = S{} + together;
#pragma GCC unroll kUnroll
      for (size_t j = 0; j < NP * NV; ++j) sum[r][j] = dot(sum[r][j], a, w[j]);
    }
  }
#pragma GCC unroll kUnroll
  for (size_t j = 0; j < NP * NV; ++j) {
    const F scale = load(end.scales + j * W);
    S of_weights;
    memcpy(&of_weights, end.sums + j * W, sizeof of_weights);
    const F bias = end.bias ? load(end.bias + j * W) : set1(-0.0f);  // x + -0 is x, also for -0
    const F floor = set1(end.relu ? 0.0f : -kInfinity);
#pragma GCC unroll kUnroll
    for (size_t r = 0; r < MR; ++r) {
      const F whole = __builtin_convertvector(sum[r][j] - end.rows[r].zero * of_weights, F);
      store(end.to + r * end.stride + j * W, max(floor, whole * (scale * end.rows[r].scale) + bias));
    }
  }
}

// A block of quantised rows times neighbouring panels of one group.
struct Block8 {
  size_t group, row;
  Packed8 packed;
  const Unsigned8* x;
  const Quantised* rows;
};

template <size_t MR, size_t NV, size_t NP>
FASTMTR_INLINE void product_int8(const AffineArgs& args, const Block8& b, size_t column) {
  constexpr size_t width = NP * NV * W;
  const size_t n = less(width, args.n - column), first = b.group * args.n + column;
  const size_t steps = round_up_to(args.k, kTogether) / kTogether, deep = steps * kTogether;
  const Columns columns = {first, n, MR};
  const bool ends = args.n_addends == 0;
  // The bias has no room for whole vectors at the end of a group.
  const bool whole = n == width;
  alignas(64) float tile[MR * width];
  Finish8 end = {tile, width, b.rows, b.packed.scales + column, b.packed.sums + column, nullptr, false};
  if (whole) end.to = row(args.out, b.row) + first, end.stride = args.out.stride;
  if (whole && ends) {
    end.bias = args.bias ? args.bias + first : nullptr;
    end.relu = args.activation == Activation::relu;
  }
  micro_int8<MR, NV, NP>(b.x, b.packed.panels + column * deep, NV * W * deep, steps, end);
  if (!whole || !ends) return finish(args, b.row, MR, {end.to, end.stride, nullptr}, columns);
  if (!is_simple(args.activation)) activate_columns(args, b.row, MR, columns);
}

template <size_t MR>
__attribute__((noinline)) void multiply_int8(const AffineArgs& args, const Block8& b, size_t column, size_t end) {
  constexpr size_t NP = panels_at_once(MR);
  for (; column + NP * kPanel < end + W; column += NP * kPanel) product_int8<MR, 2, NP>(args, b, column);
  if constexpr (NP > 1)
    for (; column + kPanel < end + W; column += kPanel) product_int8<MR, 2, 1>(args, b, column);
  if (column < end) product_int8<MR, 1, 1>(args, b, column);
}

template <size_t MR = kBlockRows>
FASTMTR_INLINE void multiply_rows_int8(const AffineArgs& args, const Block8& b, size_t column, size_t end,
                                       size_t rows) {
  if (rows == MR) return multiply_int8<MR>(args, b, column, end);
  if constexpr (MR > 1) multiply_rows_int8<MR - 1>(args, b, column, end, rows);
}

// Rows begin .. end of x, columns of group g. Each pass over all rows: the next row does not wait for this one's range.
__attribute__((noinline)) void quantise_rows(const AffineArgs& args, const AffineArgs* source, size_t g, size_t begin,
                                             size_t end, Unsigned8* to, Quantised* quantised) {
  const size_t first = g * args.k, count = end - begin;
  alignas(64) float made[kBlockRows * kMadeStride];
  const float* x[kBlockRows];
  if (source) {
    AffineArgs some = *source;
    some.out = {made - first - begin * kMadeStride, kMadeStride};
    finish(some, begin, count, {nullptr, 0, nullptr}, {first, args.k, kBlockRows});
  }
  Range ranges[kBlockRows];
  for (size_t r = 0; r < count; ++r) {
    x[r] = source ? made + r * kMadeStride : row(args.x, begin + r) + first;
    ranges[r] = range_of(x[r], args.k);
  }
  for (size_t r = 0; r < count; ++r) quantised[r] = quantise(x[r], args.k, ranges[r], to + r * kStride8);
}

inline void affine_int8(const AffineArgs* pointer, const void* packed, const AffineArgs* source) {
  const AffineArgs& args = *pointer;
  alignas(64) Unsigned8 x[kBlockRows * kStride8];
  Quantised rows[kBlockRows];
  const size_t blocks = (args.rows + kBlockRows - 1) / kBlockRows;
  // So many groups, or so many columns of one, that their weights stay in L2 while all rows pass over them.
  const size_t fit = kChunkBytes / group_bytes(args.n, args.k);
  const size_t groups = fit == 0 ? 1 : fit;
  const size_t chunk = fit == 0 ? columns_at_once(args.k, sizeof(Signed8)) : args.n;
  for (size_t g0 = 0; g0 < args.groups; g0 += groups)
    for (size_t column = 0; column < args.n; column += chunk)
      for (size_t i = 0, begin = 0; i < blocks; ++i) {  // of equal size, give or take one row
        const size_t end = args.rows * (i + 1) / blocks;
        for (size_t g = g0; g < less(g0 + groups, args.groups); ++g) {
          quantise_rows(args, source, g, begin, end, x, rows);
          const Block8 b = {g, begin, group_of(packed, g, args.n, args.k), x, rows};
          multiply_rows_int8(args, b, column, less(column + chunk, args.n), end - begin);
        }
        begin = end;
      }
}

constexpr Int8Kernels int8_kernels() { return {kMostK8, kMostMade, packed_bytes_int8, pack_int8, affine_int8}; }

}  // namespace
}  // namespace fastmtr
#endif
