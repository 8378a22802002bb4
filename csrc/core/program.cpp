#include "core/program.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

#include "core/json.h"
#include "core/layout.h"
#include "core/status.h"

namespace fastmtr {

namespace {

// Rows of workspace begin at a cache line, unless they are shorter than one.
size_t tile_stride(size_t width) { return width < kLine ? width : round_up(width, kLine); }

// Rows of a stored table are read one here, one there: a row must not touch one cache line more than it needs. What is
// left of it after whole lines lies within one if rows begin at multiples of the next power of two.
Table make_table(uint32_t index, const Buffer& buffer) {
  Table table{index, buffer.encoding, buffer.width, 0, 0, {}};
  size_t bytes = buffer.width * encoded_bytes(buffer.encoding);
  if (buffer.encoding == Encoding::i8) {
    table.scale_at = round_up(bytes, sizeof(float));
    bytes = table.scale_at + sizeof(float);
  }
  const size_t rest = bytes % kAlign;
  size_t step = rest == 0 ? kAlign : sizeof(float);
  while (step < rest) step *= 2;
  table.row_bytes = round_up(bytes, step);
  return table;
}

// Products that 8 bits make quicker: long enough that quantising x costs less than it saves. Gates, small towers and
// the last layers stay in fp32, and so does all that is not computed for each candidate.
bool pays_in_int8(const PlanStep& step, size_t most_k) {
  constexpr uint64_t kLeastK = 64, kLeastN = 32;
  return step.op == Op::affine && step.w != nullptr && step.steps == 1 && step.domain == Domain::candidate &&
         step.k >= kLeastK && step.k <= most_k && step.n >= kLeastN;
}

// The rows from so many columns on.
Rows from_column(Rows x, size_t columns) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(x.data) + columns * encoded_bytes(x.encoding);
  x.data = reinterpret_cast<const float*>(bytes);
  return x;
}

// What one row (of f32) holds, as rows so many columns apart.
Rows within_row(const Rows& x, size_t r, size_t stride) {
  return {x.data + (x.gather == nullptr ? r : x.gather[r * x.gather_step]) * x.stride, stride, nullptr};
}

bool overlap(const Operand& a, const Operand& b) {
  return a.buffer == b.buffer && a.offset < b.offset + b.width && b.offset < a.offset + a.width;
}

}  // namespace

const char* precision_name(Precision precision) {
  return precision == Precision::int8 ? "int8" : precision == Precision::fp16 ? "fp16" : "fp32";
}

void check_half(const std::string& name, const float* w, uint64_t n) {
  constexpr float kLargest = 65504;
  for (uint64_t i = 0; w != nullptr && i < n; ++i)
    if (!(std::abs(w[i]) <= kLargest))
      fail(FMTR_ERROR_BUNDLE, "step '", name, "' has a weight of ", w[i],
           ", which half precision cannot hold (at most ", kLargest, "): load the model with precision fp32");
}

Program::Program(const Plan& plan, const Kernels& kernels, Precision precision)
    : plan_(plan),
      kernels_(kernels),
      precision_(precision),
      products_(precision == Precision::fp16 ? kernels.fp16 : kernels.fp32),
      place_(plan.buffers.size()),
      stride_(plan.buffers.size()),
      table_of_(plan.buffers.size(), -1),
      looked_up_by_(plan.buffers.size(), -1) {
  std::vector<Operand> roots;
  for (const PlanOutput& output : plan.outputs)
    if (output.role != Role::request) roots.push_back(output.operand);
  for (uint32_t b = 0; b < plan.buffers.size(); ++b)  // rows are encoded as a whole
    if (plan.buffers[b].encoding != Encoding::f32) roots.push_back({b, 0, plan.buffers[b].width});
  const std::vector<bool> needed = needed_steps(plan, roots);
  find_read_in_place();
  lay_out(needed);
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    const PlanStep& from = plan.steps[i];
    Step step{&from, port(from.output, from.domain), static_cast<uint32_t>(ports_.size()),
              static_cast<uint32_t>(from.inputs.size())};
    for (const Operand& input : from.inputs) {
      ports_.push_back(port(input, from.domain));
      if (needed[i] && from.domain == Domain::candidate && plan.buffers[input.buffer].domain == Domain::item)
        reads_items_ = true;
      if (needed[i] && from.domain == Domain::candidate && from.op != Op::copy &&
          plan.buffers[input.buffer].domain == Domain::request && plan.buffers[input.buffer].ids)
        candidates_read_request_ids_ = true;
    }
    max_inputs_ = std::max(max_inputs_, from.inputs.size() * (from.steps > 1 ? 2 : 1));
    if (needed[i]) active_[static_cast<int>(from.domain)].push_back(static_cast<uint32_t>(i));
    steps_.push_back(step);
  }
  for (const PlanOutput& output : plan.outputs) {
    auto& steps = output_steps_.emplace_back();
    if (output.role != Role::request) continue;
    const std::vector<bool> used = needed_steps(plan, {output.operand});
    for (uint32_t i = 0; i < used.size(); ++i)
      if (used[i]) steps.push_back(i);
  }
  for (Table& table : tables_) table.made = port({table.buffer, 0, table.width}, Domain::item);
  pack();
  if (precision == Precision::int8) choose_int8(needed);
}

