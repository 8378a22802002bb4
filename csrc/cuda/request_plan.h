// How the steps of requests are shared out: launches one after the other, each of tasks that do not wait for one
// another.
#ifndef FASTMTR_CUDA_REQUEST_PLAN_H
#define FASTMTR_CUDA_REQUEST_PLAN_H

#include <cstdint>
#include <vector>

#include "device.h"

namespace fastmtr::device {

struct PlannedTask {
  std::vector<uint32_t> steps;  // of the program
  uint32_t part, parts;
};

struct PlannedLaunch {
  std::vector<PlannedTask> tasks;
  uint32_t room;  // bytes of shared memory for the weights of a part
};

std::vector<PlannedLaunch> plan_requests(const DeviceProgram& program, const DeviceList& list);

}  // namespace fastmtr::device
#endif
