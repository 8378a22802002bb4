#include "core/input_check.h"

#include <bit>
#include <cmath>
#include <limits>

#include "core/json.h"

namespace fastmtr {

InputCheck::InputCheck(const Plan& plan, Domain domain)
    : plan_(plan),
      domain_(domain),
      below_(plan.ids_width[static_cast<int>(domain)],
             std::numeric_limits<uint32_t>::max()),  // a column that no input reads
      dense_width_(plan.dense_width[static_cast<int>(domain)]) {
  for (const PlanInput& input : plan.inputs)
    if (input.domain == domain && input.ids)
      for (uint64_t c = 0; c < input.width; ++c) below_[input.offset + c] = input.rows;
}

void InputCheck::check(const int32_t* ids, const float* dense, uint64_t rows, fmtr_status status) const {
  if (rows == 0) return;
  const size_t width = below_.size();
  const char* domain = domain_name(domain_);
  if (ids == nullptr && width > 0)
    fail(FMTR_ERROR_ARGUMENT, domain, "_ids is NULL, but the model reads ", width, " id columns a ", domain);
  if (dense == nullptr && dense_width_ > 0)
    fail(FMTR_ERROR_ARGUMENT, domain, "_dense is NULL, but the model reads ", dense_width_, " dense columns a ",
         domain);
  const uint32_t* below = below_.data();
  for (uint64_t r = 0; r < rows; ++r) {
    const int32_t* row = ids + r * width;
    uint32_t bad = 0;
    for (size_t c = 0; c < width; ++c)
      bad |= static_cast<uint32_t>(static_cast<uint32_t>(row[c]) >= below[c]);  // negative: large
    if (bad != 0) refuse_id(ids, r, status);
  }
  // A number is not finite exactly when all bits of its exponent are set.
  const uint64_t n = rows * dense_width_;
  uint32_t bad = 0;
  for (uint64_t i = 0; i < n; ++i)
    bad |= static_cast<uint32_t>((std::bit_cast<uint32_t>(dense[i]) & 0x7F800000u) == 0x7F800000u);
  if (bad != 0) refuse_numbers(dense, rows, status);
}

void InputCheck::refuse_id(const int32_t* ids, uint64_t row, fmtr_status status) const {
  for (const PlanInput& input : plan_.inputs) {
    if (input.domain != domain_ || !input.ids) continue;
    for (uint64_t c = 0; c < input.width; ++c) {
      const int32_t id = ids[row * below_.size() + input.offset + c];
      if (id < 0 || static_cast<uint32_t>(id) >= input.rows)
        fail(status, "input ", quote(input.name), ", ", domain_name(domain_), " row ", row, ", position ", c, ": id ",
             id, " is out of range, expected 0 .. ", input.rows - 1);
    }
  }
  fail(FMTR_ERROR_INTERNAL, "an id out of range could not be found again");
}

void InputCheck::refuse_numbers(const float* dense, uint64_t rows, fmtr_status status) const {
  for (uint64_t r = 0; r < rows; ++r)
    for (const PlanInput& input : plan_.inputs) {
      if (input.domain != domain_ || input.ids) continue;
      for (uint64_t c = 0; c < input.width; ++c) {
        const float value = dense[r * dense_width_ + input.offset + c];
        if (!std::isfinite(value))
          fail(status, "input ", quote(input.name), ", ", domain_name(domain_), " row ", r, ", position ", c, ": ",
               std::isnan(value) ? "NaN"
               : value > 0       ? "infinity"
                                 : "-infinity",
               " found, expected a finite number (fill missing values before)");
      }
    }
}

}  // namespace fastmtr
