// What is done to matrices that a row holds: products, rearrangements, recurrent units, convolutions.
#ifndef FASTMTR_CUDA_SEQUENCE_CUH
#define FASTMTR_CUDA_SEQUENCE_CUH

#include "cuda/affine.cuh"
#include "cuda/device_math.h"
#include "cuda/frame.cuh"

namespace fastmtr::device {

FMTR_DEVICE void matmul(uint32_t rows, const Step& step, const Rows& a, const Rows& b, const Out& out) {
  const uint32_t m = step.m, n = step.n, k = step.k;
  for_each_column(rows, step.outer * m * n, [&](uint32_t r, uint32_t c) {
    const uint32_t o = c / (m * n), i = c / n % m, j = c % n;
    const float* u = row(a, r) + (o * m + i) * k;
    const float* v = row(b, r) + o * k * n + (step.transpose_b ? j * k : j);
    const uint32_t v_step = step.transpose_b ? 1 : n;
    float total = 0.0f;
    for (uint32_t l = 0; l < k; ++l) total = math::fma(u[l], v[(size_t)l * v_step], total);
    row(out, r)[c] = total;
  });
}

FMTR_DEVICE void arrange(uint32_t rows, const Arrangement& order, const Rows& x, const Out& out, Part part = {0, 1}) {
  const uint32_t inner = (uint32_t)order.inner, n = (uint32_t)order.n, m = (uint32_t)order.m;
  for_each_column(
      rows, (uint32_t)order.outer * m * n * inner,
      [&](uint32_t r, uint32_t c) {
        const uint32_t block = c / inner;
        const size_t at = block / (m * n) * order.outer_step + block / n % m * order.m_step + block % n * order.n_step;
        const bool inside = at >= order.before && at - order.before < order.width;
        row(out, r)[c] = inside ? row(x, r)[at - order.before + c % inner] : 0.0f;
      },
      part);
}

FMTR_DEVICE Rows as_rows(const Out& out, size_t column) {
  return {out.data + column, out.stride, nullptr, Encoding::f32, nullptr};
}

FMTR_DEVICE void gru(const Step& step, const Frame& frame) {
  const DeviceOperand* inputs = frame.program->operands + step.first_input;
  const Rows x = rows_of(inputs[0], frame);
  const Rows ids = step.n_inputs > 1 ? rows_of(inputs[1], frame) : Rows{};
  const Out out = out_of(step.out, frame), work = out_of(step.work, frame);
  const uint32_t rows = frame.rows, hidden = step.hidden, n = step.n, at_once = step.work_steps;
  const size_t of_state = (size_t)at_once * n, state = of_state + n;
  for_each_column(rows, hidden, [&](uint32_t r, uint32_t i) { row(work, r)[state + i] = 0.0f; });

  Product from_x{};
  from_x.rows = rows;
  from_x.groups = 1;
  from_x.n = n;
  from_x.k = step.k;
  from_x.x_step = step.k;
  from_x.w = step.w;
  from_x.finish.bias = step.b;
  from_x.out = work;
  Product from_state = from_x;
  from_state.steps = 1;
  from_state.k = hidden;
  from_state.x = as_rows(work, state);
  from_state.w = step.w_state;
  from_state.finish.bias = step.b_state;
  from_state.out.data += of_state;
  for (uint32_t t = 0; t < step.steps; ++t) {
    const uint32_t at = t % at_once;
    block_barrier();
    if (at == 0) {
      from_x.x = x;
      from_x.x.data += (size_t)t * step.k;
      from_x.steps = step.steps - t < at_once ? step.steps - t : at_once;
      multiply(from_x, frame, {0, 1});
    }
    multiply(from_state, frame, {0, 1});
    block_barrier();
    for_each_column(rows, hidden, [&](uint32_t r, uint32_t i) {
      float* to = step.all_states ? row(out, r) + t * hidden : nullptr;
      if (ids.data != nullptr && ((const int32_t*)row(ids, r))[t] == step.padding) {
        if (to != nullptr) to[i] = 0.0f;
        return;
      }
      const float* u = row(work, r) + at * n + i;
      const float* v = row(work, r) + of_state + i;
      float* h = row(work, r) + state + i;
      const float reset = math::sigmoid(u[0] + v[0]), update = math::sigmoid(u[hidden] + v[hidden]);
      const float fresh = math::tanh(math::fma(reset, v[2 * hidden], u[2 * hidden]));
      const float next = math::fma(update, *h, (1.0f - update) * fresh);
      *h = next;
      if (to != nullptr) to[i] = next;
    });
  }
  if (step.all_states) return;
  block_barrier();
  for_each_column(rows, hidden, [&](uint32_t r, uint32_t i) { row(out, r)[i] = row(work, r)[state + i]; });
}

FMTR_DEVICE void conv1d(const Step& step, const Frame& frame) {
  Product p{};
  p.rows = frame.rows;
  p.steps = step.steps;
  p.groups = 1;
  p.n = step.n;
  p.k = step.k;
  p.x_step = step.x_step;
  p.x = rows_of(frame.program->operands[step.first_input], frame);
  p.w = step.w;
  p.finish.bias = step.b;
  p.out = out_of(step.out, frame);
  if (step.work_steps > 0) {
    const Out windows = out_of(step.work, frame);
    arrange(frame.rows, step.order, p.x, windows);
    block_barrier();
    p.x = as_rows(windows, 0);
  }
  multiply(p, frame, {0, 1});
}

}  // namespace fastmtr::device
#endif
