#include "core/plan_check.h"

#include <algorithm>

#include "core/intervals.h"
#include "core/json.h"
#include "core/status.h"

namespace fastmtr {

namespace {

std::string describe(const Plan& plan, const Operand& operand) {
  const Buffer& buffer = plan.buffers[operand.buffer];
  return say("columns ", operand.offset, " .. ", operand.offset + operand.width, " of ", domain_name(buffer.domain),
             " buffer ", operand.buffer, " (", quote(buffer.name), ")");
}

class StepChecker {
 public:
  explicit StepChecker(const Plan& plan) : plan_(plan), written_(plan.buffers.size()), id_rows_(plan.buffers.size()) {
    for (size_t i = 0; i < plan.buffers.size(); ++i)
      if (plan.buffers[i].ids) id_rows_[i].assign(plan.buffers[i].width, 0);
    for (const PlanInput& input : plan.inputs) {
      written_[input.buffer].add(0, input.width);
      if (input.ids) id_rows_[input.buffer].assign(input.width, input.rows);
    }
  }

  void check() {
    for (index_ = 0; index_ < plan_.steps.size(); ++index_) check(plan_.steps[index_]);
    for (uint32_t b = 0; b < plan_.buffers.size(); ++b) {
      const Buffer& buffer = plan_.buffers[b];
      const uint64_t missing = written_[b].first_missing(0, buffer.width);
      if (buffer.encoding != Encoding::f32 && missing < buffer.width)
        fail(FMTR_ERROR_BUNDLE, "plan.json: item buffer ", b, " (", quote(buffer.name), ") of dtype ",
             dtype_name(buffer), " is encoded as a whole, but nothing writes column ", missing);
    }
  }

 private:
  template <class... Parts>
  [[noreturn]] void refuse(const Parts&... parts) const {
    const PlanStep& step = plan_.steps[index_];
    fail(FMTR_ERROR_BUNDLE, "plan.json: step ", index_, " (", op_name(step.op), " ", quote(step.name), "): ", parts...);
  }

  const Buffer& buffer_of(const Operand& operand) const { return plan_.buffers[operand.buffer]; }

  void expect_inputs(const PlanStep& step, size_t least, size_t most) const {
    const size_t n = step.inputs.size();
    if (n < least || n > most)
      refuse("has ", n, " inputs, expected ",
             least == most      ? say(least)
             : most == SIZE_MAX ? say("at least ", least)
                                : say(least, " .. ", most));
  }

  void expect_width(const PlanStep& step, uint64_t expected, std::string_view why) const {
    if (step.output.width != expected)
      refuse("output has width ", step.output.width, ", expected ", expected, " = ", why);
  }

  // May a step of this domain read it here? The one row of a request stands for each of its candidates; a candidate
  // reaches a stored item row only where the operator gathers.
  void check_reach(const PlanStep& step, size_t i, bool gathers) const {
    const Buffer& buffer = buffer_of(step.inputs[i]);
    if (buffer.domain == step.domain) return;
    if (step.domain == Domain::candidate && buffer.domain == Domain::request) return;
    if (step.domain == Domain::candidate && buffer.domain == Domain::item && gathers) {
      if (buffer.stored) return;
      refuse("input ", i, " is ", describe(plan_, step.inputs[i]), ", which is not stored");
    }
    if (step.domain == Domain::candidate)
      refuse("input ", i, " is ", describe(plan_, step.inputs[i]),
             ": a candidate step reads items through gather or an addend of affine");
    refuse(a_step(step), " cannot read input ", i, ", ", describe(plan_, step.inputs[i]));
  }

  void check_input(const PlanStep& step, size_t i) const {
    const Operand& operand = step.inputs[i];
    const bool gathers = step.op == Op::gather || (step.op == Op::affine && !(step.has_x && i == 0));
    check_reach(step, i, gathers);
    const bool takes_ids = step.op == Op::embedding || step.op == Op::embedding_bag || step.op == Op::present ||
                           ((step.op == Op::mask || step.op == Op::gru) && i == 1);
    const bool takes_any = step.op == Op::gather || step.op == Op::copy;
    if (!takes_any && buffer_of(operand).ids != takes_ids)
      refuse("input ", i, " is ", describe(plan_, operand), " of dtype ",
             takes_ids ? "f32, expected i32" : "i32, expected f32");
    const uint64_t end = operand.offset + operand.width;
    const uint64_t missing = written_[operand.buffer].first_missing(operand.offset, end);
    if (missing < end)
      refuse("input ", i, " is ", describe(plan_, operand), "; column ", missing,
             " is read before anything has written it");
  }

