// out = act(W x + b + addends) with W and x in 8 bits: what backend.h says of Int8Kernels.
//
// Weights lie as in affine.h, in panels of two vectors of columns, but kTogether of k side by side: one lane takes so
// many products at once. A block of rows of x is quantised to the stack, then all panels of its group pass over it,
// while what the next block is made of is fetched from memory.
#ifndef FASTMTR_CPU_AFFINE_INT8_H
#define FASTMTR_CPU_AFFINE_INT8_H

#include "affine.h"

namespace fastmtr {
namespace {

constexpr int kBits8 = 8 * sizeof(Signed8);
constexpr size_t kTogether = sizeof(int32_t) / sizeof(Signed8);
constexpr size_t kMostK8 = 2048;
// Rows of the block lie an odd number of cache lines apart: see kXStride.
constexpr size_t kStride8 = kMostK8 / kTogether + kLineFloats;
constexpr float kLevels = 255.0f;
constexpr uint32_t kRoundBits = 0x4b400000;  // of kRound

FASTMTR_INLINE size_t round_up_to(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// A row of k numbers takes so many steps of kTogether. Those of a step lie a vector apart, so that whole vectors of x
// make a vector of steps without a shuffle; at the end of the row they lie closer.
constexpr size_t kTurn = kTogether * W;
FASTMTR_INLINE size_t steps_of(size_t k) { return (k + kTogether - 1) / kTogether; }

struct Place8 {
  size_t step, part;
};

FASTMTR_INLINE Place8 place_of(size_t i, size_t k) {
  const size_t turn = i / kTurn * kTurn, apart = steps_of(less(kTurn, k - turn));
  return {turn / kTogether + (i - turn) % apart, (i - turn) / apart};
}

// ---- weights ------------------------------------------------------------------------------------------------------

// Of a group: its columns' scales, the sums of their weights, and the panels.
struct Packed8 {
  const float* scales;
  const int32_t* sums;
  const Signed8* panels;
};

FASTMTR_INLINE size_t group_bytes(size_t n, size_t k) {
  const size_t columns = vectors_of(n) * W;
  return round_up_to(columns * (sizeof(float) + sizeof(int32_t) + steps_of(k) * sizeof(int32_t)), 64);
}

FASTMTR_INLINE Packed8 group_of(const void* packed, size_t g, size_t n, size_t k) {
  const char* at = (const char*)packed + g * group_bytes(n, k);
  const size_t columns = vectors_of(n) * W;
  return {(const float*)at, (const int32_t*)(at + columns * 4), (const Signed8*)(at + columns * 8)};
}

inline size_t packed_bytes_int8(size_t groups, size_t n, size_t k) { return groups * group_bytes(n, k); }

// One column; from step to step of `to` there are `stride` weights.
inline void quantise_column(const float* w, size_t k, Signed8* to, size_t stride, float* scale, int32_t* sum) {
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
    const Place8 at = place_of(i, k);
    to[at.step * stride + at.part] = (Signed8)q;
    *sum += (int32_t)q;
  }
}

inline void pack_int8(const float* w, size_t groups, size_t n, size_t k, void* dst) {
  memset(dst, 0, packed_bytes_int8(groups, n, k));  // columns and k beyond the end
  const size_t steps = steps_of(k);
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

// Of each row of a block: x[i] is nearly scale * (its level - zero).
struct Levels {
  static constexpr size_t kRows = (kBlockRows + W - 1) / W * W;
  alignas(64) float scale[kRows], inverse[kRows], zero[kRows];
  bool from_zero;  // all zeros are 0
};

// The least and the largest number of a row, and 0, as bits: in these orders what is not finite comes last.
struct Range {
  S high;  // of those that are not negative, as signed integers
  U low;   // of the negative, as unsigned ones

  FASTMTR_INLINE void see(F x) {
    high = max_signed(high, (S)bits(x));
    low = max_unsigned(low, bits(x));
  }
};

FASTMTR_INLINE Range range_of(const float* x, size_t k) {
  Range range = {};
  const size_t whole = k / W * W;
#pragma GCC unroll 4
  for (size_t i = 0; i < whole; i += W) range.see(load(x + i));
  if (whole < k) range.see(load_n(x + whole, k - whole));
  return range;
}

// The levels of W steps, as lanes.
template <bool kFromZero>
FASTMTR_INLINE U levels_of(const F (&x)[kTogether], float inverse, F shift) {
  U all = {};
  uint32_t of_rounding = 0;  // kRound in each of the places
#pragma GCC unroll 4
  for (size_t i = 1; i <= kTogether; ++i) {
    const F moved = x[kTogether - i] * inverse + shift;
    all = (all << kBits8) + bits(kFromZero ? moved : min(set1(kRound + kLevels), moved));
    of_rounding = (of_rounding << kBits8) + kRoundBits;
  }
  return all - of_rounding;
}

template <bool kFromZero>
FASTMTR_INLINE void put_row(const float* x, size_t k, float inverse, float zero, int32_t* to) {
  const F shift = set1(kRound + zero);
  F numbers[kTogether];
  const size_t whole = k / kTurn * kTurn;
  for (size_t i = 0; i < whole; i += kTurn) {
#pragma GCC unroll 4
    for (size_t part = 0; part < kTogether; ++part) numbers[part] = load(x + i + part * W);
    const U levels = levels_of<kFromZero>(numbers, inverse, shift);
    memcpy(to + i / kTogether, &levels, sizeof levels);
  }
  if (whole == k) return;
  const size_t left = k - whole, apart = steps_of(left);
  for (size_t part = 0, at = 0; part < kTogether; ++part, at += apart)
    numbers[part] = at < left ? load_n(x + whole + at, less(apart, left - at)) : F{};
  const U levels = levels_of<kFromZero>(numbers, inverse, shift);
  memcpy(to + whole / kTogether, &levels, sizeof levels);
}

// A row that is not finite gets the scale NaN; then any level will do.
FASTMTR_INLINE void choose_levels(const Range* ranges, size_t rows, Levels& levels) {
  alignas(64) uint32_t highs[Levels::kRows] = {}, lows[Levels::kRows] = {};
  for (size_t r = 0; r < rows; ++r) highs[r] = largest_lane((U)ranges[r].high), lows[r] = largest_lane(ranges[r].low);
  uint32_t shifted = 0;
  for (size_t r = 0; r < rows; r += W) {
    U high, low;
    memcpy(&high, highs + r, sizeof high);
    memcpy(&low, lows + r, sizeof low);
    const F least = low >> 31 ? from_bits(low) : zero();
    const F range = from_bits(high) - least;
    const F inverse = range < kInfinity && range > kLeastRange ? kLevels / range : zero();
    const F offset = range < kInfinity ? (inverse * -least + kRound) - kRound : zero();
    store(levels.scale + r, range < kInfinity ? range / kLevels : set1(__builtin_nanf("")));
    store(levels.inverse + r, inverse);
    store(levels.zero + r, offset);
    shifted |= nonzero_lanes(offset);
  }
  levels.from_zero = shifted == 0;
}

// ---- product ------------------------------------------------------------------------------------------------------

// Rows that will be read next: a line of them is fetched from memory at each step of a product, whose loads leave room
// for it. Many at once would wait for each other.
struct Fetch {
  const char* at = nullptr;
  size_t left = 0;                    // lines of the row
  const char* const* rows = nullptr;  // those after it
  size_t n_rows = 0, lines = 0;

  FASTMTR_INLINE bool line() {
    if (left == 0) {
      if (n_rows == 0) return false;
      --n_rows;
      at = *rows++;
      left = lines;
    }
    __builtin_prefetch(at, 0, 2);  // into L2
    at += 64;
    --left;
    return true;
  }
};

// Where a micro kernel leaves its results, and what makes them of the sums.
struct Finish8 {
  float* to;
  size_t stride;
  const Levels* levels;
  const float* scales;  // of the panels' columns
  const int32_t* sums;  // the same
  const float* bias;    // NULL: none
  bool relu;
};

template <size_t MR, size_t NV, size_t NP>
__attribute__((noinline)) void micro_int8(const int32_t* x, const Signed8* panels, size_t panel_size, size_t steps,
                                          const Finish8& end, Fetch& fetch) {
  S sum[MR][NP * NV] = {};
  Fetch ahead = fetch;
  for (size_t i = 0; i < steps; ++i) {
    ahead.line();
    S w[NP * NV];
#pragma GCC unroll kUnroll
    for (size_t p = 0; p < NP; ++p)
#pragma GCC unroll kUnroll
      for (size_t v = 0; v < NV; ++v)
        memcpy(&w[p * NV + v], panels + p * panel_size + (i * NV + v) * W * kTogether, sizeof(S));
#pragma GCC unroll kUnroll
    for (size_t r = 0; r < MR; ++r) {
      const S a = S{} + x[r * kStride8 + i];
#pragma GCC unroll kUnroll
      for (size_t j = 0; j < NP * NV; ++j) sum[r][j] = dot(sum[r][j], a, w[j]);
    }
  }
  fetch = ahead;
  if (!end.levels->from_zero) {
#pragma GCC unroll kUnroll
    for (size_t j = 0; j < NP * NV; ++j) {
      S of_weights;
      memcpy(&of_weights, end.sums + j * W, sizeof of_weights);
#pragma GCC unroll kUnroll
      for (size_t r = 0; r < MR; ++r) sum[r][j] -= (int32_t)end.levels->zero[r] * of_weights;
    }
  }
#pragma GCC unroll kUnroll
  for (size_t j = 0; j < NP * NV; ++j) {
    const F scale = load(end.scales + j * W);
    const F bias = end.bias ? load(end.bias + j * W) : set1(-0.0f);  // x + -0 is x, also for -0
    const F floor = set1(end.relu ? 0.0f : -kInfinity);
#pragma GCC unroll kUnroll
    for (size_t r = 0; r < MR; ++r) {
      const F whole = __builtin_convertvector(sum[r][j], F);
      store(end.to + r * end.stride + j * W, max(floor, whole * (scale * end.levels->scale[r]) + bias));
    }
  }
}

// A block of quantised rows times neighbouring panels of one group.
struct Block8 {
  size_t group, row;
  Packed8 packed;
  const int32_t* x;
  const Levels* levels;
  Fetch* fetch;
};

template <size_t MR, size_t NV, size_t NP>
FASTMTR_INLINE void product_int8(const AffineArgs& args, const Block8& b, size_t column) {
  constexpr size_t width = NP * NV * W;
  const size_t n = less(width, args.n - column), first = b.group * args.n + column;
  const size_t steps = steps_of(args.k), deep = steps * kTogether;
  const Columns columns = {first, n, MR};
  const bool ends = args.n_addends == 0;
  // The bias has no room for whole vectors at the end of a group.
  const bool whole = n == width;
  alignas(64) float tile[MR * width];
  Finish8 end = {tile, width, b.levels, b.packed.scales + column, b.packed.sums + column, nullptr, false};
  if (whole) end.to = row(args.out, b.row) + first, end.stride = args.out.stride;
  if (whole && ends) {
    end.bias = args.bias ? args.bias + first : nullptr;
    end.relu = args.activation == Activation::relu;
  }
  micro_int8<MR, NV, NP>(b.x, b.packed.panels + column * deep, NV * W * deep, steps, end, *b.fetch);
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

// A block of rows, columns of one group.
struct Piece {
  size_t group, begin, end;
};

constexpr size_t kMostMade = 512;  // k of rows that are made on the way
constexpr size_t kMadeStride = kMostMade + kLineFloats;

// The piece's columns of a sum of two rows, A and B what their numbers are kept in, and the ranges.
template <class A, class B>
void add_rows(const AffineArgs& source, const Piece& piece, size_t first, size_t k, float* made, Range* ranges) {
  const F floor = set1(source.activation == Activation::relu ? 0.0f : -kInfinity);
  for (size_t r = piece.begin; r < piece.end; ++r, made += kMadeStride, ++ranges) {
    const Reader<A> a(source.addends[0], r, first, 0, 0);
    const Reader<B> b(source.addends[1], r, first, 0, 0);
    Range range = {};
    const auto add = [&](size_t i, size_t m) {
      const F bias = source.bias ? load_part(source.bias + first + i, m) : zero();
      const F x = max(floor, b.add_to(a.add_to(bias, i, m), i, m));
      range.see(x);
      store_part(made + i, x, m);
    };
    const size_t whole = k / W * W;
#pragma GCC unroll 2
    for (size_t i = 0; i < whole; i += W) add(i, W);
    if (whole < k) add(whole, k - whole);
    *ranges = range;
  }
}

// fn(number), a number of the type that the encoding keeps.
template <class Fn>
FASTMTR_INLINE void with_type_of(Encoding encoding, Fn fn) {
  switch (encoding) {
    case Encoding::f32:
      return fn(float{});
    case Encoding::f16:
      return fn(uint16_t{});
    case Encoding::i8:
      return fn(int8_t{});
  }
}

// Each pass over all rows: the next row does not wait for this one's range.
__attribute__((noinline)) void quantise_rows(const AffineArgs& args, const AffineArgs* source, const Piece& piece,
                                             int32_t* to, Levels& levels) {
  const size_t first = piece.group * args.k, count = piece.end - piece.begin;
  alignas(64) float made[kBlockRows * kMadeStride];
  const float* x[kBlockRows];
  Range ranges[kBlockRows];
  for (size_t r = 0; r < count; ++r) x[r] = source ? made + r * kMadeStride : row(args.x, piece.begin + r) + first;
  if (source && source->n_addends == 2 && is_simple(source->activation)) {
    with_type_of(source->addends[0].encoding, [&](auto a) {
      with_type_of(source->addends[1].encoding,
                   [&](auto b) { add_rows<decltype(a), decltype(b)>(*source, piece, first, args.k, made, ranges); });
    });
  } else {
    if (source) {
      AffineArgs some = *source;
      some.out = {made - first - piece.begin * kMadeStride, kMadeStride};
      finish(some, piece.begin, count, {nullptr, 0, nullptr}, {first, args.k, 0});
    }
    for (size_t r = 0; r < count; ++r) ranges[r] = range_of(x[r], args.k);
  }
  choose_levels(ranges, count, levels);
  for (size_t r = 0; r < count; ++r) {
    const float zero = levels.zero[r];
    if (zero == 0.0f) {
      put_row<true>(x[r], args.k, levels.inverse[r], zero, to + r * kStride8);
    } else {
      put_row<false>(x[r], args.k, levels.inverse[r], zero, to + r * kStride8);
    }
  }
}

// What the piece is made of and lies in memory: rows gathered from a table. Of two tables, if there are more.
struct ToFetch {
  const char* rows[2 * kBlockRows];

  Fetch find(const AffineArgs& args, const AffineArgs& source, const Piece& piece) {
    size_t n = 0, bytes = 0;
    for (size_t i = 0; i < source.n_addends; ++i) {
      const Rows& addend = source.addends[i];
      if (!addend.gather || n + kBlockRows > 2 * kBlockRows) continue;
      const size_t size = bytes_of(addend.encoding);
      bytes = args.k * size;
      for (size_t r = piece.begin; r < less(piece.end, source.rows + addend.rows_after); ++r)
        rows[n++] = (const char*)addend.data + (place(addend, r) + piece.group * args.k) * size;
    }
    return {nullptr, 0, rows, n, (bytes + 63) / 64};
  }
};

inline void affine_int8(const AffineArgs* pointer, const void* packed, const AffineArgs* source) {
  const AffineArgs& args = *pointer;
  alignas(64) int32_t x[kBlockRows * kStride8];
  Levels levels;
  ToFetch to_fetch;
  const size_t blocks = (args.rows + kBlockRows - 1) / kBlockRows;
  const auto begin_of = [&](size_t block) { return args.rows * block / blocks; };  // of equal size, give or take a row
  // So many groups, or so many columns of one, that their weights stay in L2 while all rows pass over them.
  const size_t fit = kChunkBytes / group_bytes(args.n, args.k);
  const size_t at_once = fit == 0 ? 1 : fit;
  const size_t chunk = fit == 0 ? columns_at_once(args.k, sizeof(Signed8)) : args.n;
  for (size_t first = 0; first < args.groups; first += at_once)
    for (size_t column = 0; column < args.n; column += chunk)
      for (size_t block = 0; block < blocks; ++block)
        for (size_t g = first, last = less(first + at_once, args.groups); g < last; ++g) {
          const Piece piece = {g, begin_of(block), begin_of(block + 1)};
          quantise_rows(args, source, piece, x, levels);
          const size_t count = piece.end - piece.begin;
          Fetch fetch;
          if (source)
            fetch = to_fetch.find(
                args, *source,
                g + 1 < last ? Piece{g + 1, piece.begin, piece.end} : Piece{first, piece.end, piece.end + count});
          const Block8 b = {g, piece.begin, group_of(packed, g, args.n, args.k), x, &levels, &fetch};
          multiply_rows_int8(args, b, column, less(column + chunk, args.n), count);
          while (fetch.line()) {
          }
        }
}

constexpr Int8Kernels int8_kernels() { return {kMostK8, kMostMade, packed_bytes_int8, pack_int8, affine_int8}; }

}  // namespace
}  // namespace fastmtr
#endif
