// One stream's calls: memory that stays, and a graph of launches for each shape of call that has come.
#ifndef FASTMTR_CUDA_SESSION_H
#define FASTMTR_CUDA_SESSION_H

#include <cstdint>
#include <map>
#include <tuple>
#include <vector>

#include "cuda/model.h"
#include "cuda/runtime.h"

namespace fastmtr::device {

// Of a block's shared memory, what is not of a row of its tile.
uint32_t block_bytes();

// Items by slot. Sources are the engine's rows of the same slots.
class Store {
 public:
  Store(const LoadedModel& model, uint64_t capacity);
  void write(const DeviceItems& items);
  uint64_t bytes() const;

  const int32_t* ids() const { return reinterpret_cast<const int32_t*>(matrices_[0].data()); }
  const float* dense() const { return reinterpret_cast<const float*>(matrices_[1].data()); }
  const unsigned char* const* tables() const { return pointers_.data(); }

 private:
  std::vector<size_t> row_bytes_;  // ids, dense, then each table
  std::vector<Memory<unsigned char>> matrices_;
  Memory<const unsigned char*> pointers_;  // of the tables
  Stream stream_;
};

struct Version {
  const Store* store;
  uint64_t n_items;
  Memory<uint32_t> slots{};  // empty: row i is slot i
  std::vector<uint32_t> slots_here{};
  Memory<KeyEntry> keys{};  // empty, until set_keys()

  void set_keys(const int64_t* of_rows);
};

// What a graph was made for: numbers of calls are rounded up, so that few graphs serve many calls.
struct Shape {
  int32_t output;                                                  // -1: none
  int32_t list, whole, has_slots, has_items, wants_scores, stays;  // stays: results do, on the device
  uint32_t tile;
  uint64_t requests, candidates, k;
  auto key() const {
    return std::tuple(output, list, whole, has_slots, has_items, wants_scores, stays, tile, requests, candidates, k);
  }
  bool operator<(const Shape& other) const { return key() < other.key(); }
};

class CallSession {
 public:
  explicit CallSession(const LoadedModel& model);

  void run(const DeviceCall& call);
  void request_output(DeviceCall call, uint32_t index, float* values);

 private:
  // Where the inputs of a call of that shape lie in one piece of memory, and its results in another. In bytes.
  struct Places {
    size_t request_ids, request_dense, offsets, slots, candidate_ids, candidate_dense, weights, inputs;
    size_t scores, fused, positions, counts, list_fused, list_scores, list_items, results, results_to_copy;
  };

  Shape shape_of(const DeviceCall& call, int32_t output) const;
  Places places_of(const Shape& shape) const;
  void reserve(const Shape& shape, const Places& places);
  void fill(const DeviceCall& call, const Shape& shape, const Places& places);
  void launch(const Shape& shape, const Places& places);
  void record(const Shape& shape, const Places& places);
  void launch_requests(const std::vector<Segment>& segments, uint64_t requests);
  unsigned blocks_for(const Shape& shape) const;
  size_t staging_bytes(uint32_t tile) const;
  size_t shared_bytes(uint32_t tile) const;

  const LoadedModel& model_;
  Stream stream_;
  Pinned<unsigned char> inputs_here_, results_here_;
  Memory<unsigned char> inputs_, results_;
  Memory<float> request_rows_, scratch_;
  Memory<uint64_t> keys_;
  Memory<uint32_t> slots_;
  std::map<Shape, Graph> graphs_;
};

}  // namespace fastmtr::device
#endif
