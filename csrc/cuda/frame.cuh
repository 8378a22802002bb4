// What a launch computes with: the program, the batch, and where the rows of an operand lie for a tile of rows.
#ifndef FASTMTR_CUDA_FRAME_CUH
#define FASTMTR_CUDA_FRAME_CUH

#include "cuda/portable.h"
#include "device.h"

namespace fastmtr::device {

// Pointers of a DeviceStep that is on the device are the device's: products packed as pack_weights() says.
struct Step : DeviceStep {
  const void* fragments;  // w for the matrix units, in the program's precision; NULL: the product is by fp32
};

struct List {
  const uint32_t* steps;
  uint32_t n;
};

// The share of a step's columns that a block computes.
struct Part {
  uint32_t index, count;
};

// Steps of requests that a block runs one after the other, or its part of one.
struct Task {
  List list;
  Part part;
};

// All in the device's memory.
struct Program {
  const Step* steps;
  const DeviceOperand* operands;
  List candidate;
  const DeviceMixture* mixtures;
  const int32_t* experts;
  const DeviceOperand* tasks;
  const uint32_t* fused_tasks;
  const float* fusion_offsets;
  uint32_t n_tasks, n_fused;
  int32_t product;
  uint32_t request_row_floats, shared_floats, scratch_floats;
  uint32_t tile_rows;  // at most
  uint32_t source_row_bytes, factor_row_bytes, factor_buffers;
  DevicePrecision precision;
};

// Of a hash table of the catalogue's keys, open addressing, at most half full.
struct KeyEntry {
  int64_t key;
  uint32_t slot;  // kNoRow: empty
};
FMTR_HOST_DEVICE uint64_t hash_of(int64_t key) {
  uint64_t x = (uint64_t)key;
  x ^= x >> 32;
  x *= 0x9E3779B97F4A7C15u;
  return x ^ x >> 32;
}

constexpr uint32_t kNoRow = 0xffffffffu;  // the slot of an item that the catalogue does not have

// One call. Its numbers change from call to call, the memory it names rarely.
struct Batch {
  uint64_t n_requests, total;
  uint64_t n_items;           // of the catalogue
  const uint64_t* offsets;    // NULL: each request has the whole catalogue
  const uint32_t* slots;      // of the candidates; NULL: they need none, or are the catalogue
  const uint32_t* row_slots;  // of the catalogue's rows; NULL: the rows themselves
  const int64_t* items;       // the candidates', where they have to be looked up
  const KeyEntry* keys_of;    // NULL: items are rows
  uint64_t key_mask;
  uint32_t* slots_found;
  const int32_t *request_ids, *item_ids, *candidate_ids;
  const float *request_dense, *item_dense, *candidate_dense;
  const unsigned char* const* tables;
  const float* fusion_weights;
  float* request_rows;
  float* scratch;  // a piece a block
  float *scores, *fused;
  uint32_t tile_rows;
  // Lists of the k best.
  uint64_t k, list_room;  // numbers that a list may need while it is sorted
  uint64_t* keys;         // [n_requests, list_room]
  uint64_t *positions, *counts;
  int64_t* list_items;
  float *list_fused, *list_scores;
};

// The rows of a tile, of requests or of candidates.
struct Frame {
  const Program* program;
  const Batch* batch;
  Domain phase;
  uint32_t rows;
  uint64_t first;              // the number of row 0 among the requests, or the candidates
  uint32_t layout_rows;        // that places in a tile are made for
  float *shared, *scratch;     // candidates
  const uint32_t* request_of;  // candidates: their requests
  const uint32_t* slots;       // candidates: their items
  unsigned char* staging;      // candidates: shared memory for a step while it runs; see staged.cuh
};

FMTR_DEVICE Rows rows_of(const DeviceOperand& operand, const Frame& frame) {
  const Batch& batch = *frame.batch;
  const bool of_candidates = frame.phase == Domain::candidate;
  const void* base = nullptr;
  const uint32_t* gather = nullptr;
  size_t first = frame.first;
  switch (operand.space) {
    case DeviceSpace::request_ids:
      base = batch.request_ids, gather = frame.request_of;
      break;
    case DeviceSpace::request_dense:
      base = batch.request_dense, gather = frame.request_of;
      break;
    case DeviceSpace::request_row:
      base = batch.request_rows, gather = frame.request_of;
      break;
    case DeviceSpace::item_ids:
      base = batch.item_ids, gather = frame.slots;
      break;
    case DeviceSpace::item_dense:
      base = batch.item_dense, gather = frame.slots;
      break;
    case DeviceSpace::item_table: {
      const unsigned char* table = batch.tables[operand.table];
      const size_t bytes = operand.encoding == Encoding::f32 ? 4 : operand.encoding == Encoding::f16 ? 2 : 1;
      return {(const float*)(table + operand.column * bytes), operand.stride, frame.slots, operand.encoding,
              (const float*)(table + operand.scale_at)};
    }
    case DeviceSpace::candidate_ids:
      base = batch.candidate_ids;
      break;
    case DeviceSpace::candidate_dense:
      base = batch.candidate_dense;
      break;
    case DeviceSpace::shared:
      base = frame.shared + (size_t)operand.place * frame.layout_rows, first = 0;
      break;
    case DeviceSpace::scratch:
      base = frame.scratch + (size_t)operand.place * frame.layout_rows, first = 0;
      break;
  }
  if (of_candidates && gather != nullptr) first = 0;
  return {(const float*)base + first * operand.stride + operand.column, operand.stride,
          of_candidates ? gather : nullptr, Encoding::f32, nullptr};
}

FMTR_DEVICE Out out_of(const DeviceOperand& operand, const Frame& frame) {
  const Rows rows = rows_of(operand, frame);
  return {(float*)rows.data, rows.stride};
}

FMTR_DEVICE size_t place_of(const Rows& x, uint32_t r) { return (size_t)(x.gather ? x.gather[r] : r) * x.stride; }
FMTR_DEVICE const float* row(const Rows& x, uint32_t r) { return x.data + place_of(x, r); }
FMTR_DEVICE float* row(const Out& x, uint32_t r) { return x.data + (size_t)r * x.stride; }

// Of rows of any encoding: the number at `place` (of the row) and `column`, decoded, and its row's scale.
struct Encoded {
  float x, scale;
};
FMTR_DEVICE Encoded number_at(const Rows& x, size_t place, uint32_t column) {
  switch (x.encoding) {
    case Encoding::f32:
      break;
    case Encoding::f16:
      return {to_float(((const half_t*)x.data)[place + column]), 1.0f};
    case Encoding::i8:
      return {(float)((const int8_t*)x.data)[place + column], *(const float*)((const char*)x.scales + place)};
  }
  return {x.data[place + column], 1.0f};
}
// sum + the number, of i8 without a rounding in between.
FMTR_DEVICE float add_number(float sum, const Rows& x, size_t place, uint32_t column) {
  const Encoded found = number_at(x, place, column);
  return x.encoding == Encoding::i8 ? fused_multiply_add(found.x, found.scale, sum) : sum + found.x;
}

// fn(i) for i below n, shared out among the block's threads.
template <class Fn>
FMTR_DEVICE void for_each(uint32_t n, const Fn& fn) {
  for (uint32_t i = thread_index(); i < n; i += block_size()) fn(i);
}

// fn(row, column), of the columns that are this block's.
template <class Fn>
FMTR_DEVICE void for_each_column(uint32_t rows, uint32_t width, const Fn& fn, Part part = {0, 1}) {
  const uint32_t begin = part.count == 1 ? 0 : (uint32_t)((uint64_t)width * part.index / part.count);
  const uint32_t end = part.count == 1 ? width : (uint32_t)((uint64_t)width * (part.index + 1) / part.count);
  const uint32_t n = end - begin;
  for_each(rows * n, [&](uint32_t i) { fn(i / n, begin + i % n); });
}

}  // namespace fastmtr::device
#endif
