#include <algorithm>

#include "cuda/request_plan.h"

namespace fastmtr::device {

namespace {

constexpr size_t kMostSteps = 1000;  // that are looked at for what can run at once
#if defined(__CUDACC__)
constexpr size_t kPartBytes = 32 * 1024;  // of weights, for a block
constexpr size_t kPartColumns = 512;      // of a step that goes column by column
constexpr size_t kNarrow = 2048;          // numbers that a block makes rather than wait for another launch
#else
constexpr size_t kPartBytes = 1024;  // so that small models have such parts, too
constexpr size_t kPartColumns = 24;
constexpr size_t kNarrow = 48;
#endif
constexpr size_t kMostRoom = 48 * 1024;  // bytes of shared memory that any device gives

struct Range {
  uint64_t begin, end;
  bool meets(const Range& other) const { return begin < other.end && other.begin < end; }
};

// What a step reads and writes of a request's row.
struct Access {
  std::vector<Range> reads, writes;
};

Access access_of(const DeviceProgram& program, const DeviceStep& step) {
  Access access;
  const auto add = [](std::vector<Range>& to, const DeviceOperand& operand) {
    if (operand.space == DeviceSpace::request_row && operand.width > 0)
      to.push_back({operand.column, uint64_t{operand.column} + operand.width});
  };
  for (uint32_t i = 0; i < step.n_inputs; ++i) add(access.reads, program.operands[step.first_input + i]);
  add(access.writes, step.out);
  if (step.work_steps > 0) add(access.writes, step.work);
  return access;
}

bool meet(const std::vector<Range>& a, const std::vector<Range>& b) {
  return std::any_of(a.begin(), a.end(), [&](const Range& x) {
    return std::any_of(b.begin(), b.end(), [&](const Range& y) { return x.meets(y); });
  });
}

size_t weight_bytes(const DeviceStep& step) {
  return step.op == Op::affine && step.w != nullptr ? size_t{4} * step.groups * step.n * step.k : 0;
}

bool goes_by_columns(const DeviceStep& step) {
  switch (step.op) {
    case Op::copy:
    case Op::embedding:
    case Op::activation:
    case Op::binary:
    case Op::scale_shift:
    case Op::repeat:
    case Op::transpose:
    case Op::present:
    case Op::mask:
      return true;
    default:
      return false;
  }
}

uint32_t parts_of(const DeviceStep& step) {
  size_t parts = 1;
  const size_t by_columns = (step.out.width + kPartColumns - 1) / kPartColumns;
  if (goes_by_columns(step)) parts = by_columns;
  if (step.op == Op::affine) parts = std::max((weight_bytes(step) + kPartBytes - 1) / kPartBytes, by_columns);
  return static_cast<uint32_t>(std::clamp<size_t>(parts, 1, step.out.width));
}

// Numbers that a request's row takes, weights included.
size_t work_of(const DeviceStep& step) {
  return step.out.width + weight_bytes(step) / 16 + (step.op == Op::gru || step.op == Op::matmul ? kNarrow : 0);
}

// Shared memory for the weights of a part; 0 where they would not fit.
uint32_t room_of(const DeviceStep& step, uint32_t parts) {
  if (weight_bytes(step) == 0) return 0;
  const size_t quads = size_t{step.groups} * ((step.n + 3) / 4);
  const size_t bytes = (quads + parts - 1) / parts * 16 * step.k;
  return bytes <= kMostRoom ? static_cast<uint32_t>(bytes) : 0;
}

}  // namespace

std::vector<PlannedLaunch> plan_requests(const DeviceProgram& program, const DeviceList& list) {
  // The level of a step: that of what it must wait for, and one.
  std::vector<std::vector<uint32_t>> levels;
  if (list.n > kMostSteps) {
    for (uint32_t i = 0; i < list.n; ++i) levels.push_back({list.steps[i]});
  } else {
    std::vector<Access> accesses;
    std::vector<size_t> level_of;
    for (uint32_t i = 0; i < list.n; ++i) {
      const Access access = access_of(program, program.steps[list.steps[i]]);
      size_t level = 0;
      for (size_t j = 0; j < accesses.size(); ++j)
        if (level_of[j] >= level && (meet(accesses[j].writes, access.reads) || meet(accesses[j].reads, access.writes) ||
                                     meet(accesses[j].writes, access.writes)))
          level = level_of[j] + 1;
      if (level == levels.size()) levels.emplace_back();
      levels[level].push_back(list.steps[i]);
      level_of.push_back(level);
      accesses.push_back(access);
    }
  }
  std::vector<PlannedLaunch> launches;
  bool narrow_before = false;
  for (const std::vector<uint32_t>& level : levels) {
    size_t work = 0;
    for (const uint32_t s : level) work += work_of(program.steps[s]);
    const bool narrow = work <= kNarrow;
    if (narrow && narrow_before) {
      std::vector<uint32_t>& steps = launches.back().tasks[0].steps;
      steps.insert(steps.end(), level.begin(), level.end());
      continue;
    }
    narrow_before = narrow;
    PlannedLaunch& launch = launches.emplace_back();
    launch.room = 0;
    if (narrow) {
      launch.tasks.push_back({level, 0, 1});
      continue;
    }
    for (const uint32_t s : level) {
      const DeviceStep& step = program.steps[s];
      const uint32_t parts = parts_of(step);
      launch.room = std::max(launch.room, room_of(step, parts));
      for (uint32_t part = 0; part < parts; ++part) launch.tasks.push_back({{s}, part, parts});
    }
  }
  return launches;
}

}  // namespace fastmtr::device
