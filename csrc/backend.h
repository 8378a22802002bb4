// The seam between the engine and whatever computes: a table of kernels over tiles of rows.
//
// A back end fills one `Kernels` table an instruction set (cpu/) or a device. The engine (core/) knows nothing else about it.
// This header is included by files compiled with ISA flags: C headers and plain structs only, no C++ library header, no
// inline function with a weak symbol.
#ifndef FASTMTR_BACKEND_H
#define FASTMTR_BACKEND_H

#include <stddef.h>
#include <stdint.h>

namespace fastmtr {

enum class Domain : uint8_t { request, item, candidate };
constexpr int kDomains = 3;

enum class Op : uint8_t {
  gather,
  copy,
  embedding,
  embedding_bag,
  affine,
  activation,
  softmax,
  mixture,
  binary,
  scale_shift,
  reduce,
  layer_norm,
  l2_normalize,
  dot,
  repeat,
  transpose,
  matmul,
  present,
  mask,
  gru,
  conv1d
};

enum class Activation : int32_t {
  none, relu, leaky_relu, prelu, elu, sigmoid, tanh, silu, gelu, gelu_tanh, softplus, exp,
  selu, mish, relu6, hard_sigmoid, hard_swish, softsign, log, sqrt, abs
};
enum class Binary : int32_t { add, sub, mul, div, max, min };
enum class Reduce : int32_t { sum, mean, max };
enum class Pooling : int32_t { sum, mean, max };

// How the numbers of a row are kept.
enum class Encoding : int32_t {
  f32,
  f16,  // IEEE 754 binary16
  i8    // a signed byte each, times the row's scale
};

// `rows` rows of numbers, `stride` of them apart. Stride 0: the one row stands for every row.
// With `gather`, row r is data + gather[r] * stride (a stored item table read by candidate).
// Only copy and the addends of affine take rows that are not f32; `data` then points to what the encoding says.
struct Rows {
  const float* data;
  size_t stride;
  const uint32_t* gather;  // NULL: row r itself
  Encoding encoding = Encoding::f32;
  const float* scales = nullptr;  // i8: the scale of row 0; those of other rows are as many bytes apart as the rows
  size_t gather_step = 1;         // row r is that of gather[r * gather_step]: a column of a matrix of ids
  size_t rows_after = 0;          // entries of `gather` behind those of the call: rows that will be read next
};

// Where rows are encoded to: as Rows.
struct EncodedOut {
  void* data;
  size_t stride;
  Encoding encoding;  // f16 or i8
  float* scales;
};

// How the rows that ids look up are kept.
enum class TableEncoding : int32_t {
  f32,
  f16,
  u8,  // a byte each, times the row's scale, plus its shift
  u4   // the same of half a byte; of two columns the first lies in the low bits; an even number of columns
};

// Where it lies in a file: no alignment but that of a number is assumed.
struct EmbeddingTable {
  const void* data;  // row after row; NULL: none
  size_t dim;        // columns
  TableEncoding encoding;
  const float *scales, *shifts;  // u8, u4: one a row
};

struct IdRows {
  const int32_t* data;
  size_t stride;
};

struct Out {
  float* data;
  size_t stride;
};

// out = act(W x + b + sum of addends); see docs/bundle.md. Group g reads columns g * k .. of x and writes columns g * n .. of
// out. Groups that share x are one group of groups * n columns: the same weights in the same order.
struct AffineArgs {
  size_t rows;
  size_t groups, n, k;      // out has groups * n columns
  Rows x;                   // x.data NULL: no product
  const void* packed;       // by pack() of the table that the kernel is of
  const float* bias;        // [groups * n] or NULL
  const Rows* addends;      // each groups * n columns wide
  size_t n_addends;
  Activation activation;
  float alpha;
  const float* slope;       // [groups * n], prelu
  Out out;                  // never overlaps an input
};

// A row's own matrices: out [outer, m, n] = a [outer, m, k] times b [outer, k, n], or b [outer, n, k] with transpose_b.
struct MatmulArgs {
  size_t rows;
  size_t outer, m, k, n;
  int32_t transpose_b;
  Rows a, b;
  Out out;
};

// Blocks of `inner` columns in another order: out is [outer, m, n, inner], and its block (o, i, j) is the columns of x
// that begin with o * outer_step + i * m_step + j * n_step - before; zeros where x, `width` columns, has none there.
struct Arrangement {
  size_t outer, m, n, inner;
  size_t outer_step, m_step, n_step;
  size_t before, width;  // multiples of inner, as the steps are
};

// Products in 8 bits. Weights are one signed byte each with a scale an output column, s = max |w| / 127; a row of x (of
// a group) is quantised when it is read: q = round(x / d) + z in 0 .. 255 with d = (max(x, 0) - min(x, 0)) / 255 and z
// = round(-min(x, 0) / d), which is 0 after a ReLU. Sums are exact 32-bit integers on every instruction set, and out =
// act(d s (sum - z sum of w) + b + addends): equal bits everywhere but for the activation's own rounding. A row of x
// that is not finite gives NaN.
struct Int8Kernels {
  size_t most_k;         // k of at most so many columns
  size_t most_source_k;  // with a source
  size_t (*packed_bytes)(size_t groups, size_t n, size_t k);
  void (*pack)(const float* w, size_t groups, size_t n, size_t k, void* dst);  // dst 64-byte aligned
  // `packed` is by pack() of this table; args->packed is not read. With `source`, x is what that affine without product
  // would give (groups * k columns; its out is not read), and it never goes to memory; args->x is then not read.
  void (*affine)(const AffineArgs* args, const void* packed, const AffineArgs* source);
};

// Products in fp32, of weights in the form that pack() makes of w, row-major [groups, n, k].
struct ProductKernels {
  size_t (*packed_bytes)(size_t groups, size_t n, size_t k);
  void (*pack)(const float* w, size_t groups, size_t n, size_t k, void* dst);  // dst 64-byte aligned
  void (*affine)(const AffineArgs* args);
};

struct Kernels {
  const char* isa;          // "baseline", "avx2", "avx512", "avx512_vnni", "neon", ...
  size_t vector_floats;     // lanes

