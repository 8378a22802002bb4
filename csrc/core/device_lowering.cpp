#include "core/device_lowering.h"

#include <algorithm>

#include "core/json.h"
#include "core/layout.h"
#include "core/status.h"

namespace fastmtr {

namespace {

constexpr uint32_t kTileRows = 64;  // of which a product by fragments takes 16 at a time
constexpr uint32_t kLeastRows = 16;
constexpr uint32_t kReserved = 8192;  // bytes of shared memory for lists and staging

// Rows begin where copies of 16 bytes can, and do not all begin in the same bank of shared memory.
size_t shared_stride(size_t width) { return width < 4 ? width : round_up(width, 4) + 4; }
size_t request_stride(size_t width) { return round_up(width, 4); }

}  // namespace

DeviceLowering::DeviceLowering(const Plan& plan, const Program& program, DevicePrecision precision,
                               const DeviceProperties& device)
    : plan_(plan),
      tables_(program.tables()),
      place_(plan.buffers.size()),
      stride_(plan.buffers.size()),
      in_scratch_(plan.buffers.size()),
      table_of_(plan.buffers.size(), -1) {
  std::vector<Operand> roots;
  for (const uint32_t t : plan.tasks) roots.push_back(plan.outputs[t].operand);
  needed_ = needed_steps(plan, roots);
  for (size_t t = 0; t < tables_.size(); ++t) {
    table_of_[tables_[t].buffer] = static_cast<int64_t>(t);
    device_tables_.push_back({static_cast<uint32_t>(tables_[t].row_bytes)});
  }
  lay_out_requests();
  lay_out_candidates(device);

  std::vector<uint32_t> index(plan.steps.size());
  lists_.resize(2);
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    const PlanStep& from = plan.steps[i];
    if (from.domain == Domain::item || (from.domain == Domain::candidate && !needed_[i])) continue;
    index[i] = static_cast<uint32_t>(steps_.size());
    steps_.push_back(step(from));
    if (needed_[i]) lists_[from.domain == Domain::candidate].push_back(index[i]);
  }
  output_index_.resize(plan.outputs.size());
  for (size_t o = 0; o < plan.outputs.size(); ++o) {
    if (plan.outputs[o].role != Role::request) continue;
    output_index_[o] = static_cast<uint32_t>(output_operands_.size());
    output_operands_.push_back(operand(plan.outputs[o].operand));
    auto& list = lists_.emplace_back();
    for (const uint32_t i : program.steps_for(o)) list.push_back(index[i]);
  }
  for (const uint32_t t : plan.tasks) tasks_operands_.push_back(operand(plan.outputs[t].operand));

  const auto list = [&](size_t i) { return DeviceList{lists_[i].data(), static_cast<uint32_t>(lists_[i].size())}; };
  for (size_t i = 2; i < lists_.size(); ++i) outputs_.push_back(list(i));
  program_.precision = precision;
  program_.steps = steps_.data();
  program_.n_steps = static_cast<uint32_t>(steps_.size());
  program_.operands = operands_.data();
  program_.n_operands = static_cast<uint32_t>(operands_.size());
  program_.request = list(0);
  program_.candidate = list(1);
  program_.outputs = outputs_.data();
  program_.output_operands = output_operands_.data();
  program_.n_outputs = static_cast<uint32_t>(outputs_.size());
  for (int d = 0; d < kDomains; ++d) {
    program_.ids_width[d] = static_cast<uint32_t>(plan.ids_width[d]);
    program_.dense_width[d] = static_cast<uint32_t>(plan.dense_width[d]);
  }
  program_.tables = device_tables_.data();
  program_.n_tables = static_cast<uint32_t>(device_tables_.size());
  program_.n_tasks = static_cast<uint32_t>(tasks_operands_.size());
  program_.tasks = tasks_operands_.data();
  program_.n_fused = static_cast<uint32_t>(plan.fusion.tasks.size());
  program_.product = plan.fusion.product;
  program_.fused_tasks = plan.fusion.tasks.data();
  program_.fusion_weights = plan.fusion.weights.data();
  program_.fusion_offsets = plan.fusion.offsets.data();
}