// The product of an embedding is a wide row of a table, looked up only to be added: an affine adds it from where it
// lies.
void Program::find_read_in_place() {
  for (uint32_t i = 0; i < plan_.steps.size(); ++i) {
    const PlanStep& step = plan_.steps[i];
    const uint32_t b = step.output.buffer;
    const bool as_it_is = step.table.encoding == TableEncoding::f32 || step.table.encoding == TableEncoding::f16;
    if (step.op == Op::embedding && as_it_is && step.padding < 0 && step.inputs[0].width == 1 &&
        step.output.width == plan_.buffers[b].width && !plan_.buffers[b].stored)
      looked_up_by_[b] = i;
  }
  const auto copied = [&](const Operand& operand) { looked_up_by_[operand.buffer] = -1; };
  for (const PlanOutput& output : plan_.outputs) copied(output.operand);
  for (const PlanStep& step : plan_.steps)
    for (size_t i = 0; i < step.inputs.size(); ++i)
      if (step.op != Op::affine || step.steps > 1 || i < step.has_x ||
          step.domain != plan_.buffers[step.inputs[i].buffer].domain)
        copied(step.inputs[i]);
}

void Program::lay_out(const std::vector<bool>& needed) {
  const size_t n = plan_.buffers.size();
  std::vector<Life> lives(n);
  std::vector<bool> table(n, false);
  for (size_t i = 0; i < plan_.steps.size(); ++i) {
    const PlanStep& step = plan_.steps[i];
    Life& life = lives[step.output.buffer];
    life.first = std::min(life.first, i);
    life.last = std::max(life.last, i);
    table[step.output.buffer] = table[step.output.buffer] || needed[i];
    for (const Operand& input : step.inputs) {
      const int64_t lookup = looked_up_by_[input.buffer];
      const uint32_t buffer = lookup < 0 ? input.buffer : plan_.steps[static_cast<size_t>(lookup)].inputs[0].buffer;
      // What candidates read of a request must outlive the request phase.
      Life& read = lives[buffer];
      read.last = step.domain == plan_.buffers[buffer].domain ? std::max(read.last, i) : kForever;
    }
  }
  for (const PlanOutput& output : plan_.outputs) lives[output.operand.buffer].last = kForever;

  std::vector<uint32_t> order;
  for (uint32_t b = 0; b < n; ++b) {
    const Buffer& buffer = plan_.buffers[b];
    if (buffer.input >= 0 || lives[b].first == kForever || looked_up_by_[b] >= 0) continue;
    if (buffer.domain == Domain::item && buffer.stored) {
      if (!table[b]) continue;
      table_of_[b] = static_cast<int64_t>(tables_.size());
      tables_.push_back(make_table(b, buffer));
      if (buffer.encoding == Encoding::f32) continue;
      lives[b].last = kForever;  // until it is encoded
    }
    stride_[b] = tile_stride(buffer.width);
    order.push_back(b);
  }

  std::vector<uint32_t> of_domain[kDomains];
  for (const uint32_t b : order) of_domain[static_cast<int>(plan_.buffers[b].domain)].push_back(b);
  for (int domain = 0; domain < kDomains; ++domain)
    floats_a_row_[domain] = lay_out_buffers(std::move(of_domain[domain]), lives, stride_, &place_);

  for (const PlanStep& step : plan_.steps) {
    Port& port = workspace_[static_cast<int>(step.domain)];
    port.stride = std::max<size_t>(port.stride, round_up(step.workspace(), kLine));
  }
  for (const Domain domain : {Domain::request, Domain::item, Domain::candidate}) {
    Port& port = workspace_[static_cast<int>(domain)];
    port.space = domain == Domain::request ? Space::request_tile : Space::tile;
    port.place = floats_a_row_[static_cast<int>(domain)];
    floats_a_row_[static_cast<int>(domain)] += port.stride;
  }
}