  static std::string a_step(const PlanStep& step) {
    return say(step.domain == Domain::item ? "an " : "a ", domain_name(step.domain), " step");
  }

  // A column is written once. That also keeps an output apart from the step's own inputs, and lets the phases run one
  // after another although their steps may stand interleaved.
  void check_written(const PlanStep& step) {
    const Operand& output = step.output;
    const Buffer& buffer = buffer_of(output);
    if (buffer.domain != step.domain) refuse(a_step(step), " cannot write ", describe(plan_, output));
    const bool copies = step.op == Op::gather || step.op == Op::copy;
    const bool ids = copies && buffer_of(step.inputs[0]).ids;
    if (buffer.ids != ids)
      refuse("output is ", describe(plan_, output), " of dtype ",
             buffer.ids ? "i32, expected f32" : "f32, expected i32");
    if (buffer.input >= 0) refuse("output is ", describe(plan_, output), ", which holds an input");
    const uint64_t end = output.offset + output.width;
    if (written_[output.buffer].overlaps(output.offset, end))
      refuse("output is ", describe(plan_, output), ", which an earlier step has written");
    written_[output.buffer].add(output.offset, end);
    if (ids) {
      const auto& from = id_rows_[step.inputs[0].buffer];
      auto& to = id_rows_[output.buffer];
      for (uint64_t c = 0; c < output.width; ++c) to[output.offset + c] = from[step.inputs[0].offset + c];
    }
  }

  void check_ids(const PlanStep& step) const {
    const Operand& ids = step.inputs[0];
    const auto& rows = id_rows_[ids.buffer];
    const auto first = rows.begin() + static_cast<int64_t>(ids.offset);
    const uint32_t most = *std::max_element(first, first + static_cast<int64_t>(ids.width));
    if (most > step.k)
      refuse("ids of ", describe(plan_, ids), " may be as large as ", most - 1, ", but the table has ", step.k,
             " rows");
    if (step.padding >= 0 && static_cast<uint64_t>(step.padding) >= step.k)
      refuse("padding is ", step.padding, ", but the table has ", step.k, " rows");
  }

  void check_addends(const PlanStep& step) const {
    const uint64_t whole = step.output.width, one = whole / step.steps;
    bool any_whole = step.has_x || step.steps == 1;
    for (size_t i = step.has_x; i < step.inputs.size(); ++i) {
      const uint64_t width = step.inputs[i].width;
      if (width != whole && width != one)
        refuse("addend (input ", i, ") has width ", width, ", expected the output's ", whole,
               step.steps > 1 ? say(", or ", one, " that stand for each step") : "");
      any_whole = any_whole || width == whole;
    }
    if (!any_whole) refuse("has no x, and no addend of the output's width ", whole);
  }

  void expect_matrices(const PlanStep& step, size_t i, uint64_t rows, uint64_t columns, std::string_view what) const {
    if (product({step.outer, rows, columns}) != step.inputs[i].width)
      refuse("input ", i, " has width ", step.inputs[i].width, ", expected outer ", step.outer, " times ", rows,
             " times ", columns, " = outer times ", what);
  }

