// Products of candidates whose x stands in shared memory while it is multiplied: by the matrix units, or in fp32 by the
// threads. An x that another affine step makes is made there, group by group, and mixtures take the columns as they
// come: neither the wide layer nor the experts' outputs go to memory.
//
// Staging: what warps pass their sums through, then x of the step that makes x, then x of the step itself, twice where
// there is room, so that the next group is brought while some warps still multiply this one.
#ifndef FASTMTR_CUDA_STAGED_CUH
#define FASTMTR_CUDA_STAGED_CUH

#include "cuda/affine.cuh"

namespace fastmtr::device {

constexpr uint32_t kTileEdge = 16;               // of a fragment
constexpr uint32_t kSumsStride = kTileEdge + 4;  // of a warp's sums: not all rows in the same bank
constexpr uint32_t kSumsBytes = kTileEdge * kSumsStride * sizeof(float);
constexpr uint32_t kRowTiles = 4;  // that a warp multiplies with the same columns

// T: float (by the threads), or the matrix units' half_t, bf16_t, tf32_t.
template <class T>
constexpr bool kByFragments = true;
template <>
constexpr bool kByFragments<float> = false;

template <class T>
struct Factor {
  using Memory = T;
  FMTR_DEVICE static T of(float x);
};
template <>
FMTR_DEVICE float Factor<float>::of(float x) {
  return x;
}
template <>
FMTR_DEVICE half_t Factor<half_t>::of(float x) {
  return to_half(x);
}
template <>
FMTR_DEVICE bf16_t Factor<bf16_t>::of(float x) {
  return to_bf16(x);
}
template <>
struct Factor<tf32_t> {
  using Memory = float;
  FMTR_DEVICE static float of(float x) { return x; }
};
template <class T>
using FactorMemory = typename Factor<T>::Memory;

FMTR_DEVICE uint32_t round_to_edge(uint32_t n) { return (n + kTileEdge - 1) / kTileEdge * kTileEdge; }

// Numbers from row to row of a factor with k columns.
template <class T>
FMTR_DEVICE uint32_t factor_stride(uint32_t k) {
  return round_to_edge(k) + 16 / (uint32_t)sizeof(FactorMemory<T>);
}

// x in shared memory: rows beyond the last one that is there hold anything, columns beyond k zeros.
template <class T>
struct Staged {
  FactorMemory<T>* data;
  uint32_t rows, k;
  FMTR_DEVICE uint32_t stride() const { return factor_stride<T>(k); }
};

template <class T>
FMTR_DEVICE void store_columns(const Staged<T>& x, uint32_t row, uint32_t first, uint32_t count, const float* values) {
  FactorMemory<T>* to = x.data + (size_t)row * x.stride() + first;
  for (uint32_t j = 0; j < count; ++j) to[j] = Factor<T>::of(values[j]);
}

// value(row, first column, count, values) fills columns of x.
template <class T, class Value>
FMTR_DEVICE void stage(const Staged<T>& x, const Value& value) {
  const uint32_t quads = round_to_edge(x.k) / kColumns;
  for_each(x.rows * quads, [&](uint32_t i) {
    const uint32_t row = i / quads, first = i % quads * kColumns;
    float values[kColumns] = {};
    if (first < x.k) value(row, first, x.k - first < kColumns ? x.k - first : kColumns, values);
    store_columns(x, row, first, kColumns, values);
  });
}

// Columns `first` .. `first` + n of a group's product with x; sink(row, column - first, count, sums) takes the sums.
struct Columns {
  uint32_t group, first, n;
};

// In fp32, as multiply() does it.
template <class Sink>
FMTR_DEVICE void multiply_staged(const Staged<float>& x, const Step& step, const Columns& c, float*, const Sink& sink) {
  const uint32_t quads = padded(c.n) / kColumns, all_quads = padded(step.n) / kColumns, stride = x.stride();
  const uint32_t blocks = (x.rows + kThreadRows - 1) / kThreadRows;
  const Four* weights = (const Four*)step.w + (size_t)c.group * step.k * all_quads + c.first / kColumns;
  for_each(blocks * quads, [&](uint32_t item) {
    const uint32_t quad = item % quads, first = item / quads * kThreadRows;
    const float* from[kThreadRows];
    for (uint32_t r = 0; r < kThreadRows; ++r)
      from[r] = x.data + (size_t)(first + r < x.rows ? first + r : x.rows - 1) * stride;
    float sums[kThreadRows][kColumns] = {};
    const Four* w = weights + quad;
    for (uint32_t k = 0; k < step.k; ++k, w += all_quads) {
      const Four here = *w;
      FMTR_UNROLL
      for (uint32_t r = 0; r < kThreadRows; ++r) {
        FMTR_UNROLL
        for (uint32_t j = 0; j < kColumns; ++j) sums[r][j] = math::fma(from[r][k], here.x[j], sums[r][j]);
      }
    }
    const uint32_t column = quad * kColumns, count = c.n - column < kColumns ? c.n - column : kColumns;
    for (uint32_t r = 0; r < kThreadRows && first + r < x.rows; ++r) {
      for (uint32_t j = 0; j < kColumns; ++j) sums[r][j] += 0.0f;  // -0 becomes 0
      sink(first + r, column, count, sums[r]);
    }
  });
}

// The sums of 16 rows and 16 columns: a lane takes half a row.
template <class Sink>
FMTR_DEVICE_CALLED void take_sums(const float* sums, uint32_t first_row, uint32_t rows, uint32_t first_column,
                                  uint32_t columns, const Sink& sink) {
  const uint32_t part = lane_index() / 2, row = first_row + part;
  const uint32_t half = lane_index() % 2 * (kTileEdge / 2), column = first_column + half;
  if (row >= rows || column >= columns) return;
  float values[kTileEdge / 2];
  FMTR_UNROLL
  for (uint32_t j = 0; j < kTileEdge / 2; ++j) values[j] = sums[part * kSumsStride + half + j];
  sink(row, column, columns - column < kTileEdge / 2 ? columns - column : kTileEdge / 2, values);
}

// By fragments: a warp takes 16 columns of `RowTiles` times 16 rows.
template <uint32_t RowTiles, class T, class Sink>
FMTR_DEVICE void multiply_fragments(const Staged<T>& x, const Step& step, const Columns& c, float* warp_sums,
                                    const Sink& sink) {
  const uint32_t depth = round_to_edge(step.k), stride = x.stride();
  const uint32_t tiles = (c.n + kTileEdge - 1) / kTileEdge, row_tiles = (x.rows + kTileEdge - 1) / kTileEdge;
  const uint32_t items = tiles * ((row_tiles + RowTiles - 1) / RowTiles), warps = block_size() / kWarp;
  const FactorMemory<T>* weights =
      (const FactorMemory<T>*)step.fragments + ((size_t)c.group * round_to_edge(step.n) + c.first) * depth;
  float* mine = warp_sums + warp_index() * kTileEdge * kSumsStride;
  for (uint32_t item = warp_index(); item < items; item += warps) {
    const uint32_t tile = item % tiles, first = item / tiles * RowTiles;
    const FactorMemory<T>* w = weights + (size_t)tile * kTileEdge * depth;
    const FactorMemory<T>* a = x.data + (size_t)first * kTileEdge * stride;
    Accumulator<T> sums[RowTiles];
    FMTR_UNROLL
    for (uint32_t i = 0; i < RowTiles; ++i) sums[i].fill(0.0f);
    for (uint32_t k = 0; k < depth; k += kFragmentDepth<T>) {
      MatrixB<T, Layout::column_major> columns;
      columns.load(w + k, depth);
      FMTR_UNROLL
      for (uint32_t i = 0; i < RowTiles; ++i) {
        if (first + i >= row_tiles) break;
        MatrixA<T> rows;
        rows.load(a + (size_t)i * kTileEdge * stride + k, stride);
        multiply_add(sums[i], rows, columns);
      }
    }
    FMTR_UNROLL
    for (uint32_t i = 0; i < RowTiles; ++i) {
      if (first + i >= row_tiles) break;
      sums[i].store(mine, kSumsStride);
      warp_barrier();
      take_sums(mine, (first + i) * kTileEdge, x.rows, tile * kTileEdge, c.n, sink);
      warp_barrier();
    }
  }
}

template <class T, class Sink>
FMTR_DEVICE void multiply_staged(const Staged<T>& x, const Step& step, const Columns& c, float* warp_sums,
                                 const Sink& sink) {
  if ((c.n + kTileEdge - 1) / kTileEdge >= block_size() / kWarp)
    multiply_fragments<kRowTiles>(x, step, c, warp_sums, sink);
  else  // few columns: more warps have something to do when each takes fewer rows
    multiply_fragments<1>(x, step, c, warp_sums, sink);
}

// The columns of expert number `pass` go into the mixtures that take it, experts ascending.
FMTR_DEVICE void mix(const Step& step, const Frame& frame, uint32_t pass, uint32_t row, uint32_t column, uint32_t count,
                     const float* values) {
  const Program& program = *frame.program;
  for (uint32_t m = step.first_mixture; m < step.first_mixture + step.n_mixtures; ++m) {
    const DeviceMixture& mixture = program.mixtures[m];
    const int32_t expert = program.experts[mixture.first_expert + pass];
    if (expert < 0) continue;
    const float gate = device::row(rows_of(mixture.gate, frame), row)[expert];
    float* to = device::row(out_of(mixture.out, frame), row) + column;
    for (uint32_t j = 0; j < count; ++j) to[j] = expert == 0 ? gate * values[j] : math::fma(gate, values[j], to[j]);
  }
}

template <class T>
FMTR_DEVICE void run_staged(const Step& step, const Frame& frame) {
  const Program& program = *frame.program;
  const DeviceOperand* inputs = program.operands + step.first_input;
  const uint32_t rows_room = round_to_edge(frame.layout_rows);
  const Step* source = step.source < 0 ? nullptr : program.steps + step.source;
  unsigned char* staging = frame.staging;
  float* warp_sums = (float*)staging;
  if (kByFragments<T>) staging += block_size() / kWarp * kSumsBytes;
  const Staged<T> source_x{(FactorMemory<T>*)staging, frame.rows, source != nullptr ? source->k : 0};
  staging += (size_t)program.source_row_bytes * rows_room;
  const Finish finish = finish_of(step, frame);
  const uint32_t columns = step.groups * step.n, passes = columns / step.pass;
  uint32_t staged_group = ~0u, staged_source = ~0u;
  Staged<T> x{nullptr, frame.rows, step.k};
  for (uint32_t pass = 0; pass < passes; ++pass) {
    const uint32_t at = pass * step.pass, group = at / step.n;
    if (group != staged_group) {
      staged_group = group;
      // With one place, all must have read the last group; with two, the one before it, which a barrier since tells.
      if (program.factor_buffers == 1 && group > 0) block_barrier();
      x.data =
          (FactorMemory<T>*)(staging + (size_t)(group % program.factor_buffers) * program.factor_row_bytes * rows_room);
      const uint32_t first = group * step.k;
      if (source == nullptr) {
        const Rows from = rows_of(inputs[0], frame);
        stage(x, [&](uint32_t r, uint32_t column, uint32_t count, float* values) {
          add_columns(values, count, from, place_of(from, r), first + column);
        });
      } else if (!source->has_x) {
        const Finish made = finish_of(*source, frame);
        stage(x, [&](uint32_t r, uint32_t column, uint32_t count, float* values) {
          finish_columns(made, frame, r, 0, source->groups * source->n, first + column, count, values);
        });
      } else {
        const Finish made = finish_of(*source, frame);
        const uint32_t from_group = first / source->n;
        if (from_group != staged_source) {
          staged_source = from_group;
          const Rows from = rows_of(program.operands[source->first_input], frame);
          stage(source_x, [&](uint32_t r, uint32_t column, uint32_t count, float* values) {
            add_columns(values, count, from, place_of(from, r), from_group * source->k + column);
          });
          block_barrier();
        }
        multiply_staged(source_x, *source, {from_group, first % source->n, step.k}, warp_sums,
                        [&](uint32_t r, uint32_t column, uint32_t count, float* sums) {
                          finish_columns(made, frame, r, 0, source->groups * source->n, first + column, count, sums);
                          store_columns(x, r, column, count, sums);
                        });
        // Columns beyond k, which no product has made.
        const uint32_t beyond = round_to_edge(step.k) - step.k;
        for_each(beyond * x.rows, [&](uint32_t i) {
          const float zero = 0.0f;
          store_columns(x, i / beyond, step.k + i % beyond, 1, &zero);
        });
      }
      block_barrier();
    }
    multiply_staged(x, step, {group, at % step.n, step.pass}, warp_sums,
                    [&](uint32_t r, uint32_t column, uint32_t count, float* sums) {
                      finish_columns(finish, frame, r, 0, columns, at + column, count, sums);
                      if (step.n_mixtures > 0) return mix(step, frame, pass, r, column, count, sums);
                      float* to = row(out_of(step.out, frame), r) + at + column;
                      for (uint32_t j = 0; j < count; ++j) to[j] = sums[j];
                    });
  }
}

}  // namespace fastmtr::device
#endif
