// What a step costs, for one row of its domain; as fastmtr/compiler/costs.py counts it.
#ifndef FASTMTR_CORE_COSTS_H
#define FASTMTR_CORE_COSTS_H

#include <cstdint>
#include <string>

#include "core/plan.h"

namespace fastmtr {

class Program;

uint64_t step_flops(const PlanStep& step);

// JSON text: each step with its costs, and their sums a domain.
std::string explain_json(const Program& program, uint64_t n_items);

}  // namespace fastmtr
#endif