namespace {

// When the buffers of a domain hold something that `used` steps read or write.
std::vector<Life> lives_of(const Plan& plan, Domain domain, const std::vector<bool>* used) {
  std::vector<Life> lives(plan.buffers.size());
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    const PlanStep& step = plan.steps[i];
    if (used != nullptr && !(*used)[i]) continue;
    if (step.domain == domain) {
      Life& life = lives[step.output.buffer];
      life.first = std::min(life.first, i);
      life.last = std::max(life.last, i);
    }
    for (const Operand& input : step.inputs)
      if (plan.buffers[input.buffer].domain == domain)
        lives[input.buffer].last = step.domain == domain ? std::max(lives[input.buffer].last, i) : kForever;
  }
  for (const PlanOutput& output : plan.outputs) lives[output.operand.buffer].last = kForever;
  return lives;
}

std::vector<uint32_t> made_in(const Plan& plan, Domain domain, const std::vector<Life>& lives) {
  std::vector<uint32_t> found;
  for (uint32_t b = 0; b < plan.buffers.size(); ++b)
    if (plan.buffers[b].domain == domain && plan.buffers[b].input < 0 && lives[b].first != kForever) found.push_back(b);
  return found;
}

size_t most_workspace(const Plan& plan, Domain domain, const std::vector<bool>* used) {
  size_t most = 0;
  for (size_t i = 0; i < plan.steps.size(); ++i)
    if (plan.steps[i].domain == domain && (used == nullptr || (*used)[i]))
      most = std::max<size_t>(most, plan.steps[i].workspace());
  return most;
}

}  // namespace

void DeviceLowering::lay_out_requests() {
  const std::vector<Life> lives = lives_of(plan_, Domain::request, nullptr);
  const std::vector<uint32_t> buffers = made_in(plan_, Domain::request, lives);
  for (const uint32_t b : buffers) stride_[b] = request_stride(plan_.buffers[b].width);
  const size_t floats = lay_out_buffers(buffers, lives, stride_, &place_);
  const size_t work = request_stride(most_workspace(plan_, Domain::request, nullptr));
  DeviceOperand& space = work_[static_cast<int>(Domain::request)];
  space.space = DeviceSpace::request_row;
  space.column = static_cast<uint32_t>(floats);
  space.width = static_cast<uint32_t>(work);
  program_.request_row_floats = static_cast<uint32_t>(floats + work);
  space.stride = program_.request_row_floats;
}

// As many rows a tile as fit; with the fewest, the widest buffers go to the scratch memory until the rest fits.
void DeviceLowering::lay_out_candidates(const DeviceProperties& device) {
  const std::vector<Life> lives = lives_of(plan_, Domain::candidate, &needed_);
  std::vector<uint32_t> buffers = made_in(plan_, Domain::candidate, lives), spilled;
  for (const uint32_t b : buffers) stride_[b] = shared_stride(plan_.buffers[b].width);
  const size_t work = shared_stride(most_workspace(plan_, Domain::candidate, &needed_));
  const size_t budget = (device.shared_bytes - std::min(device.shared_bytes, kReserved)) / sizeof(float);
  bool work_spilled = false;
  size_t floats = 0;
  uint32_t rows = kTileRows;
  for (;;) {
    floats = lay_out_buffers(buffers, lives, stride_, &place_) + (work_spilled ? 0 : work);
    rows = kTileRows;
    while (rows > kLeastRows && floats * rows > budget) rows /= 2;
    if (floats * rows <= budget) break;
    const auto widest = std::max_element(buffers.begin(), buffers.end(),
                                         [&](uint32_t a, uint32_t b) { return stride_[a] < stride_[b]; });
    if (!work_spilled && (widest == buffers.end() || work >= stride_[*widest])) {
      work_spilled = true;
    } else {
      in_scratch_[*widest] = true;
      spilled.push_back(*widest);
      buffers.erase(widest);
    }
  }
  const size_t scratch = lay_out_buffers(spilled, lives, stride_, &place_);
  program_.tile_rows = rows;
  program_.shared_floats = static_cast<uint32_t>(floats);
  program_.scratch_floats = static_cast<uint32_t>(scratch + (work_spilled ? work : 0));
  DeviceOperand& space = work_[static_cast<int>(Domain::candidate)];
  space.space = work_spilled ? DeviceSpace::scratch : DeviceSpace::shared;
  space.place = static_cast<uint32_t>(work_spilled ? scratch : floats - work);
  space.width = space.stride = static_cast<uint32_t>(work);
}