void Program::pack() {
  std::map<std::tuple<const float*, uint64_t, uint64_t, uint64_t>, size_t> places;
  size_t total = 0;
  const auto reserve = [&](const float* w, uint64_t groups, uint64_t n, uint64_t k) {
    if (w != nullptr && places.emplace(std::tuple(w, groups, n, k), total).second)
      total += round_up(products_.packed_bytes(groups, n, k), kAlign);
  };
  for (const PlanStep& step : plan_.steps) {
    if (precision_ == Precision::fp16) {
      check_half(step.name, step.w, step.groups * step.n * step.k);
      check_half(step.name, step.w_state, step.n * step.hidden);
    }
    reserve(step.w, step.groups, step.n, step.k);
    reserve(step.w_state, 1, step.n, step.hidden);
  }
  packed_ = Aligned<uint8_t>(total);
  for (const auto& [key, place] : places) {
    const auto& [w, groups, n, k] = key;
    products_.pack(w, groups, n, k, packed_.data() + place);
  }
  for (Step& step : steps_) {
    const PlanStep& plan = *step.plan;
    if (plan.w != nullptr) step.packed = packed_.data() + places.at(std::tuple(plan.w, plan.groups, plan.n, plan.k));
    if (plan.w_state != nullptr)
      step.packed_state = packed_.data() + places.at(std::tuple(plan.w_state, uint64_t{1}, plan.n, plan.hidden));
  }
}

void Program::choose_int8(const std::vector<bool>& needed) {
  const Int8Kernels& k = kernels_.int8;
  std::vector<size_t> chosen;
  std::vector<bool> made_on_the_way(steps_.size(), false);
  size_t total = 0;
  for (size_t i = 0; i < steps_.size(); ++i) {
    const PlanStep& plan = plan_.steps[i];
    if (!needed[i] || !pays_in_int8(plan, k.most_k)) continue;
    chosen.push_back(i);
    total += round_up(k.packed_bytes(plan.groups, plan.n, plan.k), kAlign);
  }
  packed_int8_ = Aligned<uint8_t>(total);
  size_t at = 0;
  for (const size_t i : chosen) {
    const PlanStep& plan = plan_.steps[i];
    Step& step = steps_[i];
    k.pack(plan.w, plan.groups, plan.n, plan.k, packed_int8_.data() + at);
    step.packed_int8 = packed_int8_.data() + at;
    at += round_up(k.packed_bytes(plan.groups, plan.n, plan.k), kAlign);
    step.source = source_of(i);
    if (step.source < 0) continue;
    const Step& source = steps_[static_cast<size_t>(step.source)];
    made_on_the_way[static_cast<size_t>(step.source)] = true;
    max_inputs_ = std::max<size_t>(max_inputs_, step.n_inputs + source.n_inputs);
    untouched_floats_ = std::max(untouched_floats_, source.out.stride);
  }
  for (const uint32_t i : active_[static_cast<int>(Domain::candidate)])
    if (!made_on_the_way[i]) active_int8_.push_back(i);
}

