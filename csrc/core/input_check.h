// Packed inputs are checked before anything is computed with them: each id below its input's rows, each number finite.
#ifndef FASTMTR_CORE_INPUT_CHECK_H
#define FASTMTR_CORE_INPUT_CHECK_H

#include <cstdint>
#include <vector>

#include "core/plan.h"
#include "core/status.h"

namespace fastmtr {

class InputCheck {
 public:
  InputCheck(const Plan& plan, Domain domain);

  // Throws `status` naming the input, the row and the value. A matrix may be NULL where it has no columns or no rows.
  void check(const int32_t* ids, const float* dense, uint64_t rows, fmtr_status status) const;

 private:
  [[noreturn]] void refuse_id(const int32_t* ids, uint64_t row, fmtr_status status) const;
  void refuse_numbers(const float* dense, uint64_t rows, fmtr_status status) const;

  const Plan& plan_;
  Domain domain_;
  std::vector<uint32_t> below_;  // a column of the ids matrix
  uint64_t dense_width_;
};

}  // namespace fastmtr
#endif
