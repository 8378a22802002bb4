#include "core/device_lowering.h"

#include <algorithm>

#include "core/json.h"
#include "core/layout.h"
#include "core/status.h"

namespace fastmtr {

namespace {

constexpr uint32_t kTileRows = 64;  // of which a product by fragments takes 16 at a time
constexpr uint32_t kLeastRows = 16;
constexpr uint32_t kRowBytes = 3 * sizeof(uint32_t);  // its request, its item, whether that is known

// Rows begin where copies of 16 bytes can, and do not all begin in the same bank of shared memory.
size_t shared_stride(size_t width) { return width < 4 ? width : round_up(width, 4) + 4; }
size_t request_stride(size_t width) { return round_up(width, 4); }

}  // namespace

const char* precision_name(DevicePrecision precision) {
  switch (precision) {
    case DevicePrecision::fp32:
      return "fp32";
    case DevicePrecision::tf32:
      return "tf32";
    case DevicePrecision::fp16:
      return "fp16";
    case DevicePrecision::bf16:
      return "bf16";
  }
  return "?";
}

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
  program_.precision = precision;
  fused_ = fuse_steps(plan, needed_, precision);
  lay_out_requests();
  lay_out_candidates(device);

  std::vector<uint32_t> index(plan.steps.size());
  lists_.resize(2);
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    if (plan.steps[i].domain != Domain::request) continue;
    index[i] = static_cast<uint32_t>(steps_.size());
    steps_.push_back(step(plan.steps[i]));
    if (needed_[i]) lists_[0].push_back(index[i]);
  }
  for (const FusedStep& each : fused_) lists_[1].push_back(fused_step(each));
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
  program_.mixtures = mixtures_.data();
  program_.n_mixtures = static_cast<uint32_t>(mixtures_.size());
  program_.experts = experts_.data();
  program_.n_experts = static_cast<uint32_t>(experts_.size());
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

// When the buffers hold something of which the steps of a domain are positions.
class Lives {
 public:
  explicit Lives(const Plan& plan) : plan_(plan), lives_(plan.buffers.size()) {
    for (const PlanOutput& output : plan.outputs) lives_[output.operand.buffer].last = kForever;
  }
  void read(const PlanStep& step, size_t at) {
    for (const Operand& input : step.inputs) {
      Life& life = lives_[input.buffer];
      life.last = step.domain == plan_.buffers[input.buffer].domain ? std::max(life.last, at) : kForever;
    }
  }
  void write(const PlanStep& step, size_t at) {
    Life& life = lives_[step.output.buffer];
    life.first = std::min(life.first, at);
    life.last = std::max(life.last, at);
  }
  const std::vector<Life>& get() const { return lives_; }
  // The buffers that are written.
  std::vector<uint32_t> written(Domain domain) const {
    std::vector<uint32_t> found;
    for (uint32_t b = 0; b < lives_.size(); ++b)
      if (plan_.buffers[b].domain == domain && lives_[b].first != kForever) found.push_back(b);
    return found;
  }

 private:
  const Plan& plan_;
  std::vector<Life> lives_;
};

}  // namespace

void DeviceLowering::lay_out_requests() {
  Lives lives(plan_);
  size_t most = 0;
  for (size_t i = 0; i < plan_.steps.size(); ++i) {
    const PlanStep& step = plan_.steps[i];
    lives.read(step, i);
    if (step.domain != Domain::request) continue;
    lives.write(step, i);
    most = std::max<size_t>(most, step.workspace());
  }
  const std::vector<uint32_t> buffers = lives.written(Domain::request);
  for (const uint32_t b : buffers) stride_[b] = request_stride(plan_.buffers[b].width);
  const size_t floats = lay_out_buffers(buffers, lives.get(), stride_, &place_);
  const size_t work = request_stride(most);
  DeviceOperand& space = work_[static_cast<int>(Domain::request)];
  space.space = DeviceSpace::request_row;
  space.column = static_cast<uint32_t>(floats);
  space.width = static_cast<uint32_t>(work);
  program_.request_row_floats = static_cast<uint32_t>(floats + work);
  space.stride = program_.request_row_floats;
}