// The affine step without a product that makes x for this step and for nobody else, from what outlives both.
int64_t Program::source_of(size_t step) const {
  const Operand& x = plan_.steps[step].inputs[0];
  int64_t source = -1;
  for (size_t i = 0; i < plan_.steps.size(); ++i) {
    const PlanStep& other = plan_.steps[i];
    if (overlap(other.output, x)) {
      if (other.op != Op::affine || other.has_x || other.steps > 1 || other.output.offset != x.offset ||
          other.output.width != x.width)
        return -1;
      source = static_cast<int64_t>(i);
    }
    for (size_t j = 0; j < other.inputs.size(); ++j)
      if ((i != step || j > 0) && overlap(other.inputs[j], x)) return -1;
  }
  for (const PlanOutput& output : plan_.outputs)
    if (overlap(output.operand, x)) return -1;
  if (source < 0) return -1;
  if (plan_.steps[step].k > kernels_.int8.most_source_k) return -1;
  const Step& found = steps_[static_cast<size_t>(source)];
  for (size_t j = 0; j < found.n_inputs; ++j) {
    const Space space = ports_[found.first_input + j].space;
    // Its memory, or that of its ids, may be another's by then.
    if (space == Space::tile || space == Space::embedding_table) return -1;
  }
  return source;
}

std::vector<std::string> Program::int8_steps() const {
  std::vector<std::string> names;
  for (const Step& step : steps_)
    if (step.packed_int8 != nullptr) names.push_back(step.plan->name);
  return names;
}

Port Program::port(const Operand& operand, Domain phase) const {
  const Buffer& buffer = plan_.buffers[operand.buffer];
  Port port{};
  port.width = operand.width;
  port.column = operand.offset;
  if (buffer.input >= 0) {
    const int domain = static_cast<int>(buffer.domain);
    static constexpr Space ids[] = {Space::request_ids, Space::item_ids, Space::candidate_ids};
    static constexpr Space dense[] = {Space::request_dense, Space::item_dense, Space::candidate_dense};
    port.space = buffer.ids ? ids[domain] : dense[domain];
    port.column += plan_.inputs[static_cast<size_t>(buffer.input)].offset;
    port.stride = buffer.ids ? plan_.ids_width[domain] : plan_.dense_width[domain];
    return port;
  }
  if (looked_up_by_[operand.buffer] >= 0) {
    port.space = Space::embedding_table;
    port.table = static_cast<uint32_t>(looked_up_by_[operand.buffer]);
    return port;
  }
  const int64_t table = table_of_[operand.buffer];
  if (table >= 0 && (phase == Domain::candidate || buffer.encoding == Encoding::f32)) {
    port.space = Space::item_table;
    port.table = static_cast<uint32_t>(table);
    port.stride = tables_[port.table].stride();
  } else {
    port.stride = stride_[operand.buffer];
    port.space = buffer.domain == Domain::request ? Space::request_tile : Space::tile;
    port.place = place_[operand.buffer];
  }
  return port;
}

Rows Program::rows(const Port& port, Domain phase, const Context& context) const {
  if (port.space == Space::embedding_table) {
    const PlanStep& lookup = plan_.steps[port.table];
    const IdRows ids = id_rows(this->port(lookup.inputs[0], phase), phase, context);
    const bool halves = lookup.table.encoding == TableEncoding::f16;
    const Rows table{
        static_cast<const float*>(lookup.table.data), lookup.table.dim, reinterpret_cast<const uint32_t*>(ids.data),
        halves ? Encoding::f16 : Encoding::f32,       nullptr,          ids.stride};
    return from_column(table, port.column);
  }
  const auto as_float = [](const int32_t* ids) { return reinterpret_cast<const float*>(ids); };
  const float* base = nullptr;
  size_t first = 0;
  bool of_request = false, of_item = false;
  switch (port.space) {
    case Space::request_ids:
      base = as_float(context.request_ids), first = context.request_row, of_request = true;
      break;
    case Space::request_dense:
      base = context.request_dense, first = context.request_row, of_request = true;
      break;
    case Space::request_tile:
      base = context.request_tile + port.place * round_up(context.request_tile_rows, kLine);
      first = context.request_tile_row, of_request = true;
      break;
    case Space::item_ids:
      base = as_float(context.item_ids), of_item = true;
      break;
    case Space::item_dense:
      base = context.item_dense, of_item = true;
      break;
    case Space::item_table:
      of_item = true;
      break;
    case Space::embedding_table:  // has returned
    case Space::candidate_ids:
      base = as_float(context.candidate_ids), first = context.candidate_row;
      break;
    case Space::candidate_dense:
      base = context.candidate_dense, first = context.candidate_row;
      break;
    case Space::tile:
      base = context.tile + port.place * round_up(context.tile_rows, kLine);
      break;
  }
  const uint32_t* gather = nullptr;
  if (of_item) {
    if (phase == Domain::candidate) gather = context.gather;
    if (gather == nullptr) first = context.item_row;
  }
  if (port.space == Space::item_table) {
    const Table& table = tables_[port.table];
    const unsigned char* row = context.tables[port.table] + first * table.row_bytes;
    Rows found{reinterpret_cast<const float*>(row + port.column * encoded_bytes(table.encoding)), port.stride, gather,
               table.encoding, reinterpret_cast<const float*>(row + table.scale_at)};
    found.rows_after = gather == nullptr ? 0 : context.gather_after;
    return found;
  }
  size_t stride = port.stride;
  if (of_request && phase == Domain::candidate) {
    gather = context.request_of;
    if (gather == nullptr) stride = 0;
  }
  return {base + first * port.stride + port.column, stride, gather};
}

