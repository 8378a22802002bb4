#include <algorithm>

#include "cuda/model.h"
#include "cuda/request_plan.h"
#include "cuda/upload.h"

namespace fastmtr::device {

namespace {

constexpr uint32_t kQuad = 4;   // columns of a product that a thread computes: see affine.cuh
constexpr uint32_t kEdge = 16;  // of a fragment
enum Way { kAsItIs, kTransposed, kFragments };

uint32_t round_up(uint32_t n, uint32_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// [groups][n][k] to [groups][k][n rounded up].
void transpose(const float* w, uint32_t groups, uint32_t n, uint32_t k, float* to) {
  const size_t padded = round_up(n, kQuad);
  std::fill_n(to, groups * k * padded, 0.0f);
  for (size_t g = 0; g < groups; ++g, w += size_t{n} * k, to += k * padded)
    for (size_t j = 0; j < n; ++j)
      for (size_t i = 0; i < k; ++i) to[i * padded + j] = w[j * k + i];
}

// [groups][n][k], both rounded up to whole fragments.
template <class Number, class Convert>
void pad(const float* w, uint32_t groups, uint32_t n, uint32_t k, Number* to, const Convert& convert) {
  const size_t rows = round_up(n, kEdge), columns = round_up(k, kEdge);
  std::fill_n(to, groups * rows * columns, convert(0.0f));
  for (size_t g = 0; g < groups; ++g, to += rows * columns)
    for (size_t j = 0; j < n; ++j)
      for (size_t i = 0; i < k; ++i) to[j * columns + i] = convert(*w++);
}

class Packer {
 public:
  Packer(Upload& upload, DevicePrecision precision) : upload_(upload), precision_(precision) {}

  void pack(Step& step) {
    const size_t columns = size_t{step.groups} * step.n;
    if (step.staged && precision_ != DevicePrecision::fp32) {
      step.fragments = fragments(step);
      step.w = nullptr;
    }
    step.w = transposed(step.w, step.groups, step.n, step.k);
    step.w_state = transposed(step.w_state, 1, step.n, step.hidden);
    for (const float** each : {&step.b, &step.b_state, &step.slope, &step.scale, &step.shift})
      *each = floats(*each, columns);
    pack_table(step.table, step.k);
  }

 private:
  const float* floats(const float* from, size_t n) {
    return static_cast<const float*>(upload_.add(from, n * sizeof(float)));
  }
  const float* transposed(const float* w, uint32_t groups, uint32_t n, uint32_t k) {
    const size_t bytes = size_t{groups} * k * round_up(n, kQuad) * sizeof(float);
    return static_cast<const float*>(upload_.make(
        w, bytes, kTransposed, [&](unsigned char* to) { transpose(w, groups, n, k, reinterpret_cast<float*>(to)); }));
  }
  const void* fragments(const Step& step) {
    const bool halves = precision_ != DevicePrecision::tf32;
    const size_t bytes = size_t{step.groups} * round_up(step.n, kEdge) * round_up(step.k, kEdge) * (halves ? 2 : 4);
    return upload_.make(step.w, bytes, kFragments, [&](unsigned char* to) {
      const auto pad_as = [&](auto* numbers, const auto& convert) {
        pad(step.w, step.groups, step.n, step.k, numbers, convert);
      };
      if (precision_ == DevicePrecision::tf32)
        pad_as(reinterpret_cast<float*>(to), [](float x) { return x; });
      else if (precision_ == DevicePrecision::fp16)
        pad_as(reinterpret_cast<half_t*>(to), [](float x) { return to_half(x); });
      else
        pad_as(reinterpret_cast<bf16_t*>(to), [](float x) { return to_bf16(x); });
    });
  }
  void pack_table(EmbeddingTable& table, size_t rows) {
    if (table.data == nullptr) return;
    const size_t numbers = rows * table.dim;
    const size_t bytes = table.encoding == TableEncoding::f32   ? 4 * numbers
                         : table.encoding == TableEncoding::f16 ? 2 * numbers
                         : table.encoding == TableEncoding::u8  ? numbers
                                                                : numbers / 2;
    table.data = upload_.add(table.data, bytes);
    table.scales = floats(table.scales, rows);
    table.shifts = floats(table.shifts, rows);
  }

  Upload& upload_;
  const DevicePrecision precision_;
};

void resolve(const Upload& upload, Step& step) {
  for (const float** each : {&step.w, &step.w_state, &step.b, &step.b_state, &step.slope, &step.scale, &step.shift,
                             &step.table.scales, &step.table.shifts})
    upload.resolve(*each);
  const auto* fragments = static_cast<const unsigned char*>(step.fragments);
  upload.resolve(fragments);
  step.fragments = fragments;
  const auto* data = static_cast<const unsigned char*>(step.table.data);
  upload.resolve(data);
  step.table.data = data;
}

template <class T>
const T* add(Upload& upload, const T* from, size_t n) {
  return n == 0 ? nullptr : static_cast<const T*>(upload.add(from, n * sizeof(T)));
}

}  // namespace

LoadedModel::LoadedModel(const DeviceProgram& from) {
  const Properties device = properties(0);
  multiprocessors = device.multiprocessors;
  shared_bytes = device.shared_bytes;
  std::copy_n(from.ids_width, kDomains, ids_width);
  std::copy_n(from.dense_width, kDomains, dense_width);
  for (uint32_t t = 0; t < from.n_tables; ++t) table_row_bytes.push_back(from.tables[t].row_bytes);

  Upload upload;
  std::vector<Step> steps(from.n_steps);
  for (uint32_t i = 0; i < from.n_steps; ++i) static_cast<DeviceStep&>(steps[i]) = from.steps[i];
  Packer packer(upload, from.precision);
  for (Step& step : steps) packer.pack(step);
  // What is launched for the tasks' scores, then for each request output.
  std::vector<std::vector<PlannedLaunch>> planned{plan_requests(from, from.request)};
  for (uint32_t o = 0; o < from.n_outputs; ++o) planned.push_back(plan_requests(from, from.outputs[o]));
  std::vector<uint32_t> lists(from.candidate.steps, from.candidate.steps + from.candidate.n);
  size_t n_tasks = 0;
  for (const auto& launches : planned)
    for (const PlannedLaunch& launch : launches) {
      n_tasks += launch.tasks.size();
      for (const PlannedTask& task : launch.tasks) lists.insert(lists.end(), task.steps.begin(), task.steps.end());
    }
  std::vector<Task> tasks(n_tasks);

  program.tasks = add(upload, from.tasks, from.n_tasks);
  program.operands = add(upload, from.operands, from.n_operands);
  program.mixtures = add(upload, from.mixtures, from.n_mixtures);
  program.experts = add(upload, from.experts, from.n_experts);
  program.fused_tasks = add(upload, from.fused_tasks, from.n_fused);
  program.fusion_offsets = add(upload, from.fusion_offsets, from.n_fused);
  const uint32_t* on_device = add(upload, lists.data(), lists.size());
  program.steps = add(upload, steps.data(), steps.size());
  const Task* tasks_there = add(upload, tasks.data(), tasks.size());
  upload.allocate();
  for (Step& step : steps) resolve(upload, step);
  upload.resolve(program.tasks);
  upload.resolve(program.operands);
  upload.resolve(program.mixtures);
  upload.resolve(program.experts);
  upload.resolve(program.fused_tasks);
  upload.resolve(program.fusion_offsets);
  upload.resolve(program.steps);
  upload.resolve(on_device);
  upload.resolve(tasks_there);
  const uint32_t* at = on_device + from.candidate.n;
  size_t done = 0;
  for (const auto& launches : planned) {
    std::vector<Segment>& segments = &launches == &planned[0] ? request : outputs.emplace_back().segments;
    for (const PlannedLaunch& launch : launches) {
      segments.push_back({tasks_there + done, static_cast<uint32_t>(launch.tasks.size()), launch.room});
      for (const PlannedTask& task : launch.tasks) {
        const auto n = static_cast<uint32_t>(task.steps.size());
        tasks[done++] = {{at, n}, {task.part, task.parts}};
        at += n;
      }
    }
  }
  for (uint32_t o = 0; o < from.n_outputs; ++o) outputs[o].operand = from.output_operands[o];
  Stream stream;
  memory_ = upload.finish(stream);

  program.candidate = {on_device, from.candidate.n};
  program.n_tasks = from.n_tasks;
  program.n_fused = from.n_fused;
  program.product = from.product;
  program.request_row_floats = from.request_row_floats;
  program.shared_floats = from.shared_floats;
  program.scratch_floats = from.scratch_floats;
  program.tile_rows = from.tile_rows;
  program.source_row_bytes = from.source_row_bytes;
  program.factor_row_bytes = from.factor_row_bytes;
  program.factor_buffers = from.factor_buffers;
  program.precision = from.precision;
}

}  // namespace fastmtr::device
