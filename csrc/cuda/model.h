// A model on the device: its steps with their weights, and how the steps of requests are launched.
#ifndef FASTMTR_CUDA_MODEL_H
#define FASTMTR_CUDA_MODEL_H

#include <vector>

#include "cuda/frame.cuh"
#include "cuda/runtime.h"

namespace fastmtr::device {

// Steps of requests that one launch runs, as tasks for blocks.
struct Segment {
  const Task* tasks;  // on the device
  uint32_t n_tasks;
  uint32_t room;  // bytes of shared memory for weights
};

struct RequestOutput {
  std::vector<Segment> segments;
  DeviceOperand operand;
};

class LoadedModel {
 public:
  explicit LoadedModel(const DeviceProgram& from);

  Program program{};
  std::vector<Segment> request;
  std::vector<RequestOutput> outputs;
  uint32_t ids_width[kDomains], dense_width[kDomains];
  std::vector<uint32_t> table_row_bytes;
  unsigned multiprocessors;
  size_t shared_bytes;  // that a block can ask for
  size_t bytes() const { return memory_.size(); }

 private:
  Memory<unsigned char> memory_;
};

}  // namespace fastmtr::device
#endif
