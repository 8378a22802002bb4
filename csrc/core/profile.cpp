#include "core/profile.h"

#include "core/costs.h"
#include "core/json.h"
#include "core/program.h"
#include "core/status.h"

namespace fastmtr {

namespace {
constexpr const char* kPhaseNames[kPhases] = {"checks", "lookup", "request", "candidates", "fusion", "top_k"};
}

void Profile::add(const Profile& other) {
  for (size_t i = 0; i < steps.size(); ++i) {
    steps[i].calls += other.steps[i].calls;
    steps[i].rows += other.steps[i].rows;
    steps[i].nanoseconds += other.steps[i].nanoseconds;
  }
  for (int p = 0; p < kPhases; ++p) phases[p] += other.phases[p];
}

std::string profile_json(const Profile& profile, const Profiled& what, const Program& program) {
  const Plan& plan = program.plan();
  std::string phases, steps;
  for (int p = 0; p < kPhases; ++p) phases += say(p == 0 ? "" : ", ", "\"", kPhaseNames[p], "\": ", profile.phases[p]);
  for (size_t i = 0; i < profile.steps.size(); ++i) {
    const Profile::Times& times = profile.steps[i];
    const PlanStep& step = plan.steps[i];
    if (times.calls == 0) continue;
    steps +=
        say(steps.empty() ? "" : ", ", "{\"name\": ", json_quote(step.name), ", \"op\": \"", op_name(step.op),
            "\", \"domain\": \"", domain_name(step.domain), "\", \"calls\": ", times.calls, ", \"rows\": ", times.rows,
            ", \"flops\": ", times.rows * step_flops(step), ", \"nanoseconds\": ", times.nanoseconds, "}");
  }
  return say("{\"repeats\": ", what.repeats, ", \"requests\": ", what.requests, ", \"candidates\": ", what.candidates,
             ", \"k\": ", what.k, ", \"threads\": ", what.threads, ", \"isa\": ", json_quote(program.kernels().isa),
             ", \"precision\": \"", precision_name(program.precision()), "\", \"nanoseconds\": ", what.nanoseconds,
             ", \"phases\": {", phases, "}, \"steps\": [", steps, "]}");
}

}  // namespace fastmtr
