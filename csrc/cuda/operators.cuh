// The operators that are not a product, by all threads of a block.
#ifndef FASTMTR_CUDA_OPERATORS_CUH
#define FASTMTR_CUDA_OPERATORS_CUH

#include "cuda/device_math.h"
#include "cuda/frame.cuh"

namespace fastmtr::device {

// ---- runs of columns: short ones by a thread, long ones by a warp ---------------------------------------------------

constexpr uint32_t kShortRun = 32;

// The lanes that share a run, of which this thread is one.
struct Lanes {
  uint32_t index, count;  // count: 1 or 32

  template <class Join>
  FMTR_DEVICE float join(float x, const Join& join) const {
    if (count > 1)
      for (unsigned mask = kWarp / 2; mask > 0; mask /= 2) x = join(x, shuffle_xor(x, mask));
    return x;
  }
  template <class Value>
  FMTR_DEVICE float sum(uint32_t n, const Value& value) const {
    float total = 0.0f;
    for (uint32_t i = index; i < n; i += count) total += value(i);
    return join(total, [](float a, float b) { return a + b; });
  }
  // -infinity of nothing; a NaN stays.
  template <class Value>
  FMTR_DEVICE float greatest(uint32_t n, const Value& value) const {
    float best = -math::infinity();
    for (uint32_t i = index; i < n; i += count) best = math::max_or_nan(best, value(i));
    return join(best, [](float a, float b) { return b == b ? math::max_or_nan(a, b) : b; });
  }
  template <class Fn>
  FMTR_DEVICE void each(uint32_t n, const Fn& fn) const {
    for (uint32_t i = index; i < n; i += count) fn(i);
  }
};

// fn(row, run, lanes) for the runs of `size` columns of each row.
template <class Fn>
FMTR_DEVICE void for_each_run(uint32_t rows, uint32_t runs, uint32_t size, const Fn& fn) {
  const uint32_t count = size <= kShortRun ? 1 : kWarp;
  const uint32_t step = block_size() / count, all = rows * runs;
  for (uint32_t i = thread_index() / count; i < all; i += step)
    fn(i / runs, i % runs, Lanes{lane_index() % count, count});
}

FMTR_DEVICE void softmax(uint32_t rows, uint32_t width, uint32_t size, const Rows& x, const Out& out) {
  for_each_run(rows, width / size, size, [&](uint32_t r, uint32_t run, const Lanes& lanes) {
    const float* from = row(x, r) + run * size;
    float* to = row(out, r) + run * size;
    const float top = lanes.greatest(size, [&](uint32_t i) { return from[i]; });
    const float total = lanes.sum(size, [&](uint32_t i) { return to[i] = math::exp(from[i] - top); });
    lanes.each(size, [&](uint32_t i) { to[i] = to[i] / total; });
  });
}

FMTR_DEVICE void layer_norm(uint32_t rows, uint32_t width, const Step& step, const Rows& x, const Out& out) {
  const uint32_t size = step.n;
  for_each_run(rows, width / size, size, [&](uint32_t r, uint32_t run, const Lanes& lanes) {
    const float* from = row(x, r) + run * size;
    float* to = row(out, r) + run * size;
    const float mean = lanes.sum(size, [&](uint32_t i) { return from[i]; }) / (float)size;
    const float variance =
        lanes.sum(size, [&](uint32_t i) { return (from[i] - mean) * (from[i] - mean); }) / (float)size;
    const float factor = 1.0f / math::sqrt(variance + step.eps);
    lanes.each(size, [&](uint32_t i) {
      float v = (from[i] - mean) * factor;
      if (step.scale != nullptr) v = v * step.scale[i];
      to[i] = step.shift != nullptr ? v + step.shift[i] : v;
    });
  });
}

template <class A, class B>
FMTR_DEVICE float dot_of(const Lanes& lanes, uint32_t n, const A& a, const B& b) {
  float total = 0.0f;
  for (uint32_t i = lanes.index; i < n; i += lanes.count) total = math::fma(a(i), b(i), total);
  return lanes.join(total, [](float u, float v) { return u + v; });
}

FMTR_DEVICE void l2_normalize(uint32_t rows, uint32_t width, const Step& step, const Rows& x, const Out& out) {
  const uint32_t size = step.n;
  for_each_run(rows, width / size, size, [&](uint32_t r, uint32_t run, const Lanes& lanes) {
    const float* from = row(x, r) + run * size;
    float* to = row(out, r) + run * size;
    const auto value = [&](uint32_t i) { return from[i]; };
    const float norm = math::sqrt(dot_of(lanes, size, value, value));
    const float divisor = norm < step.eps ? step.eps : norm;  // a NaN stays
    lanes.each(size, [&](uint32_t i) { to[i] = from[i] / divisor; });
  });
}

FMTR_DEVICE void dot(uint32_t rows, uint32_t width, const Rows& a, const Rows& b, const Out& out) {
  for_each_run(rows, 1, width, [&](uint32_t r, uint32_t, const Lanes& lanes) {
    const float *u = row(a, r), *v = row(b, r);
    const float found = dot_of(
        lanes, width, [&](uint32_t i) { return u[i]; }, [&](uint32_t i) { return v[i]; });
    if (lanes.index == 0) *row(out, r) = found;
  });
}

FMTR_DEVICE void reduce(uint32_t rows, const Step& step, const Rows& x, const Out& out) {
  const uint32_t axis = step.axis, inner = step.inner;
  const float divisor = step.reduce == Reduce::mean ? (float)axis : 1.0f;
  if (inner == 1) {
    for_each_run(rows, step.outer, axis, [&](uint32_t r, uint32_t o, const Lanes& lanes) {
      const float* from = row(x, r) + o * axis;
      const auto value = [&](uint32_t i) { return from[i]; };
      const float found = step.reduce == Reduce::max ? lanes.greatest(axis, value) : lanes.sum(axis, value) / divisor;
      if (lanes.index == 0) row(out, r)[o] = found;
    });
    return;
  }
  for_each_column(rows, step.outer * inner, [&](uint32_t r, uint32_t c) {
    const float* from = row(x, r) + c / inner * axis * inner + c % inner;
    float total = from[0];
    for (uint32_t a = 1; a < axis; ++a) {
      const float v = from[a * inner];
      total = step.reduce == Reduce::max ? math::max_or_nan(total, v) : total + v;
    }
    row(out, r)[c] = total / divisor;
  });
}

// ---- element by element ---------------------------------------------------------------------------------------------

FMTR_DEVICE void copy(uint32_t rows, uint32_t width, const Rows& x, const Out& out, Part part) {
  for_each_column(
      rows, width,
      [&](uint32_t r, uint32_t c) {
        const size_t place = place_of(x, r);
        if (x.encoding == Encoding::f32) {  // moves bits: right for int32 columns too
          ((uint32_t*)row(out, r))[c] = ((const uint32_t*)x.data)[place + c];
        } else {
          const Encoded found = number_at(x, place, c);
          row(out, r)[c] = found.x * found.scale;
        }
      },
      part);
}

FMTR_DEVICE void activation(uint32_t rows, uint32_t width, const Step& step, const Rows& x, const Out& out, Part part) {
  for_each_column(
      rows, width,
      [&](uint32_t r, uint32_t c) {
        row(out, r)[c] =
            math::activate(row(x, r)[c], step.activation, step.alpha, step.slope != nullptr ? step.slope[c] : 0.0f);
      },
      part);
}

FMTR_DEVICE float combine(Binary fn, float u, float v) {
  switch (fn) {
    case Binary::add:
      return u + v;
    case Binary::sub:
      return u - v;
    case Binary::mul:
      return u * v;
    case Binary::div:
      return u / v;
    case Binary::max:
      return math::max_or_nan(u, v);
    case Binary::min:
      return math::min_or_nan(u, v);
  }
  return u;
}

FMTR_DEVICE void binary(uint32_t rows, uint32_t width, Binary fn, const Rows& a, bool a_scalar, const Rows& b,
                        bool b_scalar, const Out& out, Part part) {
  for_each_column(
      rows, width,
      [&](uint32_t r, uint32_t c) {
        row(out, r)[c] = combine(fn, row(a, r)[a_scalar ? 0 : c], row(b, r)[b_scalar ? 0 : c]);
      },
      part);
}

FMTR_DEVICE void scale_shift(uint32_t rows, uint32_t width, const Step& step, const Rows& x, const Out& out,
                             Part part) {
  for_each_column(
      rows, width, [&](uint32_t r, uint32_t c) { row(out, r)[c] = row(x, r)[c] * step.scale[c] + step.shift[c]; },
      part);
}

FMTR_DEVICE void mixture(const Step& step, const Frame& frame, const Out& out) {
  const DeviceOperand* inputs = frame.program->operands + step.first_input;
  const Rows gates = rows_of(inputs[0], frame);
  for_each_column(frame.rows, step.out.width, [&](uint32_t r, uint32_t c) {
    const float* gate = row(gates, r);
    float total = 0.0f;
    for (uint32_t e = 0; e + 1 < step.n_inputs; ++e) {
      const float x = row(rows_of(inputs[e + 1], frame), r)[c];
      total = e == 0 ? gate[0] * x : math::fma(gate[e], x, total);
    }
    row(out, r)[c] = total;
  });
}

// ---- look-ups -------------------------------------------------------------------------------------------------------

FMTR_DEVICE float number_of(const EmbeddingTable& table, int32_t id, uint32_t c) {
  const size_t at = (size_t)id * table.dim + c;
  switch (table.encoding) {
    case TableEncoding::f32:
      break;
    case TableEncoding::f16:
      return to_float(((const half_t*)table.data)[at]);
    case TableEncoding::u8:
      return math::fma((float)((const uint8_t*)table.data)[at], table.scales[id], table.shifts[id]);
    case TableEncoding::u4: {
      const uint32_t both = ((const uint8_t*)table.data)[at / 2];
      return math::fma((float)(c % 2 == 0 ? both & 15u : both >> 4), table.scales[id], table.shifts[id]);
    }
  }
  return ((const float*)table.data)[at];
}

FMTR_DEVICE const int32_t* ids_row(const Rows& ids, uint32_t r) { return (const int32_t*)row(ids, r); }

FMTR_DEVICE void embedding(uint32_t rows, uint32_t n_ids, const Rows& ids, const Step& step, const Out& out,
                           Part part) {
  const uint32_t dim = (uint32_t)step.table.dim;
  for_each_column(
      rows, n_ids * dim,
      [&](uint32_t r, uint32_t c) {
        const int32_t id = ids_row(ids, r)[c / dim];
        row(out, r)[c] = id == step.padding ? 0.0f : number_of(step.table, id, c % dim);
      },
      part);
}

constexpr uint32_t kLookupsAtOnce = 8;

// Ids ascending by position; look-ups in a table of float32 are under way some at once.
FMTR_DEVICE void embedding_bag(uint32_t rows, uint32_t n_ids, const Rows& ids, const Step& step, const Out& out) {
  const float* plain = step.table.encoding == TableEncoding::f32 ? (const float*)step.table.data : nullptr;
  const uint32_t dim = (uint32_t)step.table.dim;
  for_each_column(rows, dim, [&](uint32_t r, uint32_t c) {
    const int32_t* bag = ids_row(ids, r);
    float total = 0.0f;
    uint32_t count = 0;
    const auto take = [&](float v) {
      total = count++ == 0 ? v : step.pooling == Pooling::max ? math::max_or_nan(total, v) : total + v;
    };
    uint32_t first = 0;
    for (; plain != nullptr && first + kLookupsAtOnce <= n_ids; first += kLookupsAtOnce) {
      float found[kLookupsAtOnce];
      FMTR_UNROLL
      for (uint32_t i = 0; i < kLookupsAtOnce; ++i) {
        const int32_t id = bag[first + i];
        found[i] = id == step.padding ? 0.0f : plain[(size_t)id * dim + c];
      }
      FMTR_UNROLL
      for (uint32_t i = 0; i < kLookupsAtOnce; ++i)
        if (bag[first + i] != step.padding) take(found[i]);
    }
    for (; first < n_ids; ++first)
      if (bag[first] != step.padding) take(number_of(step.table, bag[first], c));
    row(out, r)[c] = step.pooling == Pooling::mean && count > 0 ? total / (float)count : total;
  });
}

FMTR_DEVICE void present(uint32_t rows, uint32_t n_ids, const Rows& ids, const Step& step, const Out& out, Part part) {
  for_each_column(
      rows, n_ids, [&](uint32_t r, uint32_t c) { row(out, r)[c] = ids_row(ids, r)[c] == step.padding ? 0.0f : 1.0f; },
      part);
}

FMTR_DEVICE void mask(uint32_t rows, uint32_t width, uint32_t inner, const Rows& ids, const Step& step, const Rows& x,
                      const Out& out, Part part) {
  for_each_column(
      rows, width,
      [&](uint32_t r, uint32_t c) {
        row(out, r)[c] = ids_row(ids, r)[c / inner] == step.padding ? step.value : row(x, r)[c];
      },
      part);
}

}  // namespace fastmtr::device
#endif