IdRows Program::id_rows(const Port& port, Domain phase, const Context& context) const {
  const Rows found = rows(port, phase, context);
  return {reinterpret_cast<const int32_t*>(found.data), found.stride};
}

void Program::run(Domain domain, size_t rows, const Context& context) const {
  const bool in_int8 = precision_ == Precision::int8 && domain == Domain::candidate && !context.exact;
  run(in_int8 ? active_int8_ : active_[static_cast<int>(domain)], domain, rows, context);
  if (domain == Domain::item) encode(rows, context);
}

void Program::encode(size_t n, const Context& context) const {
  for (const Table& table : tables_) {
    if (table.encoding == Encoding::f32) continue;
    const Rows from = rows(table.made, Domain::item, context);
    unsigned char* to = context.tables[&table - tables_.data()] + context.item_row * table.row_bytes;
    const size_t done = kernels_.encode(
        n, table.width, from, {to, table.stride(), table.encoding, reinterpret_cast<float*>(to + table.scale_at)});
    if (done == n) continue;
    const bool halves = table.encoding == Encoding::f16;
    const float* row = from.data + done * from.stride;
    const float worst = *std::max_element(row, row + table.width, [](float a, float b) {
      return std::isfinite(a) && (!std::isfinite(b) || std::abs(a) < std::abs(b));
    });
    fail(FMTR_ERROR_SCHEMA, "item ", context.item_keys[context.item_row + done], ": ",
         quote(plan_.buffers[table.buffer].name), " has the value ", worst, ", but ",
         halves ? "fp16 holds numbers up to 65504" : "int8 holds finite numbers",
         "; compile the bundle with another item_precision, such as ", halves ? "'int8' or 'fp32'" : "'fp32'");
  }
}

void Program::run(const std::vector<uint32_t>& only, Domain domain, size_t rows, const Context& context) const {
  for (const uint32_t i : only) {
    if (steps_[i].out.space == Space::embedding_table) continue;  // read in place
    if (context.profile == nullptr) {
      run_step(steps_[i], domain, rows, context);
      continue;
    }
    Profile::Times& times = context.profile->steps[i];
    const Stopwatch watch(&times.nanoseconds);
    run_step(steps_[i], domain, rows, context);
    ++times.calls;
    times.rows += rows;
  }
}

AffineArgs Program::affine_args(const Step& step, Domain domain, size_t n, const Context& context,
                                Rows* scratch) const {
  const PlanStep& plan = *step.plan;
  const auto in = [&](size_t i) { return rows(ports_[step.first_input + i], domain, context); };
  AffineArgs args{};
  args.rows = n;
  args.groups = plan.groups;
  args.n = plan.n;
  args.k = plan.k;
  if (plan.has_x) args.x = in(0);
  args.packed = step.packed;
  args.bias = plan.b;
  args.n_addends = step.n_inputs - plan.has_x;
  for (size_t i = 0; i < args.n_addends; ++i) scratch[i] = in(i + plan.has_x);
  args.addends = scratch;
  args.activation = plan.activation;
  args.alpha = plan.alpha;
  args.slope = plan.slope;
  args.out = {const_cast<float*>(rows(step.out, domain, context).data), step.out.stride};
  return args;
}

