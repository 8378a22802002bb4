// What a device computes in one go: a product, with the affine step that makes its x on the way, and the mixtures that
// take its output, so that neither goes to memory.
#ifndef FASTMTR_CORE_DEVICE_FUSION_H
#define FASTMTR_CORE_DEVICE_FUSION_H

#include <cstdint>
#include <vector>

#include "core/plan.h"
#include "device.h"

namespace fastmtr {

// Positions of steps of the plan.
struct FusedStep {
  uint32_t main = 0;
  int64_t source = -1;
  std::vector<uint32_t> mixtures;
  bool staged = false;
};

// The steps of candidates that `needed` names, each once, in an order in which every input is made before it is read.
std::vector<FusedStep> fuse_steps(const Plan& plan, const std::vector<bool>& needed, DevicePrecision precision);

// Bytes of a row of k numbers as a factor of a product of that precision.
uint32_t factor_row_bytes(uint64_t k, DevicePrecision precision);

}  // namespace fastmtr
#endif
