// The steps of a plan by a block of threads: of a few requests, or of a tile of candidates.
#ifndef FASTMTR_CUDA_INTERPRETER_CUH
#define FASTMTR_CUDA_INTERPRETER_CUH

#include "cuda/affine.cuh"
#include "cuda/frame.cuh"
#include "cuda/operators.cuh"
#include "cuda/sequence.cuh"
#include "cuda/staged.cuh"

namespace fastmtr::device {

// `room`: bytes at frame.staging that weights of a product may take.
FMTR_DEVICE_CALLED void run_step(const Step& step, const Frame& frame, Part part, size_t room) {
  const DeviceOperand* inputs = frame.program->operands + step.first_input;
  const auto in = [&](uint32_t i) { return rows_of(inputs[i], frame); };
  const uint32_t rows = frame.rows, width = step.out.width;
  const Out out = out_of(step.out, frame);
  switch (step.op) {
    case Op::gather:
    case Op::copy:
      return copy(rows, width, in(0), out, part);
    case Op::embedding:
      return embedding(rows, inputs[0].width, in(0), step, out, part);
    case Op::embedding_bag:
      return embedding_bag(rows, inputs[0].width, in(0), step, out);
    case Op::affine:
      return multiply(product_of(step, frame), frame, part, room);
    case Op::activation:
      return activation(rows, width, step, in(0), out, part);
    case Op::softmax:
      return softmax(rows, width, step.n, in(0), out);
    case Op::mixture:
      return mixture(step, frame, out);
    case Op::binary:
      return binary(rows, width, step.binary, in(0), inputs[0].width != width, in(1), inputs[1].width != width, out,
                    part);
    case Op::scale_shift:
      return scale_shift(rows, width, step, in(0), out, part);
    case Op::reduce:
      return reduce(rows, step, in(0), out);
    case Op::layer_norm:
      return layer_norm(rows, width, step, in(0), out);
    case Op::l2_normalize:
      return l2_normalize(rows, width, step, in(0), out);
    case Op::dot:
      return dot(rows, inputs[0].width, in(0), in(1), out);
    case Op::repeat:
    case Op::transpose:
      return arrange(rows, step.order, in(0), out, part);
    case Op::matmul:
      return matmul(rows, step, in(0), in(1), out);
    case Op::present:
      return present(rows, width, in(0), step, out, part);
    case Op::mask:
      return mask(rows, width, width / inputs[1].width, in(1), step, in(0), out, part);
    case Op::gru:
      return gru(step, frame);
    case Op::conv1d:
      return conv1d(step, frame);
  }
}

// ---- requests -------------------------------------------------------------------------------------------------------

constexpr uint32_t kRequestRows = 4;  // of a block at once; they share the reading of weights

// Tasks that do not wait for one another.
struct RequestArgs {
  Program program;
  const Batch* batch;
  const Task* tasks;
  uint32_t n_tasks;
  uint32_t room;  // bytes of shared memory
};

FMTR_KERNEL(run_requests, RequestArgs) {
  const Batch& batch = *args.batch;
  const Task& task = args.tasks[block_index() % args.n_tasks];
  Frame frame{};
  frame.program = &args.program;
  frame.batch = &batch;
  frame.phase = Domain::request;
  frame.staging = shared_memory();
  const uint32_t at_once = grid_size() / args.n_tasks;
  for (uint64_t first = block_index() / args.n_tasks * kRequestRows; first < batch.n_requests;
       first += at_once * kRequestRows) {
    frame.first = first;
    frame.rows = (uint32_t)(batch.n_requests - first < kRequestRows ? batch.n_requests - first : kRequestRows);
    for (uint32_t i = 0; i < task.list.n; ++i) {
      run_step(args.program.steps[task.list.steps[i]], frame, task.part, args.room);
      block_barrier();
    }
  }
}

// An output of each request, row after row, into the batch's scores.
struct OutputArgs {
  Program program;
  const Batch* batch;
  DeviceOperand operand;
};

FMTR_KERNEL(copy_request_output, OutputArgs) {
  Frame frame{};
  frame.program = &args.program;
  frame.batch = args.batch;
  frame.phase = Domain::request;
  const Rows from = rows_of(args.operand, frame);
  const uint64_t width = args.operand.width, n = args.batch->n_requests * width;
  for (uint64_t i = block_index() * block_size() + thread_index(); i < n; i += (uint64_t)grid_size() * block_size())
    args.batch->scores[i] = from.data[i / width * from.stride + i % width];
}

// ---- items that lie on the device -----------------------------------------------------------------------------------

struct LookUpArgs {
  const Batch* batch;
};

FMTR_KERNEL(look_up_items, LookUpArgs) {
  const Batch& batch = *args.batch;
  for (uint64_t i = block_index() * block_size() + thread_index(); i < batch.total;
       i += (uint64_t)grid_size() * block_size()) {
    const int64_t item = batch.items[i];
    uint32_t slot = kNoRow;
    if (batch.keys_of == nullptr) {
      if (item >= 0 && (uint64_t)item < batch.n_items)
        slot = batch.row_slots != nullptr ? batch.row_slots[item] : (uint32_t)item;
    } else {
      uint64_t at = hash_of(item) & batch.key_mask;
      while (batch.keys_of[at].slot != kNoRow && batch.keys_of[at].key != item) at = (at + 1) & batch.key_mask;
      slot = batch.keys_of[at].slot;
    }
    batch.slots_found[i] = slot;
  }
}

// ---- candidates -----------------------------------------------------------------------------------------------------

struct ScoreArgs {
  Program program;
  const Batch* batch;
  uint32_t staging_bytes;
};

// Shared memory of a block: staging, the tile's buffers, the request and the item of each row, and whether that is
// known.
FMTR_DEVICE size_t tile_floats(const Program& program, uint32_t rows) { return (size_t)program.shared_floats * rows; }

FMTR_DEVICE uint64_t request_of(const Batch& batch, uint64_t candidate) {
  if (batch.offsets == nullptr) return candidate / batch.n_items;
  uint64_t low = 0, high = batch.n_requests;  // the last whose candidates begin no later
  while (high - low > 1) {
    const uint64_t middle = (low + high) / 2;
    (batch.offsets[middle] <= candidate ? low : high) = middle;
  }
  return low;
}

FMTR_DEVICE float fuse(const Program& program, const Frame& frame, uint32_t r) {
  float total = 0.0f;
  for (uint32_t i = 0; i < program.n_fused; ++i) {
    float p = *row(rows_of(program.tasks[program.fused_tasks[i]], frame), r);
    if (program.product) p = math::log(math::max(1e-12f, p + program.fusion_offsets[i]));  // a NaN stays
    total = math::fma(frame.batch->fusion_weights[i], p, total);
  }
  return program.product ? math::exp(total) : total;
}

// T: what products are computed in, see staged.cuh.
template <class T>
FMTR_KERNEL(score_candidates, ScoreArgs) {
  const Program& program = args.program;
  const Batch& batch = *args.batch;
  const uint32_t tile = batch.tile_rows;
  Frame frame{};
  frame.program = &program;
  frame.batch = &batch;
  frame.phase = Domain::candidate;
  frame.layout_rows = tile;
  frame.staging = shared_memory();
  frame.shared = (float*)(shared_memory() + args.staging_bytes);
  frame.scratch = batch.scratch + (size_t)block_index() * program.scratch_floats * tile;
  uint32_t* requests = (uint32_t*)(frame.shared + tile_floats(program, tile));
  uint32_t *slots = requests + tile, *unknown = slots + tile;
  frame.request_of = requests;
  frame.slots = slots;
  const uint32_t stand_in = batch.row_slots != nullptr ? batch.row_slots[0] : 0;

  for (uint64_t first = (uint64_t)block_index() * tile; first < batch.total; first += (uint64_t)grid_size() * tile) {
    frame.first = first;
    frame.rows = (uint32_t)(batch.total - first < tile ? batch.total - first : tile);
    for_each(frame.rows, [&](uint32_t r) {
      const uint64_t candidate = first + r, request = request_of(batch, candidate);
      requests[r] = (uint32_t)request;
      uint32_t slot = 0;
      if (batch.offsets == nullptr) {
        const uint64_t at = candidate - request * batch.n_items;
        slot = batch.row_slots != nullptr ? batch.row_slots[at] : (uint32_t)at;
      } else if (batch.slots != nullptr) {
        slot = batch.slots[candidate];
      }
      unknown[r] = slot == kNoRow;
      slots[r] = slot == kNoRow ? stand_in : slot;  // computed as if it were the first item
    });
    block_barrier();
    for (uint32_t i = 0; i < program.candidate.n; ++i) {
      const Step& step = program.steps[program.candidate.steps[i]];
      if (step.staged)
        run_staged<T>(step, frame);
      else
        run_step(step, frame, {0, 1}, 0);
      block_barrier();
    }
    if (batch.scores != nullptr)
      for_each_column(frame.rows, program.n_tasks, [&](uint32_t r, uint32_t t) {
        const float score = *row(rows_of(program.tasks[t], frame), r);
        batch.scores[(first + r) * program.n_tasks + t] = unknown[r] ? math::nan() : score;
      });
    for_each(frame.rows,
             [&](uint32_t r) { batch.fused[first + r] = unknown[r] ? math::nan() : fuse(program, frame, r); });
    block_barrier();
  }
}

}  // namespace fastmtr::device
#endif