// The product of each of a row's steps, whose x are x_step columns apart. The rows of a step go through the weights
// together, or the steps of a row where there are more of them: an element's bits are the same.
void Program::run_steps(const AffineArgs& all, size_t steps, size_t x_step, const Port* addends, Rows* room) const {
  const size_t columns = all.groups * all.n;
  const auto of_each_step = [&](size_t i) { return addends[i].width > columns; };
  AffineArgs some = all;
  some.addends = room;
  bool plain = true;
  for (size_t i = 0; i < all.n_addends; ++i) plain = plain && all.addends[i].encoding == Encoding::f32;
  if (all.rows >= steps || !plain) {
    for (size_t t = 0; t < steps; ++t) {
      some.x = from_column(all.x, t * x_step);
      for (size_t i = 0; i < all.n_addends; ++i)
        room[i] = of_each_step(i) ? from_column(all.addends[i], t * columns) : all.addends[i];
      some.out.data = all.out.data + t * columns;
      products_.affine(&some);
    }
    return;
  }
  some.rows = steps;
  for (size_t r = 0; r < all.rows; ++r) {
    if (all.x.data != nullptr) some.x = within_row(all.x, r, x_step);
    for (size_t i = 0; i < all.n_addends; ++i) room[i] = within_row(all.addends[i], r, of_each_step(i) ? columns : 0);
    some.out = {all.out.data + r * all.out.stride, columns};
    products_.affine(&some);
  }
}

void Program::run_gru(const Step& step, Domain domain, size_t n, const Context& context) const {
  const PlanStep& plan = *step.plan;
  const Rows x = rows(ports_[step.first_input], domain, context);
  const Rows place = rows(step.out, domain, context);
  const Port& work = workspace_[static_cast<int>(domain)];
  auto* of_x = const_cast<float*>(rows(work, domain, context).data);
  float* of_state = of_x + plan.steps_at_once() * plan.n;
  float* state = of_state + plan.n;
  for (size_t r = 0; r < n; ++r) std::fill_n(state + r * work.stride, plan.hidden, 0.0f);

  AffineArgs from_state{};
  from_state.rows = n;
  from_state.groups = 1;
  from_state.n = plan.n;
  from_state.k = plan.hidden;
  from_state.x = {state, work.stride, nullptr};
  from_state.packed = step.packed_state;
  from_state.bias = plan.b_state;
  from_state.out = {of_state, work.stride};
  AffineArgs from_x = from_state;
  from_x.k = plan.k;
  from_x.packed = step.packed;
  from_x.bias = plan.b;
  from_x.out.data = of_x;

  IdRows ids{};
  if (step.n_inputs > 1) ids = id_rows(ports_[step.first_input + 1], domain, context);
  Out out{const_cast<float*>(place.data), step.out.stride};
  for (size_t t = 0; t < plan.steps; ++t) {
    const size_t at = t % plan.steps_at_once();
    if (at == 0) {
      from_x.x = from_column(x, t * plan.k);
      run_steps(from_x, std::min(plan.steps_at_once(), plan.steps - t), plan.k, nullptr, nullptr);
    }
    products_.affine(&from_state);
    const IdRows here{ids.data == nullptr ? nullptr : ids.data + t, ids.stride};
    const Out after{plan.all_states ? out.data + t * plan.hidden : nullptr, out.stride};
    kernels_.gru_step(n, plan.hidden, {of_x + at * plan.n, work.stride, nullptr}, {of_state, work.stride, nullptr},
                      here, plan.padding, {state, work.stride}, after);
  }
  if (!plan.all_states) kernels_.copy(n, plan.hidden, from_state.x, out);
}

void Program::run_conv1d(const Step& step, Domain domain, size_t n, const Context& context) const {
  const PlanStep& plan = *step.plan;
  AffineArgs args{};
  args.rows = n;
  args.groups = 1;
  args.n = plan.n;
  args.k = plan.k;
  args.x = rows(ports_[step.first_input], domain, context);
  args.packed = step.packed;
  args.bias = plan.b;
  args.out = {const_cast<float*>(rows(step.out, domain, context).data), step.out.stride};
  if (plan.windows_in_place()) return run_steps(args, plan.steps, plan.order.m_step, nullptr, nullptr);
  const Port& work = workspace_[static_cast<int>(domain)];
  const Rows windows = rows(work, domain, context);
  kernels_.arrange(n, &plan.order, args.x, {const_cast<float*>(windows.data), work.stride});
  args.x = {windows.data, work.stride, nullptr};
  run_steps(args, plan.steps, plan.k, nullptr, nullptr);
}