  ProductKernels fp32;
  // Weights rounded to half precision (nearest, ties to even; none may be beyond 65504): half as much to read, and the
  // same arithmetic in the same order.
  ProductKernels fp16;
  Int8Kernels int8;
  void (*add)(const AffineArgs* args);  // an affine without product; x and packed are not read
  void (*activation)(size_t rows, size_t width, Activation fn, float alpha, const float* slope, Rows x, Out out);
  void (*softmax)(size_t rows, size_t width, size_t size, Rows x, Out out);
  // out[r] = sum over e of gate[r][e] * experts[e][r]
  void (*mixture)(size_t rows, size_t width, size_t n_experts, Rows gate, const Rows* experts, Out out);
  // widths: out = width; an operand with *_scalar set has one column that stands for all
  void (*binary)(size_t rows, size_t width, Binary fn, Rows a, int32_t a_scalar, Rows b, int32_t b_scalar, Out out);
  void (*scale_shift)(size_t rows, size_t width, Rows x, const float* scale, const float* shift, Out out);
  void (*reduce)(size_t rows, size_t outer, size_t axis, size_t inner, Reduce fn, Rows x, Out out);
  // Over each run of `size` columns; scale and shift are of a run.
  void (*layer_norm)(size_t rows, size_t width, size_t size, float eps, const float* scale, const float* shift, Rows x,
                     Out out);
  void (*l2_normalize)(size_t rows, size_t width, size_t size, float eps, Rows x, Out out);
  void (*dot)(size_t rows, size_t width, Rows a, Rows b, Out out);
  void (*matmul)(const MatmulArgs* args);
  void (*arrange)(size_t rows, const Arrangement* order, Rows x, Out out);
  // 0 where the id is the padding, else 1.
  void (*present)(size_t rows, size_t n_ids, IdRows ids, int64_t padding, Out out);
  // x [n_ids, inner], but `value` in the blocks whose id is the padding.
  void (*mask)(size_t rows, size_t n_ids, size_t inner, IdRows ids, int64_t padding, float value, Rows x, Out out);
  // One step of a gated recurrent unit. of_x and of_state [3, hidden] are the products with their biases, gates in the
  // order r, z, n; `state` becomes the next one and is written to `out` (data NULL: nowhere). A row whose id (data
  // NULL: none has one) is the padding keeps its state, and `out` gets zeros.
  void (*gru_step)(size_t rows, size_t hidden, Rows of_x, Rows of_state, IdRows ids, int64_t padding, Out state, Out out);
  // Ids are checked by the engine before. padding < 0: none.
  void (*embedding)(size_t rows, size_t n_ids, IdRows ids, int64_t padding, const EmbeddingTable* table, Out out);
  void (*embedding_bag)(size_t rows, size_t n_ids, IdRows ids, int64_t padding, Pooling mode, const EmbeddingTable* table,
                        Out out);
  // Copies of rows, with gather and broadcast, decoded.
  void (*copy)(size_t rows, size_t width, Rows x, Out out);
  // x, which is f32, to the nearest numbers of the encoding; i8: scale = max |x| / 127. Returns how many rows there are
  // before the first that has a number which is not finite, or in f16 one that would become infinite.
  size_t (*encode)(size_t rows, size_t width, Rows x, EncodedOut out);
  // fused = fusion of scores [rows, n_tasks] (row-major, `stride` floats apart), product or sum; columns[i] is the i-th fused task.
  void (*fuse)(size_t rows, size_t n, const uint32_t* columns, const float* weights, const float* offsets, int32_t product,
               const float* scores, size_t stride, float* fused);
};

// NULL where this build has no such table or this CPU cannot run it; `why` then says so (static text).
const Kernels* baseline_kernels(const char** why);
const Kernels* avx2_kernels(const char** why);
const Kernels* avx512_kernels(const char** why);
const Kernels* avx512_vnni_kernels(const char** why);  // as avx512, but for the products in 8 bits
const Kernels* neon_kernels(const char** why);
const Kernels* emulated16_kernels(const char** why);  // plain 16-lane vectors: tests only

}  // namespace fastmtr
#endif
