// out = act(W x + b + addends): a product over tiles of rows.
//
// Weights are packed in panels of two vectors of columns: for each k, 2 W weights side by side. The last panel of a
// group is one vector wide where that is enough, and filled with zeros to whole vectors. A micro kernel keeps the sums
// of MR rows by NP panels in registers and walks k upward, one multiply-add a sum: the order, and so the bits, are the
// same whatever MR, NP and the row's place in its tile are.
#ifndef FASTMTR_CPU_AFFINE_H
#define FASTMTR_CPU_AFFINE_H

#include "encodings.h"

namespace fastmtr {
namespace {

#ifndef FASTMTR_UNROLL
#define FASTMTR_UNROLL 16  // more than any loop over sums: all become registers
#endif
constexpr int kUnroll = FASTMTR_UNROLL;

constexpr size_t kPanel = 2 * W;
constexpr size_t kMaxK = 512;  // columns of x copied to the stack at once; beyond, sums rest in `out` in between
// Rows of the copy lie an odd number of cache lines apart, so that a power-of-two stride of x cannot make them meet in
// one cache set, and at a distance that the compiler knows.
constexpr size_t kXStride = kMaxK + kLineFloats;
constexpr size_t kChunkBytes = 384 * 1024;  // weights that stay in L2 while all rows pass over them

// Columns of k weights that fit, in whole fours of panels.
FASTMTR_INLINE size_t columns_at_once(size_t k, size_t weight_bytes) {
  const size_t panels = kChunkBytes / weight_bytes / (k * kPanel);
  return (panels < 4 ? 4 : panels / 4 * 4) * kPanel;
}

// Few rows take several panels at once: enough independent sums to hide the latency of a multiply-add.
constexpr size_t panels_at_once(size_t mr) { return mr == 1 ? 4 : mr <= 3 ? 2 : 1; }

// Weights in half precision.
typedef uint16_t Half;
FASTMTR_INLINE F load(const Half* p) { return from_halves(p); }
FASTMTR_INLINE void store(Half* p, F x) { to_halves(x, p); }

FASTMTR_INLINE size_t vectors_of(size_t n) { return (n + W - 1) / W; }

inline size_t packed_floats(size_t groups, size_t n, size_t k) { return groups * vectors_of(n) * W * k; }

template <class Weight>
inline void pack(const float* w, size_t groups, size_t n, size_t k, Weight* dst) {
  for (size_t g = 0; g < groups; ++g, w += n * k, dst += vectors_of(n) * W * k)
    for (size_t first = 0; first < n; first += W) {  // of a vector of columns
      const size_t panel = first / kPanel * kPanel, width = less(kPanel, vectors_of(n - panel) * W);
      for (size_t i = 0; i < k; ++i) {
        alignas(64) float columns[W];
        for (size_t j = 0; j < W; ++j) columns[j] = first + j < n ? w[(first + j) * k + i] : 0.0f;
        store(dst + panel * k + i * width + (first - panel), load(columns));
      }
    }
}

// A sum of terms that underflow may be -0, of which adding a term 0 * w would make 0: then the bits do not tell whether
// such terms were left out.
FASTMTR_INLINE F positive_zero(F sum) { return sum + zero(); }

// Where a micro kernel leaves its sums, and what it does to them on the way out.
struct Sums {
  float* to;
  size_t stride;
  const float* bias;  // NULL: none
  bool fresh;         // else on top of what is there
  bool relu;
};

// sums[MR][NP * NV * W] = x[MR][kXStride] times NP panels of NV vectors.
template <size_t MR, size_t NV, size_t NP, class Weight>
__attribute__((noinline)) void micro(const float* x, const Weight* panels, size_t panel_floats, size_t k,
                                     const Sums& sums) {
  F sum[MR][NP * NV];
#pragma GCC unroll kUnroll
  for (size_t r = 0; r < MR; ++r)
#pragma GCC unroll kUnroll
    for (size_t j = 0; j < NP * NV; ++j) sum[r][j] = sums.fresh ? zero() : load(sums.to + r * sums.stride + j * W);

  for (size_t i = 0; i < k; ++i) {
    F w[NP * NV];
#pragma GCC unroll kUnroll
    for (size_t p = 0; p < NP; ++p)
#pragma GCC unroll kUnroll
      for (size_t v = 0; v < NV; ++v) w[p * NV + v] = load(panels + p * panel_floats + (i * NV + v) * W);
#pragma GCC unroll kUnroll
    for (size_t r = 0; r < MR; ++r) {
      const F a = set1(x[r * kXStride + i]);
#pragma GCC unroll kUnroll
      for (size_t j = 0; j < NP * NV; ++j) sum[r][j] = fma(a, w[j], sum[r][j]);
    }
  }
#pragma GCC unroll kUnroll
  for (size_t j = 0; j < NP * NV; ++j) {
    const F bias = sums.bias ? load(sums.bias + j * W) : zero();
    const F floor = set1(sums.relu ? 0.0f : -kInfinity);
#pragma GCC unroll kUnroll
    for (size_t r = 0; r < MR; ++r)
      store(sums.to + r * sums.stride + j * W, max(floor, positive_zero(sum[r][j]) + bias));
  }
}

// Where finished sums go: `n` columns from `first` on. Gathered addends of the row `ahead` rows on are fetched
// meanwhile.
struct Columns {
  size_t first, n, ahead;
};

// A few KiB.
FASTMTR_INLINE size_t rows_ahead(size_t columns) { return 1 + 1024 / columns; }

// to = from + bias + addends (from and bias may be NULL), then relu if asked.
template <class... Addends>
inline void add_row(const float* from, const float* bias, const Columns& c, bool relu, float* to,
                    const Addends&... addends) {
  const auto add = [&](size_t i, size_t m) __attribute__((always_inline)) {
    F x = from ? load_part(from + i, m) : zero();
    if (bias) x = x + load_part(bias + i, m);
    ((x = addends.add_to(x, i, m)), ...);
    (addends.fetch(i), ...);
    store_part(to + i, relu ? max(zero(), x) : x, m);
  };
  size_t i = 0;
  for (; i + W <= c.n; i += W) add(i, W);
  if (i < c.n) add(i, c.n - i);
}

FASTMTR_INLINE bool plain_rows(const Rows* x, size_t n) {
  for (size_t i = 0; i < n; ++i)
    if (x[i].encoding != Encoding::f32) return false;
  return true;
}

FASTMTR_INLINE bool is_simple(Activation fn) { return fn == Activation::none || fn == Activation::relu; }

inline void activate_columns(const AffineArgs& args, size_t r, size_t count, const Columns& c) {
  const Out out = {row(args.out, r) + c.first, args.out.stride};
  activate_rows(count, c.n, args.activation, args.alpha, args.slope ? args.slope + c.first : nullptr,
                {out.data, out.stride, nullptr}, out);
}

// Rows r .. r + count of `out`: act(from + bias + addends). from.data may be NULL, or be `out`.
__attribute__((noinline)) void finish(const AffineArgs& args, size_t r, size_t count, const Rows& from,
                                      const Columns& c) {
  const bool relu = args.activation == Activation::relu;
  for (size_t i = 0; i < count; ++i) {
    const float* sums = from.data ? row(from, i) : nullptr;
    const float* bias = args.bias ? args.bias + c.first : nullptr;
    const Rows* addends = args.addends;
    size_t left = args.n_addends;
    float* to = row(args.out, r + i) + c.first;
    const auto read = [&](const Rows& addend, auto add) { read_row(addend, r + i, c.first, c.ahead, args.rows, add); };
    const auto add_two = [&](bool last) {
      read(addends[0], [&](const auto& a) {
        read(addends[1], [&](const auto& b) { add_row(sums, bias, c, last && relu, to, a, b); });
      });
    };
    const auto reader = [&](size_t j) { return Reader<float>(addends[j], r + i, c.first, c.ahead, args.rows); };
    for (; left > 4 && plain_rows(addends, 4); left -= 4, addends += 4, sums = to, bias = nullptr)
      add_row(sums, bias, c, false, to, reader(0), reader(1), reader(2), reader(3));
    for (; left > 2; left -= 2, addends += 2, sums = to, bias = nullptr) add_two(false);
    if (left == 2) {
      add_two(true);
    } else if (left == 1) {
      read(addends[0], [&](const auto& a) { add_row(sums, bias, c, relu, to, a); });
    } else {
      add_row(sums, bias, c, relu, to);
    }
  }
  if (!is_simple(args.activation)) activate_columns(args, r, count, c);
}

// A block of rows times neighbouring panels of one group.
template <class Weight>
struct Block {
  size_t group, row;       // the first row
  size_t column, columns;  // in the group
  const Weight* panels;    // that begin with `column`
};

template <size_t MR, size_t NV, size_t NP, class Weight>
FASTMTR_INLINE void product(const AffineArgs& args, const Block<Weight>& b, const float* x, size_t done, size_t k,
                            size_t column, size_t n) {
  constexpr size_t width = NP * NV * W;
  const size_t first = b.group * args.n + b.column + column;
  const Columns columns = {first, n, MR};
  const Weight* panels = b.panels + column * args.k + done * NV * W;
  const size_t panel_floats = args.k * NV * W;
  const bool ends = done + k == args.k && args.n_addends == 0;  // else sums rest in `out`
  float* to = row(args.out, b.row) + first;

  if (n == width) {
    micro<MR, NV, NP>(x, panels, panel_floats, k,
                      {to, args.out.stride, ends && args.bias ? args.bias + first : nullptr, done == 0,
                       ends && args.activation == Activation::relu});
    if (ends && !is_simple(args.activation)) activate_columns(args, b.row, MR, columns);
    return;
  }
  alignas(64) float tile[MR * width];
  if (done > 0)
    for (size_t r = 0; r < MR; ++r) copy_floats(tile + r * width, to + r * args.out.stride, n);
  micro<MR, NV, NP>(x, panels, panel_floats, k, {tile, width, nullptr, done == 0, false});
  if (ends) return finish(args, b.row, MR, {tile, width, nullptr}, columns);
  for (size_t r = 0; r < MR; ++r) copy_floats(to + r * args.out.stride, tile + r * width, n);
}

template <size_t MR, class Weight>
__attribute__((noinline)) void multiply(const AffineArgs& args, const Block<Weight>& b) {
  constexpr size_t NP = panels_at_once(MR);
  alignas(64) float x[MR * kXStride];
  for (size_t done = 0; done < args.k; done += kMaxK) {
    const size_t k = less(kMaxK, args.k - done);
    for (size_t r = 0; r < MR; ++r) copy_floats(x + r * kXStride, row(args.x, b.row + r) + b.group * args.k + done, k);
    size_t column = 0;
    // A panel of two vectors may still be cut short by the end of the group.
    for (; column + NP * kPanel < b.columns + W; column += NP * kPanel)
      product<MR, 2, NP>(args, b, x, done, k, column, less(NP * kPanel, b.columns - column));
    if constexpr (NP > 1)
      for (; column + kPanel < b.columns + W; column += kPanel)
        product<MR, 2, 1>(args, b, x, done, k, column, less(kPanel, b.columns - column));
    if (column < b.columns) product<MR, 1, 1>(args, b, x, done, k, column, b.columns - column);
  }
  if (args.n_addends == 0) return;
  // Row by row, so that addends are read as they lie: panel by panel, many rows' would be read in turn.
  const Columns columns = {b.group * args.n + b.column, b.columns, rows_ahead(b.columns)};
  finish(args, b.row, MR, {row(args.out, b.row) + columns.first, args.out.stride, nullptr}, columns);
}

template <size_t MR = kBlockRows, class Weight>
FASTMTR_INLINE void multiply_rows(const AffineArgs& args, const Block<Weight>& b, size_t rows) {
  if (rows == MR) return multiply<MR>(args, b);
  if constexpr (MR > 1) multiply_rows<MR - 1>(args, b, rows);
}

// The rows up to `end`, in blocks of equal size, give or take one row.
template <class Weight>
inline void multiply_evenly(const AffineArgs& args, Block<Weight> b, size_t end) {
  const size_t start = b.row, rows = end - start, blocks = (rows + kBlockRows - 1) / kBlockRows;
  for (size_t i = 0; i < blocks; ++i) {
    const size_t next = start + rows * (i + 1) / blocks;
    multiply_rows(args, b, next - b.row);
    b.row = next;
  }
}

// ---- x with many zeros, as ReLU leaves them -------------------------------------------------------------------------
//
// A term 0 * w adds nothing, so leaving it out gives the same bits. Each row has its own zeros: alone, it takes the
// weights that it needs from a block of them that stays in the first cache while the rows pass over it. The loads bound
// it, so it takes about half as long again for a term as the product above: see max_nonzeros.

constexpr size_t kMaskBits = 64;
constexpr size_t kSkipRows = 64;          // rows whose masks are made at once
constexpr size_t kSkipBlock = 16 * 1024;  // bytes of weights in a block

struct Masks {
  const float* x[kSkipRows];  // the rows themselves
  uint64_t of[kMaxK / kMaskBits][kSkipRows];
};

// More of them in `rows` rows of k columns, and the product above is quicker. A few rows are bound by the reading of
// the weights, of which any that is left out is a gain.
FASTMTR_INLINE size_t max_nonzeros(size_t rows, size_t k) { return rows * k * (rows < 4 ? 15 : 11) / 16; }

FASTMTR_INLINE uint64_t nonzeros(const float* x, size_t n) {
  uint64_t mask = 0;
  for (size_t i = 0; i < n; i += W) mask |= (uint64_t)nonzero_lanes(load_part(x + i, less(W, n - i))) << i;
  return mask;
}

// Without the instruction, the builtin would call a library function.
FASTMTR_INLINE size_t bits_set(uint64_t x) {
  x -= x >> 1 & 0x5555555555555555u;
  x = (x & 0x3333333333333333u) + (x >> 2 & 0x3333333333333333u);
  return ((x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu) * 0x0101010101010101u >> 56;
}

// False where there are too many.
template <class Weight>
inline bool find_nonzeros(const AffineArgs& args, const Block<Weight>& b, size_t rows, Masks& masks) {
  size_t found = 0;
  for (size_t r = 0; r < rows; ++r) {
    const float* x = masks.x[r] = row(args.x, b.row + r) + b.group * args.k;
    for (size_t i = 0; i < args.k; i += kMaskBits) {
      const uint64_t mask = nonzeros(x + i, less(kMaskBits, args.k - i));
      masks.of[i / kMaskBits][r] = mask;
      found += bits_set(mask);
    }
    // Dense x shows in the first rows.
    if ((r % 8 == 7 || r + 1 == rows) && found > max_nonzeros(r + 1, args.k)) return false;
  }
  return true;
}

// The part that the columns [begin, end) of x add to NV vectors of columns; they lie in one word of the masks. kLast: no
// others come after them.
template <size_t NV, bool kLast, class Weight>
__attribute__((noinline)) void skip_block(const AffineArgs& args, const Block<Weight>& b, size_t rows,
                                          const Masks& masks, size_t begin, size_t end) {
  const size_t first = b.group * args.n + b.column;
  const size_t base = begin / kMaskBits * kMaskBits;
  const uint64_t here = (~uint64_t{0} >> (kMaskBits - (end - begin))) << (begin - base);
  const bool ends = kLast && args.n_addends == 0;
  const F floor = set1(ends && args.activation == Activation::relu ? 0.0f : -kInfinity);
  const float* bias = ends && args.bias ? args.bias + first : nullptr;
  const Weight* panels[(NV + 1) / 2];
  for (size_t p = 0; p < (NV + 1) / 2; ++p) panels[p] = b.panels + (p * args.k + base) * kPanel;
  float* to = row(args.out, b.row) + first;

  for (size_t r = 0; r < rows; ++r, to += args.out.stride) {
    const float* x = masks.x[r] + base;
    F sum[NV];
#pragma GCC unroll kUnroll
    for (size_t j = 0; j < NV; ++j) sum[j] = begin == 0 ? zero() : load(to + j * W);
    for (uint64_t mask = masks.of[begin / kMaskBits][r] & here; mask; mask &= mask - 1) {
      const size_t i = (size_t)__builtin_ctzll(mask);
      const F a = set1(x[i]);
#pragma GCC unroll kUnroll
      for (size_t j = 0; j < NV; ++j) sum[j] = fma(a, load(panels[j / 2] + i * kPanel + j % 2 * W), sum[j]);
    }
#pragma GCC unroll kUnroll
    for (size_t j = 0; j < NV; ++j) {
      if (kLast) sum[j] = max(floor, positive_zero(sum[j]) + (bias ? load(bias + j * W) : zero()));
      store(to + j * W, sum[j]);
    }
  }
}

// As many whole NV vectors of columns as there are; b goes on behind them.
template <size_t NV, class Weight>
FASTMTR_INLINE void skip_columns(const AffineArgs& args, Block<Weight>& b, size_t rows, const Masks& masks) {
  constexpr size_t width = NV * W;
  constexpr size_t fitting = kSkipBlock / (width * sizeof(Weight));
  constexpr size_t step = fitting < kMaskBits ? fitting : kMaskBits;
  static_assert(kMaskBits % step == 0, "a block lies in one word of the masks");
  for (; b.columns >= width; b.column += width, b.columns -= width, b.panels += width * args.k) {
    size_t begin = 0;
    for (; begin + step < args.k; begin += step) skip_block<NV, false>(args, b, rows, masks, begin, begin + step);
    skip_block<NV, true>(args, b, rows, masks, begin, args.k);
    const Columns columns = {b.group * args.n + b.column, width, 1};
    if (args.n_addends > 0)
      finish(args, b.row, rows, {row(args.out, b.row) + columns.first, args.out.stride, nullptr}, columns);
    else if (!is_simple(args.activation))
      activate_columns(args, b.row, rows, columns);
  }
}

// True where x had zeros enough, and all is done.
template <class Weight>
inline bool multiply_skipping(const AffineArgs& args, const Block<Weight>& block, size_t rows) {
  Masks masks;
  if (!find_nonzeros(args, block, rows, masks)) return false;
  Block<Weight> b = block;
  skip_columns<kSkipVectors>(args, b, rows, masks);
  if constexpr (kSkipVectors > 4) skip_columns<4>(args, b, rows, masks);
  skip_columns<2>(args, b, rows, masks);
  if (b.columns > 0) multiply_evenly(args, b, block.row + rows);
  return true;
}

// One column a group, as the last layer of a task has: as vectors all lanes but one would be idle, so rows go side by
// side as scalars. The order of each sum, and so its bits, are those of the product above.
template <class Weight>
inline void multiply_single(const AffineArgs& args, const Weight* packed) {
  constexpr size_t kRows = 8;
  const float floor = args.activation == Activation::relu ? 0.0f : -kInfinity;
  float w[kMaxK];
  for (size_t g = 0; g < args.groups; ++g, packed += packed_floats(1, 1, args.k)) {
    for (size_t i = 0; i < args.k; ++i) w[i] = load(packed + i * W)[0];
    const float bias = args.bias ? args.bias[g] : 0.0f;
    for (size_t r = 0; r < args.rows; r += kRows) {
      const size_t count = less(kRows, args.rows - r);
      const float* x[kRows];
      float sums[kRows] = {};
      for (size_t j = 0; j < kRows; ++j) x[j] = row(args.x, r + less(j, count - 1)) + g * args.k;
      for (size_t i = 0; i < args.k; ++i)
#pragma GCC unroll 8
        for (size_t j = 0; j < kRows; ++j) sums[j] = fma(x[j][i], w[i], sums[j]);
      for (size_t j = 0; j < count; ++j) {
        const float sum = sums[j] + 0.0f + bias;  // see positive_zero
        row(args.out, r + j)[g] = floor > sum ? floor : sum;
      }
    }
  }
  if (!is_simple(args.activation)) activate_columns(args, 0, args.rows, {0, args.groups, 0});
}

// No product: adds and activates, at the speed of memory.
inline void add(const AffineArgs* pointer) {
  const AffineArgs& args = *pointer;
  const size_t width = args.groups * args.n;
  if (width == 0) return;
  constexpr size_t block = 16;
  for (size_t r = 0; r < args.rows; r += block)
    finish(args, r, less(block, args.rows - r), {nullptr, 0, nullptr}, {0, width, rows_ahead(width)});
}

template <class Weight>
inline void affine(const AffineArgs* pointer) {
  const AffineArgs& args = *pointer;
  auto* packed = (const Weight*)args.packed;
  if (!args.x.data || args.k == 0) return add(pointer);
  if (args.n == 1 && args.k <= kMaxK && args.n_addends == 0) return multiply_single(args, packed);
  // Below these, finding the zeros takes longer than multiplying by them.
  const bool may_skip = args.k >= kLineFloats && args.k <= kMaxK && args.n >= kPanel;
  const size_t chunk = columns_at_once(args.k, sizeof(Weight));
  for (size_t g = 0; g < args.groups; ++g, packed += packed_floats(1, args.n, args.k))
    for (size_t column = 0; column < args.n; column += chunk) {
      Block<Weight> b = {g, 0, column, less(chunk, args.n - column), packed + column * args.k};
      while (may_skip && b.row < args.rows) {
        const size_t rows = less(kSkipRows, args.rows - b.row);
        if (!multiply_skipping(args, b, rows)) break;
        b.row += rows;
      }
      if (b.row < args.rows) multiply_evenly(args, b, args.rows);
    }
}

template <class Weight>
constexpr ProductKernels product_kernels() {
  return {[](size_t groups, size_t n, size_t k) { return packed_floats(groups, n, k) * sizeof(Weight); },
          [](const float* w, size_t groups, size_t n, size_t k, void* dst) { pack(w, groups, n, k, (Weight*)dst); },
          affine<Weight>};
}

}  // namespace
}  // namespace fastmtr
#endif