  void check(const PlanStep& step) {
    const auto width = [&](size_t i) { return step.inputs[i].width; };
    switch (step.op) {
      case Op::mixture:
        expect_inputs(step, 2, SIZE_MAX);
        break;
      case Op::affine:
        expect_inputs(step, 0, SIZE_MAX);
        break;
      case Op::gru:
        expect_inputs(step, 1, 2);
        break;
      case Op::binary:
      case Op::dot:
      case Op::matmul:
      case Op::mask:
        expect_inputs(step, 2, 2);
        break;
      default:
        expect_inputs(step, 1, 1);
    }
    for (size_t i = 0; i < step.inputs.size(); ++i) check_input(step, i);

    switch (step.op) {
      case Op::gather:
        if (step.domain != Domain::candidate || buffer_of(step.inputs[0]).domain != Domain::item)
          refuse("gather is a candidate step over a stored item buffer");
        expect_width(step, width(0), "its input's");
        break;
      case Op::copy:
      case Op::activation:
      case Op::scale_shift:
      case Op::layer_norm:
      case Op::l2_normalize:
      case Op::transpose:
      case Op::present:
        expect_width(step, width(0), "its input's");
        break;
      case Op::repeat:
        expect_width(step, width(0) * step.order.m, "input times times");
        break;
      case Op::mask:
        if (width(0) % width(1) != 0)
          refuse("x has width ", width(0), ", which is no multiple of the ", width(1), " ids");
        expect_width(step, width(0), "x's");
        break;
      case Op::matmul:
        expect_matrices(step, 0, step.m, step.k, "m times k");
        expect_matrices(step, 1, step.k, step.n, "k times n");
        if (product({step.outer, step.m, step.n}) != step.output.width)
          refuse("output has width ", step.output.width, ", expected outer ", step.outer, " times m ", step.m,
                 " times n ", step.n);
        break;
      case Op::gru:
        if (step.inputs.size() > 1 && width(1) != step.steps)
          refuse("there are ", width(1), " ids for ", step.steps, " steps");
        expect_width(step, step.hidden * (step.all_states ? step.steps : 1),
                     step.all_states ? "hidden times steps" : "hidden");
        break;
      case Op::conv1d:  // as it was read
        break;
      case Op::embedding:
        check_ids(step);
        expect_width(step, width(0) * step.n, "ids times table columns");
        break;
      case Op::embedding_bag:
        check_ids(step);
        expect_width(step, step.n, "table columns");
        break;
      case Op::affine:
        check_addends(step);
        break;
      case Op::softmax:
        if (width(0) % step.n != 0) refuse("input has width ", width(0), ", no multiple of size ", step.n);
        expect_width(step, width(0), "its input's");
        break;
      case Op::mixture:
        if (width(0) != step.inputs.size() - 1)
          refuse("the gate has width ", width(0), " for ", step.inputs.size() - 1, " experts");
        for (size_t i = 1; i < step.inputs.size(); ++i)
          if (width(i) != step.output.width)
            refuse("expert ", i - 1, " has width ", width(i), ", expected the output's ", step.output.width);
        break;
      case Op::binary:
        if (width(0) != width(1) && width(0) != 1 && width(1) != 1)
          refuse("inputs have widths ", width(0), " and ", width(1), ", expected equal ones, or 1 for one of them");
        expect_width(step, std::max(width(0), width(1)), "its wider input's");
        break;
      case Op::reduce:
        if (step.outer * step.axis * step.inner != width(0))
          refuse("input has width ", width(0), ", expected ", step.outer * step.axis * step.inner,
                 " = outer times axis times inner");
        expect_width(step, step.outer * step.inner, "outer times inner");
        break;
      case Op::dot:
        if (width(0) != width(1)) refuse("inputs have widths ", width(0), " and ", width(1), ", expected equal ones");
        expect_width(step, 1, "one number");
        break;
    }
    check_written(step);
  }

  const Plan& plan_;
  size_t index_ = 0;
  std::vector<Intervals> written_;
  std::vector<std::vector<uint32_t>> id_rows_;  // for each column of an i32 buffer: its ids are below this
};

}  // namespace

void check_steps(const Plan& plan) { StepChecker(plan).check(); }

void check_output(const Plan& plan, const PlanOutput& output, std::string_view where) {
  const auto refuse = [&](const std::string& problem) { fail(FMTR_ERROR_BUNDLE, "plan.json: ", where, ": ", problem); };
  const Operand& operand = output.operand;
  const Buffer& buffer = plan.buffers[operand.buffer];
  if (buffer.ids) refuse(say("is ", describe(plan, operand), " of dtype i32, expected f32"));
  const std::string is = say("is ", describe(plan, operand), "; ");
  switch (output.role) {
    case Role::task:
      if (operand.width != 1) refuse(say("a task has width 1, found ", operand.width));
      if (buffer.domain == Domain::item) refuse(is + "a task is a candidate or request value");
      break;
    case Role::request:
      if (buffer.domain != Domain::request) refuse(is + "an output of role request is a request value");
      break;
    case Role::item:
      if (buffer.domain != Domain::item || !buffer.stored) refuse(is + "an output of role item is a stored item value");
      if (buffer.encoding != Encoding::f32)
        refuse(say(is, "its dtype is ", dtype_name(buffer), ", but outputs are f32"));
      break;
  }
  Intervals written;
  if (buffer.input >= 0) written.add(0, buffer.width);
  for (const PlanStep& step : plan.steps)
    if (step.output.buffer == operand.buffer) written.add(step.output.offset, step.output.offset + step.output.width);
  const uint64_t missing = written.first_missing(operand.offset, operand.offset + operand.width);
  if (missing < operand.offset + operand.width) refuse(say(is, "nothing writes column ", missing));
}

}  // namespace fastmtr
