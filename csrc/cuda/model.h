// A model on the device: its steps with their weights, and how the steps of requests are launched.
#ifndef FASTMTR_CUDA_MODEL_H
#define FASTMTR_CUDA_MODEL_H

#include <vector>

#include "cuda/frame.cuh"
#include "cuda/runtime.h"

namespace fastmtr::device {

// Steps of requests that one launch runs. A large product is launched alone, and shared out among blocks.
struct Segment {
  List list;
  uint32_t parts;
};

struct RequestOutput {
  std::vector<Segment> segments;
  DeviceOperand operand;
};

class Weights;

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
  std::vector<Segment> segments(const DeviceProgram& from, const DeviceList& list, const uint32_t* on_device) const;

  Memory<unsigned char> memory_;
};

// Weights beyond which a request's product is shared out among blocks.
uint32_t split_bytes();

}  // namespace fastmtr::device
#endif