void Program::run_step(const Step& step, Domain domain, size_t n, const Context& context) const {
  const PlanStep& plan = *step.plan;
  const Kernels& k = kernels_;
  const auto in = [&](size_t i) { return rows(ports_[step.first_input + i], domain, context); };
  const auto ids = [&](size_t i) { return id_rows(ports_[step.first_input + i], domain, context); };
  const auto in_width = [&](size_t i) { return ports_[step.first_input + i].width; };
  const auto all_from = [&](size_t first) {
    for (size_t i = first; i < step.n_inputs; ++i) context.scratch[i - first] = in(i);
    return context.scratch;
  };
  const Rows place = rows(step.out, domain, context);
  const Out out{const_cast<float*>(place.data), step.out.stride};
  const size_t width = step.out.width;

  switch (plan.op) {
    case Op::gather:
    case Op::copy:
      k.copy(n, width, in(0), out);
      break;
    case Op::embedding:
      k.embedding(n, in_width(0), ids(0), plan.padding, &plan.table, out);
      break;
    case Op::embedding_bag:
      k.embedding_bag(n, in_width(0), ids(0), plan.padding, plan.pooling, &plan.table, out);
      break;
    case Op::affine: {
      const AffineArgs args = affine_args(step, domain, n, context, context.scratch);
      if (plan.steps > 1) {
        const size_t x_step = plan.has_x ? in_width(0) / plan.steps : 0;
        run_steps(args, plan.steps, x_step, &ports_[step.first_input + plan.has_x], context.scratch + args.n_addends);
      } else if (!plan.has_x) {
        k.add(&args);
      } else if (step.packed_int8 == nullptr || context.exact) {
        products_.affine(&args);
      } else if (step.source < 0) {
        k.int8.affine(&args, step.packed_int8, nullptr);
      } else {
        const Step& source = steps_[static_cast<size_t>(step.source)];
        const AffineArgs made = affine_args(source, domain, n, context, context.scratch + step.n_inputs);
        k.int8.affine(&args, step.packed_int8, &made);
      }
      break;
    }
    case Op::activation:
      k.activation(n, width, plan.activation, plan.alpha, plan.slope, in(0), out);
      break;
    case Op::softmax:
      k.softmax(n, width, plan.n, in(0), out);
      break;
    case Op::mixture:
      k.mixture(n, width, step.n_inputs - 1, in(0), all_from(1), out);
      break;
    case Op::binary:
      k.binary(n, width, plan.binary, in(0), in_width(0) != width, in(1), in_width(1) != width, out);
      break;
    case Op::scale_shift:
      k.scale_shift(n, width, in(0), plan.scale, plan.shift, out);
      break;
    case Op::reduce:
      k.reduce(n, plan.outer, plan.axis, plan.inner, plan.reduce, in(0), out);
      break;
    case Op::layer_norm:
      k.layer_norm(n, width, plan.n, plan.eps, plan.scale, plan.shift, in(0), out);
      break;
    case Op::l2_normalize:
      k.l2_normalize(n, width, plan.n, plan.eps, in(0), out);
      break;
    case Op::dot:
      k.dot(n, in_width(0), in(0), in(1), out);
      break;
    case Op::repeat:
    case Op::transpose:
      k.arrange(n, &plan.order, in(0), out);
      break;
    case Op::matmul: {
      const MatmulArgs args{n, plan.outer, plan.m, plan.k, plan.n, plan.transpose_b, in(0), in(1), out};
      k.matmul(&args);
      break;
    }
    case Op::present:
      k.present(n, width, ids(0), plan.padding, out);
      break;
    case Op::mask:
      k.mask(n, in_width(1), width / in_width(1), ids(1), plan.padding, plan.value, in(0), out);
      break;
    case Op::gru:
      run_gru(step, domain, n, context);
      break;
    case Op::conv1d:
      run_conv1d(step, domain, n, context);
      break;
  }
}

}  // namespace fastmtr
