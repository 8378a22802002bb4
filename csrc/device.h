// The seam between the engine and a device: a plugin's table of functions, and what passes through it.
//
// A plugin is a shared library with one exported symbol, fmtr_device_api(). It and the engine are of one version of
// fastmtr, which the engine checks before it calls anything else. Plain structs only: the two may be built by different
// compilers. The engine checks all inputs, looks keys up and keeps the catalogue; the plugin computes.
#ifndef FASTMTR_DEVICE_H
#define FASTMTR_DEVICE_H

#include "backend.h"

namespace fastmtr {

constexpr uint32_t kDeviceApiVersion = 1;

// Where the rows of an operand lie.
enum class DeviceSpace : int32_t {
  request_ids,
  request_dense,
  item_ids,
  item_dense,
  item_table,
  candidate_ids,
  candidate_dense,
  request_row,  // what the request steps make: one row a request, in the device's memory
  shared,       // of a tile of candidates: in a block's shared memory
  scratch       // the same where that is too small: in the device's memory, a piece a block
};

struct DeviceOperand {
  DeviceSpace space;
  Encoding encoding;  // of an item table
  uint32_t table;     // item_table: which
  uint32_t place;     // shared, scratch: floats a row that lie before the buffer
  uint32_t column, width;
  uint32_t stride;    // numbers from row to row
  uint32_t scale_at;  // item_table of i8: the byte of a row where its scale lies
};

// A step of the plan, as core/plan.h has it. Pointers are the engine's; what they point to has the shape of the plan.
struct DeviceStep {
  Op op;
  Domain domain;
  Activation activation;
  Binary binary;
  Reduce reduce;
  Pooling pooling;
  uint32_t first_input, n_inputs;  // in DeviceProgram::operands
  DeviceOperand out;
  DeviceOperand work;  // gru, and conv1d whose windows overlap
  int32_t has_x, transpose_b, all_states;
  uint32_t groups, n, k, m, steps, outer, axis, inner, hidden;
  uint32_t x_step;      // columns between the x of two steps
  uint32_t work_steps;  // gru: steps whose products with x are made together
  Arrangement order;
  float alpha, eps, value;
  int64_t padding;
  EmbeddingTable table;  // its rows are k
  const float *w, *b, *slope, *scale, *shift, *w_state, *b_state;
  // Affine steps of candidates whose x is brought into shared memory first, group by group: see cuda/staged.cuh.
  int32_t staged;
  int32_t source;  // the step (of DeviceProgram::steps) that makes x on the way; -1: x is where the operand says
  uint32_t pass;   // columns that are made at once: n, or the width of the mixtures
  uint32_t first_mixture, n_mixtures;  // that take the output, which then goes nowhere else
};

// Output out = sum of gate[e] times expert e; the experts are passes of a step.
struct DeviceMixture {
  DeviceOperand gate, out;
  uint32_t first_expert;  // in DeviceProgram::experts: for each pass of the step which expert it is, or -1
};

struct DeviceTable {
  uint32_t row_bytes;
};

// Steps that run one after the other, by their positions in DeviceProgram::steps.
struct DeviceList {
  const uint32_t* steps;
  uint32_t n;
};

enum class DevicePrecision : int32_t { fp32, tf32, fp16, bf16 };

// A plan made ready for a device. The plugin keeps nothing of it but what it copies.
struct DeviceProgram {
  DevicePrecision precision;  // of the products of candidates
  const DeviceStep* steps;
  uint32_t n_steps;
  const DeviceOperand* operands;
  uint32_t n_operands;
  const DeviceMixture* mixtures;
  uint32_t n_mixtures;
  const int32_t* experts;
  uint32_t n_experts;
  DeviceList request;  // what tasks need
  DeviceList candidate;
  const DeviceList* outputs;  // request outputs, each with the steps it needs
  const DeviceOperand* output_operands;
  uint32_t n_outputs;
  uint32_t ids_width[kDomains], dense_width[kDomains];  // of the packed matrices
  const DeviceTable* tables;
  uint32_t n_tables;
  uint32_t request_row_floats;
  uint32_t shared_floats, scratch_floats;  // a row of a tile
  uint32_t tile_rows;                      // at most
  // Of a row, in shared memory, for staged steps: x of a step that is made on the way, and of the step itself.
  uint32_t source_row_bytes, factor_row_bytes, factor_buffers;
  uint32_t n_tasks;
  const DeviceOperand* tasks;
  uint32_t n_fused;
  int32_t product;
  const uint32_t* fused_tasks;
  const float *fusion_weights, *fusion_offsets;
};

struct DeviceProperties {
  char name[256];
  uint32_t blocks_at_once;  // processors
  uint32_t shared_bytes;    // that a block may have
  uint32_t half_bytes;      // the same, where a processor is to run two blocks at once
  uint32_t block_bytes;     // of them, what is not of a row
  uint64_t memory_bytes;
};

// Rows of some slots of the catalogue's store: row i of each matrix goes to slot slots[i].
struct DeviceItems {
  uint64_t n;
  const uint32_t* slots;
  const void* const* sources;  // ids, dense, then each table: rows in the engine's memory, by slot
};

struct DeviceCall {
  uint64_t n_requests, total, most;  // candidates: in all, of the largest request
  const int32_t* request_ids;
  const float* request_dense;
  const uint64_t* offsets;  // [n_requests + 1]; NULL: each request has the whole catalogue
  const uint32_t* slots;    // [total]; NULL: candidates need no slot, or are the catalogue
  const int32_t* candidate_ids;
  const float* candidate_dense;
  const float* fusion_weights;              // [n_fused]
  const struct DeviceCatalogue* catalogue;  // NULL: none
  uint32_t tile;                            // rows; 0: as the device likes
  // scores: of all candidates.
  float* scores;  // [total, n_tasks] or NULL
  float* fused;   // [total] or NULL
  // with list: the `k` best of each request, as fmtr_rank has them.
  int32_t list;
  // In place of slots: the candidates' items in the device's memory, by key, or by row of the catalogue. Those that it
  // does not have are never listed.
  const int64_t* device_items;
  int32_t items_are_rows;
  int32_t wait_for_stream;  // what fills device_items was sent to this stream of the device's
  void* stream;
  int32_t results_on_device;  // results of a list, or of request_output: the pointers below are the device's
  uint64_t k;                 // at most `most`
  uint64_t list_stride;       // places between the lists of two requests
  uint64_t* positions;
  float *list_fused, *list_scores;  // or NULL
  int64_t* list_items;              // or NULL: of device_items, -1 beyond a list's end
  uint64_t* counts;
};

struct DeviceError {
  char text[512];
};

struct DeviceModel;
struct DeviceStore;      // items, by slot
struct DeviceCatalogue;  // a version: which slot each row is
struct DeviceSession;

// Functions that can fail return an fmtr_status and then fill the error.
struct DeviceApi {
  uint32_t api_version;
  const char* fastmtr_version;
  const char* name;                                        // "cuda", or "cuda-host"
  int32_t (*properties)(DeviceProperties*, DeviceError*);  // FMTR_ERROR_BACKEND where there is no device to use

