// out = act(W x + b + sum of addends), in fp32: a multiply-add a term, k ascending, one sum an element, so the bits are
// those of any tile, and of the CPU where that has a multiply-add.
#ifndef FASTMTR_CUDA_AFFINE_CUH
#define FASTMTR_CUDA_AFFINE_CUH

#include "cuda/device_math.h"
#include "cuda/frame.cuh"

namespace fastmtr::device {

// Weights of a group lie [k][n rounded up to 4], so that neighbouring threads read neighbouring columns.
constexpr uint32_t kColumns = 4;  // of a thread at once
constexpr uint32_t kThreadRows = 4;
FMTR_DEVICE uint32_t padded(uint32_t n) { return (n + kColumns - 1) / kColumns * kColumns; }

struct alignas(16) Four {
  float x[kColumns];
};
struct alignas(8) FourHalves {
  half_t x[kColumns];
};
struct alignas(4) FourBytes {
  int8_t x[kColumns];
};

template <class T>
FMTR_DEVICE bool is_aligned(const void* pointer) {
  return (size_t)pointer % alignof(T) == 0;
}

// What is done to a sum once it is complete.
struct Finish {
  const float* bias;
  const DeviceOperand* addends;
  uint32_t n_addends;
  Activation activation;
  float alpha;
  const float* slope;
};

// Rows of a tile, each with `steps` rows side by side.
struct Product {
  uint32_t rows, steps;
  uint32_t groups, n, k;  // of a step's columns
  uint32_t x_step;
  Rows x;  // data NULL: none
  const float* w;
  Finish finish;
  Out out;
};

FMTR_DEVICE Finish finish_of(const Step& step, const Frame& frame) {
  return {step.b,
          frame.program->operands + step.first_input + step.has_x,
          step.n_inputs - step.has_x,
          step.activation,
          step.alpha,
          step.slope};
}

// sums += neighbouring columns of a row, four at once where they lie so.
FMTR_DEVICE void add_columns(float* sums, uint32_t count, const Rows& x, size_t place, uint32_t column) {
  uint32_t j = 0;
  if (x.encoding == Encoding::f32) {
    const float* from = x.data + place + column;
    if (is_aligned<Four>(from))
      for (; j + kColumns <= count; j += kColumns) {
        const Four found = *(const Four*)(from + j);
        FMTR_UNROLL
        for (uint32_t i = 0; i < kColumns; ++i) sums[j + i] += found.x[i];
      }
  } else if (x.encoding == Encoding::f16) {
    const half_t* from = (const half_t*)x.data + place + column;
    if (is_aligned<FourHalves>(from))
      for (; j + kColumns <= count; j += kColumns) {
        const FourHalves found = *(const FourHalves*)(from + j);
        FMTR_UNROLL
        for (uint32_t i = 0; i < kColumns; ++i) sums[j + i] += to_float(found.x[i]);
      }
  } else {
    const int8_t* from = (const int8_t*)x.data + place + column;
    const float scale = *(const float*)((const char*)x.scales + place);
    if (is_aligned<FourBytes>(from))
      for (; j + kColumns <= count; j += kColumns) {
        const FourBytes found = *(const FourBytes*)(from + j);
        FMTR_UNROLL
        for (uint32_t i = 0; i < kColumns; ++i) sums[j + i] = math::fma((float)found.x[i], scale, sums[j + i]);
      }
  }
  for (; j < count; ++j) sums[j] = add_number(sums[j], x, place, column + j);
}

// Adds to the sums of neighbouring columns of one row (of one step of it), and puts the activation on them.
FMTR_DEVICE void finish_columns(const Finish& finish, const Frame& frame, uint32_t row, uint32_t step, uint32_t columns,
                                uint32_t first, uint32_t count, float* sums) {
  if (finish.bias != nullptr)
    for (uint32_t j = 0; j < count; ++j) sums[j] += finish.bias[first + j];
  for (uint32_t i = 0; i < finish.n_addends; ++i) {
    const DeviceOperand& operand = finish.addends[i];
    const Rows addend = rows_of(operand, frame);
    add_columns(sums, count, addend, place_of(addend, row), first + (operand.width > columns ? step * columns : 0));
  }
  if (finish.activation == Activation::relu) {
    for (uint32_t j = 0; j < count; ++j) sums[j] = math::max(0.0f, sums[j]);
    return;
  }
  for (uint32_t j = 0; j < count; ++j)
    sums[j] = math::activate(sums[j], finish.activation, finish.alpha,
                             finish.slope != nullptr ? finish.slope[first + j] : 0.0f);
}

// Columns of a product, four by four, through all groups.
struct Quads {
  uint32_t of_group;
  uint32_t begin, end;
};

FMTR_DEVICE Quads quads_of(const Product& p, Part part) {
  const uint32_t of_group = padded(p.n) / kColumns;
  const uint64_t all = (uint64_t)p.groups * of_group;
  return {of_group, (uint32_t)(all * part.index / part.count), (uint32_t)(all * (part.index + 1) / part.count)};
}

// Brings the weights of these columns into shared memory, all at once: a block that has few rows would wait for each.
FMTR_DEVICE const Four* stage_weights(const Product& p, const Quads& quads, Four* to) {
  const uint32_t n = quads.end - quads.begin;
  const Four* from = (const Four*)p.w;
  for_each(p.k * n, [&](uint32_t i) {
    const uint32_t quad = quads.begin + i % n, group = quad / quads.of_group;
    copy_async16(to + i, from + ((size_t)group * p.k + i / n) * quads.of_group + quad % quads.of_group);
  });
  copy_async_commit();
  copy_async_wait<0>();
  block_barrier();
  return to;
}

// `room`: bytes at frame.staging that weights may take.
FMTR_DEVICE void multiply(const Product& p, const Frame& frame, Part part, size_t room = 0) {
  const uint32_t columns = p.groups * p.n, lines = p.rows * p.steps;
  const Quads quads = quads_of(p, part);
  const uint32_t n = quads.end - quads.begin, line_blocks = (lines + kThreadRows - 1) / kThreadRows;
  const bool staged = p.x.data != nullptr && (size_t)n * p.k * sizeof(Four) <= room;
  const Four* weights = staged ? stage_weights(p, quads, (Four*)frame.staging) : (const Four*)p.w;
  for_each(line_blocks * n, [&](uint32_t item) {
    const uint32_t quad = quads.begin + item % n, group = quad / quads.of_group;
    const uint32_t column = quad % quads.of_group * kColumns, first = item / n * kThreadRows;
    float sums[kThreadRows][kColumns] = {};
    if (p.x.data != nullptr) {
      const float* x[kThreadRows];
      for (uint32_t r = 0; r < kThreadRows; ++r) {
        const uint32_t line = first + r < lines ? first + r : lines - 1;
        x[r] = row(p.x, line / p.steps) + line % p.steps * p.x_step + group * p.k;
      }
      const uint32_t stride = staged ? n : quads.of_group;
      const Four* w = staged ? weights + item % n : weights + (size_t)group * p.k * stride + quad % stride;
      for (uint32_t k = 0; k < p.k; ++k) {
        const Four here = w[(size_t)k * stride];
        FMTR_UNROLL
        for (uint32_t r = 0; r < kThreadRows; ++r) {
          const float a = x[r][k];
          FMTR_UNROLL
          for (uint32_t j = 0; j < kColumns; ++j) sums[r][j] = math::fma(a, here.x[j], sums[r][j]);
        }
      }
    }
    const uint32_t count = p.n - column < kColumns ? p.n - column : kColumns;
    for (uint32_t r = 0; r < kThreadRows && first + r < lines; ++r) {
      const uint32_t line = first + r, step = line % p.steps, at = group * p.n + column;
      for (uint32_t j = 0; j < kColumns; ++j) sums[r][j] += 0.0f;  // -0 becomes 0, as if no term were left out
      finish_columns(p.finish, frame, line / p.steps, step, columns, at, count, sums[r]);
      float* to = row(p.out, line / p.steps) + step * columns + at;
      for (uint32_t j = 0; j < count; ++j) to[j] = sums[r][j];
    }
  });
}

FMTR_DEVICE Product product_of(const Step& step, const Frame& frame) {
  const DeviceOperand* inputs = frame.program->operands + step.first_input;
  Product p{};
  p.rows = frame.rows;
  p.steps = step.steps;
  p.groups = step.groups;
  p.n = step.n;
  p.k = step.k;
  p.x_step = step.x_step;
  if (step.has_x) p.x = rows_of(inputs[0], frame);
  p.w = step.w;
  p.finish = finish_of(step, frame);
  p.out = out_of(step.out, frame);
  return p;
}

}  // namespace fastmtr::device
#endif
