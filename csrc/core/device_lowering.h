// A plan made ready for a device: see device.h.
#ifndef FASTMTR_CORE_DEVICE_LOWERING_H
#define FASTMTR_CORE_DEVICE_LOWERING_H

#include <string>
#include <vector>

#include "core/device_fusion.h"
#include "core/plan.h"
#include "core/program.h"
#include "device.h"

namespace fastmtr {

const char* precision_name(DevicePrecision precision);

// Owns what a DeviceProgram points to; the plan must outlive it.
class DeviceLowering {
 public:
  DeviceLowering(const Plan& plan, const Program& program, DevicePrecision precision, const DeviceProperties& device);
  DeviceLowering(const DeviceLowering&) = delete;
  DeviceLowering& operator=(const DeviceLowering&) = delete;

  const DeviceProgram& program() const { return program_; }
  // The index in DeviceProgram::outputs of an output of the plan of role request.
  uint32_t output(size_t plan_output) const { return output_index_[plan_output]; }
  // JSON text: how the steps of candidates run there, and what does not fit into shared memory.
  std::string describe() const;

 private:
  void lay_out_requests();
  void lay_out_candidates(const DeviceProperties& device);
  DeviceOperand operand(const Operand& from) const;
  DeviceStep step(const PlanStep& from);
  uint32_t fused_step(const FusedStep& from);

  const Plan& plan_;
  const std::vector<Table>& tables_;
  std::vector<bool> needed_;
  std::vector<FusedStep> fused_;        // the steps of candidates, in the order in which they run
  std::vector<size_t> place_, stride_;  // a buffer of the plan
  std::vector<bool> in_scratch_;
  std::vector<int64_t> table_of_;
  DeviceOperand work_[kDomains] = {};
  std::vector<DeviceStep> steps_;
  std::vector<DeviceOperand> operands_, tasks_operands_, output_operands_;
  std::vector<std::vector<uint32_t>> lists_;
  std::vector<DeviceList> outputs_;
  std::vector<DeviceTable> device_tables_;
  std::vector<DeviceMixture> mixtures_;
  std::vector<int32_t> experts_;
  std::vector<uint32_t> output_index_;
  DeviceProgram program_{};
};

}  // namespace fastmtr
#endif
