// What plan.cpp cannot see while it reads one step: order, domains, widths and the bounds of ids, over the whole plan.
#ifndef FASTMTR_CORE_PLAN_CHECK_H
#define FASTMTR_CORE_PLAN_CHECK_H

#include <string_view>

#include "core/plan.h"

namespace fastmtr {

void check_steps(const Plan& plan);
void check_output(const Plan& plan, const PlanOutput& output, std::string_view where);

}  // namespace fastmtr
#endif
