#include "core/device_fusion.h"

#include <algorithm>
#include <utility>

#include "core/status.h"

namespace fastmtr {

namespace {

constexpr uint64_t kMostFactorBytes = 2304;  // of a row; beyond, x is read where it lies
constexpr size_t kMostSteps = 1000;          // that are looked at for what can be computed in one go
constexpr uint64_t kLeastFragment = 16;      // columns of x and of the output that are worth the matrix units

bool overlap(const Operand& a, const Operand& b) {
  return a.buffer == b.buffer && a.offset < b.offset + b.width && b.offset < a.offset + a.width;
}
bool same(const Operand& a, const Operand& b) {
  return a.buffer == b.buffer && a.offset == b.offset && a.width == b.width;
}

class Fuser {
 public:
  Fuser(const Plan& plan, const std::vector<bool>& needed, DevicePrecision precision)
      : plan_(plan), precision_(precision) {
    for (uint32_t i = 0; i < plan.steps.size(); ++i)
      if (needed[i] && plan.steps[i].domain == Domain::candidate) all_.push_back(i);
  }

  std::vector<FusedStep> run() {
    std::vector<bool> taken(plan_.steps.size());
    std::vector<FusedStep> found;
    for (const uint32_t i : all_) {
      FusedStep step;
      step.main = i;
      if (all_.size() <= kMostSteps && can_be_staged(plan_.steps[i])) {
        step.source = source_of(i);
        step.mixtures = mixtures_of(i);
        step.staged = precision_ != DevicePrecision::fp32 || step.source >= 0 || !step.mixtures.empty();
      }
      if (step.source >= 0) taken[static_cast<size_t>(step.source)] = true;
      for (const uint32_t m : step.mixtures) taken[m] = true;
      found.push_back(std::move(step));
    }
    // A step that is part of another is none of its own, and has no parts of its own.
    std::erase_if(found, [&](const FusedStep& step) { return taken[step.main]; });
    return all_.size() <= kMostSteps ? in_order(std::move(found)) : found;
  }

 private:
  bool can_be_staged(const PlanStep& step) const {
    const bool wide = precision_ == DevicePrecision::fp32 || (step.k >= kLeastFragment && step.n >= kLeastFragment);
    return step.op == Op::affine && step.has_x && step.steps == 1 && wide &&
           factor_row_bytes(step.k, precision_) <= kMostFactorBytes;
  }

  bool is_output(const Operand& operand) const {
    return std::any_of(plan_.outputs.begin(), plan_.outputs.end(),
                       [&](const PlanOutput& output) { return overlap(output.operand, operand); });
  }

  // The affine step that makes x and is read by nobody else.
  int64_t source_of(uint32_t main) const {
    const PlanStep& step = plan_.steps[main];
    const Operand& x = step.inputs[0];
    int64_t source = -1;
    if (is_output(x)) return -1;
    for (const uint32_t i : all_) {
      const PlanStep& other = plan_.steps[i];
      if (overlap(other.output, x)) {
        if (other.op != Op::affine || other.steps > 1 || !same(other.output, x)) return -1;
        source = i;
      }
      for (size_t j = 0; j < other.inputs.size(); ++j)
        if ((i != main || j > 0) && overlap(other.inputs[j], x)) return -1;
    }
    if (source < 0) return -1;
    // Its columns are made group by group of the step: each of them by one product of the source.
    const PlanStep& made = plan_.steps[static_cast<size_t>(source)];
    const bool by_several = made.n % step.k != 0 || (step.groups > 1 && step.k % kLeastFragment != 0);
    if (made.has_x && (!can_be_staged(made) || by_several || source_of(static_cast<uint32_t>(source)) >= 0)) return -1;
    return source;
  }

  // The mixtures that read all of the output, each expert being as many neighbouring columns.
  std::vector<uint32_t> mixtures_of(uint32_t main) const {
    const PlanStep& step = plan_.steps[main];
    const Operand& out = step.output;
    std::vector<uint32_t> found;
    if (is_output(out)) return {};
    for (const uint32_t i : all_) {
      const PlanStep& other = plan_.steps[i];
      const bool reads = std::any_of(other.inputs.begin(), other.inputs.end(),
                                     [&](const Operand& input) { return overlap(input, out); });
      if (!reads) continue;
      const uint64_t width = other.output.width;
      if (other.op != Op::mixture || overlap(other.inputs[0], out) || width % kLeastFragment != 0 ||
          step.n % width != 0 || (!found.empty() && plan_.steps[found[0]].output.width != width))
        return {};
      for (size_t e = 1; e < other.inputs.size(); ++e) {
        const Operand& expert = other.inputs[e];
        const bool within = expert.buffer == out.buffer && expert.offset >= out.offset &&
                            expert.offset + width <= out.offset + out.width &&
                            (expert.offset - out.offset) % width == 0;
        const bool ascends = e == 1 || expert.offset > other.inputs[e - 1].offset;
        if (!within || !ascends) return {};
      }
      found.push_back(i);
    }
    return found;
  }

  // The earliest of those whose inputs are there, one after the other. Where parts of a step wait for one another by
  // way of a third, it is taken apart.
  std::vector<FusedStep> in_order(std::vector<FusedStep> steps) const {
    std::vector<FusedStep> ordered;
    while (!steps.empty()) {
      const auto ready = std::find_if(steps.begin(), steps.end(), [&](const FusedStep& step) {
        return std::none_of(steps.begin(), steps.end(),
                            [&](const FusedStep& other) { return &other != &step && feeds(other, step); });
      });
      if (ready != steps.end()) {
        ordered.push_back(std::move(*ready));
        steps.erase(ready);
        continue;
      }
      const auto apart =
          std::find_if(steps.begin(), steps.end(), [](const FusedStep& s) { return !s.mixtures.empty(); });
      std::vector<FusedStep> alone;
      if (apart == steps.end()) fail(FMTR_ERROR_INTERNAL, "steps of candidates wait for one another");
      for (const uint32_t m : std::exchange(apart->mixtures, {})) alone.emplace_back().main = m;
      steps.insert(steps.end(), alone.begin(), alone.end());
      std::sort(steps.begin(), steps.end(), [](const auto& a, const auto& b) { return a.main < b.main; });
    }
    return ordered;
  }

  static std::vector<uint32_t> parts(const FusedStep& step) {
    std::vector<uint32_t> all{step.main};
    if (step.source >= 0) all.push_back(static_cast<uint32_t>(step.source));
    all.insert(all.end(), step.mixtures.begin(), step.mixtures.end());
    return all;
  }

  bool feeds(const FusedStep& from, const FusedStep& to) const {
    for (const uint32_t a : parts(from))
      for (const uint32_t b : parts(to))
        for (const Operand& input : plan_.steps[b].inputs)
          if (overlap(plan_.steps[a].output, input)) return true;
    return false;
  }

  const Plan& plan_;
  const DevicePrecision precision_;
  std::vector<uint32_t> all_;
};

}  // namespace

uint32_t factor_row_bytes(uint64_t k, DevicePrecision precision) {
  const bool halves = precision == DevicePrecision::fp16 || precision == DevicePrecision::bf16;
  // 16 bytes more, so that rows do not all begin in the same bank of shared memory.
  return static_cast<uint32_t>((k + 15) / 16 * 16 * (halves ? 2 : 4) + 16);
}

std::vector<FusedStep> fuse_steps(const Plan& plan, const std::vector<bool>& needed, DevicePrecision precision) {
  return Fuser(plan, needed, precision).run();
}

}  // namespace fastmtr