  int32_t (*model_create)(const DeviceProgram*, DeviceModel**, DeviceError*);
  void (*model_free)(DeviceModel*);
  uint64_t (*model_bytes)(const DeviceModel*);

  int32_t (*store_create)(DeviceModel*, uint64_t capacity, DeviceStore**, DeviceError*);
  void (*store_free)(DeviceStore*);
  int32_t (*store_write)(DeviceStore*, const DeviceItems*, DeviceError*);
  uint64_t (*store_bytes)(const DeviceStore*);

  // slots [n_items], NULL: row i is slot i.
  int32_t (*catalogue_create)(DeviceStore*, const uint32_t* slots, uint64_t n_items, DeviceCatalogue**, DeviceError*);
  void (*catalogue_free)(DeviceCatalogue*);
  // The keys of its items [n_items], by row; once, before the first call with device_items that are keys.
  int32_t (*catalogue_keys)(DeviceCatalogue*, const int64_t* keys, DeviceError*);

  int32_t (*session_create)(DeviceModel*, DeviceSession**, DeviceError*);
  void (*session_free)(DeviceSession*);
  int32_t (*run)(DeviceSession*, const DeviceCall*, DeviceError*);
  // Output `index` of DeviceProgram::outputs of the call's requests, row-major.
  int32_t (*request_output)(DeviceSession*, const DeviceCall*, uint32_t index, float* values, DeviceError*);

  int32_t (*allocate)(uint64_t bytes, void** memory, DeviceError*);
  void (*release)(void* memory);
  int32_t (*copy_out)(void* to, const void* from, uint64_t bytes, DeviceError*);
};

}  // namespace fastmtr

extern "C" const fastmtr::DeviceApi* fmtr_device_api();

#endif