// As many rows a tile as fit; with the fewest, the widest buffers go to the scratch memory until the rest fits.
void DeviceLowering::lay_out_candidates(const DeviceProperties& device) {
  Lives lives(plan_);
  size_t most = 0, source_bytes = 0, factor_bytes = 0;
  bool in_groups = false;
  for (size_t i = 0; i < fused_.size(); ++i) {
    const FusedStep& fused = fused_[i];
    const PlanStep& main = plan_.steps[fused.main];
    lives.read(main, i);
    most = std::max<size_t>(most, main.workspace());
    if (fused.mixtures.empty()) lives.write(main, i);
    for (const uint32_t m : fused.mixtures) lives.read(plan_.steps[m], i), lives.write(plan_.steps[m], i);
    if (!fused.staged) continue;
    factor_bytes = std::max<size_t>(factor_bytes, factor_row_bytes(main.k, program_.precision));
    in_groups = in_groups || main.groups > 1;
    if (fused.source < 0) continue;
    const PlanStep& source = plan_.steps[static_cast<size_t>(fused.source)];
    lives.read(source, i);
    if (source.has_x) source_bytes = std::max<size_t>(source_bytes, factor_row_bytes(source.k, program_.precision));
  }
  std::vector<uint32_t> buffers = lives.written(Domain::candidate), spilled;
  for (const uint32_t b : buffers) stride_[b] = shared_stride(plan_.buffers[b].width);
  const size_t work = shared_stride(most);
  bool work_spilled = false;
  size_t floats = 0;
  uint32_t rows = 0, factors = 0;
  const auto fits = [&](uint32_t bytes, uint32_t n, uint32_t n_factors) {
    rows = n, factors = n_factors;
    const size_t a_row = floats * sizeof(float) + kRowBytes + source_bytes + factors * factor_bytes;
    return device.block_bytes + a_row * rows <= bytes;
  };
  // Two blocks of enough rows side by side, where one computes while the other waits for memory; else one.
  const auto find = [&](uint32_t bytes, uint32_t fewest) {
    for (uint32_t n = kTileRows; n >= fewest; n /= 2)
      if ((in_groups && fits(bytes, n, 2)) || fits(bytes, n, 1)) return true;
    return false;
  };
  for (;;) {
    floats = lay_out_buffers(buffers, lives.get(), stride_, &place_) + (work_spilled ? 0 : work);
    if (find(device.half_bytes, 2 * kLeastRows) || find(device.shared_bytes, kLeastRows)) break;
    if (buffers.empty() && work_spilled) break;
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
  const size_t scratch = lay_out_buffers(spilled, lives.get(), stride_, &place_);
  program_.tile_rows = rows;
  program_.source_row_bytes = static_cast<uint32_t>(source_bytes);
  program_.factor_row_bytes = static_cast<uint32_t>(factor_bytes);
  program_.factor_buffers = factors;
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

// Returns its position. Its source's comes before it.
uint32_t DeviceLowering::fused_step(const FusedStep& from) {
  const auto add = [&](uint32_t i) {
    const PlanStep& plan = plan_.steps[i];
    if (from.staged && program_.precision == DevicePrecision::fp16)
      check_half(plan.name, plan.w, plan.groups * plan.n * plan.k);
    steps_.push_back(step(plan));
    return static_cast<uint32_t>(steps_.size() - 1);
  };
  int32_t source = -1;
  if (from.source >= 0) {
    source = static_cast<int32_t>(add(static_cast<uint32_t>(from.source)));
    steps_.back().staged = steps_.back().has_x;
  }
  const uint32_t index = add(from.main);
  const PlanStep& main = plan_.steps[from.main];
  DeviceStep& made = steps_.back();
  made.staged = from.staged;
  made.source = source;
  made.pass = made.n;
  made.first_mixture = static_cast<uint32_t>(mixtures_.size());
  made.n_mixtures = static_cast<uint32_t>(from.mixtures.size());
  for (const uint32_t m : from.mixtures) {
    const PlanStep& mixture = plan_.steps[m];
    made.pass = static_cast<uint32_t>(mixture.output.width);
    const size_t first = experts_.size();
    experts_.resize(first + main.output.width / made.pass, -1);
    for (size_t e = 1; e < mixture.inputs.size(); ++e)
      experts_[first + (mixture.inputs[e].offset - main.output.offset) / made.pass] = static_cast<int32_t>(e - 1);
    mixtures_.push_back({operand(mixture.inputs[0]), operand(mixture.output), static_cast<uint32_t>(first)});
  }
  return index;
}

std::string DeviceLowering::describe() const {
  std::string spilled, steps;
  for (size_t b = 0; b < plan_.buffers.size(); ++b)
    if (in_scratch_[b]) spilled += say(spilled.empty() ? "" : ", ", json_quote(plan_.buffers[b].name));
  for (const FusedStep& fused : fused_) {
    const PlanStep& main = plan_.steps[fused.main];
    std::string mixtures;
    for (const uint32_t m : fused.mixtures)
      mixtures += say(mixtures.empty() ? "" : ", ", json_quote(plan_.steps[m].name));
    steps += say(steps.empty() ? "" : ", ", "{\"name\": ", json_quote(main.name), ", \"precision\": \"",
                 precision_name(fused.staged ? program_.precision : DevicePrecision::fp32), "\", \"x_made_by\": ",
                 fused.source < 0 ? "null" : json_quote(plan_.steps[static_cast<size_t>(fused.source)].name),
                 ", \"mixtures\": [", mixtures, "]}");
  }
  return say("{\"tile_rows\": ", program_.tile_rows, ", \"places_for_x\": ", program_.factor_buffers,
             ", \"shared_bytes_a_row\": ", program_.shared_floats * sizeof(float),
             ", \"scratch_bytes_a_row\": ", program_.scratch_floats * sizeof(float), ", \"in_scratch\": [", spilled,
             "], \"steps\": [", steps, "]}");
}

}  // namespace fastmtr