// As steps of requests or candidates find it.
DeviceOperand DeviceLowering::operand(const Operand& from) const {
  const Buffer& buffer = plan_.buffers[from.buffer];
  const int domain = static_cast<int>(buffer.domain);
  DeviceOperand operand{};
  operand.width = static_cast<uint32_t>(from.width);
  operand.column = static_cast<uint32_t>(from.offset);
  const int64_t table = table_of_[from.buffer];
  if (buffer.input >= 0) {
    static constexpr DeviceSpace ids[] = {DeviceSpace::request_ids, DeviceSpace::item_ids, DeviceSpace::candidate_ids};
    static constexpr DeviceSpace dense[] = {DeviceSpace::request_dense, DeviceSpace::item_dense,
                                            DeviceSpace::candidate_dense};
    operand.space = buffer.ids ? ids[domain] : dense[domain];
    operand.column += static_cast<uint32_t>(plan_.inputs[static_cast<size_t>(buffer.input)].offset);
    operand.stride = static_cast<uint32_t>((buffer.ids ? plan_.ids_width : plan_.dense_width)[domain]);
  } else if (table >= 0) {
    const Table& found = tables_[static_cast<size_t>(table)];
    operand.space = DeviceSpace::item_table;
    operand.encoding = found.encoding;
    operand.table = static_cast<uint32_t>(table);
    operand.stride = static_cast<uint32_t>(found.stride());
    operand.scale_at = static_cast<uint32_t>(found.scale_at);
  } else if (buffer.domain == Domain::request) {
    operand.space = DeviceSpace::request_row;
    operand.column += static_cast<uint32_t>(place_[from.buffer]);
    operand.stride = program_.request_row_floats;
  } else {
    operand.space = in_scratch_[from.buffer] ? DeviceSpace::scratch : DeviceSpace::shared;
    operand.place = static_cast<uint32_t>(place_[from.buffer]);
    operand.stride = static_cast<uint32_t>(stride_[from.buffer]);
  }
  return operand;
}

DeviceStep DeviceLowering::step(const PlanStep& from) {
  const auto number = [](uint64_t x) { return static_cast<uint32_t>(x); };
  DeviceStep step{};
  step.op = from.op;
  step.domain = from.domain;
  step.activation = from.activation;
  step.binary = from.binary;
  step.reduce = from.reduce;
  step.pooling = from.pooling;
  step.first_input = number(operands_.size());
  step.n_inputs = number(from.inputs.size());
  for (const Operand& input : from.inputs) operands_.push_back(operand(input));
  step.out = operand(from.output);
  step.work = work_[static_cast<int>(from.domain)];
  step.has_x = from.has_x;
  step.transpose_b = from.transpose_b;
  step.all_states = from.all_states;
  step.groups = number(from.groups);
  step.n = number(from.n);
  step.k = number(from.k);
  step.m = number(from.m);
  step.steps = number(from.steps);
  step.outer = number(from.outer);
  step.axis = number(from.axis);
  step.inner = number(from.inner);
  step.hidden = number(from.hidden);
  step.order = from.order;
  if (from.op == Op::affine && from.has_x) step.x_step = number(from.inputs[0].width / from.steps);
  if (from.op == Op::gru) step.x_step = step.k, step.work_steps = number(from.steps_at_once());
  if (from.op == Op::conv1d) step.x_step = from.windows_in_place() ? number(from.order.m_step) : step.k;
  if (from.op == Op::conv1d && !from.windows_in_place()) step.work_steps = step.steps;
  step.alpha = from.alpha;
  step.eps = from.eps;
  step.value = from.value;
  step.padding = from.padding;
  step.table = from.table;
  step.w = from.w;
  step.b = from.b;
  step.slope = from.slope;
  step.scale = from.scale;
  step.shift = from.shift;
  step.w_state = from.w_state;
  step.b_state = from.b_state;
  return step;
}

std::string DeviceLowering::describe() const {
  std::string spilled;
  for (size_t b = 0; b < plan_.buffers.size(); ++b)
    if (in_scratch_[b]) spilled += say(spilled.empty() ? "" : ", ", json_quote(plan_.buffers[b].name));
  return say(
      "{\"tile_rows\": ", program_.tile_rows, ", \"shared_bytes_a_row\": ", program_.shared_floats * sizeof(float),
      ", \"scratch_bytes_a_row\": ", program_.scratch_floats * sizeof(float), ", \"in_scratch\": [", spilled, "]}");
}

}  // namespace fastmtr
