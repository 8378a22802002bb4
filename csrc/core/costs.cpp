#include "core/costs.h"

#include "core/json.h"
#include "core/program.h"
#include "core/status.h"

namespace fastmtr {

namespace {

constexpr uint64_t kTranscendental = 12;  // FLOPs of an exponential and its kin

uint64_t activation_flops(Activation fn) {
  switch (fn) {
    case Activation::none:
      return 0;
    case Activation::relu:
    case Activation::sqrt:
    case Activation::abs:
      return 1;
    case Activation::leaky_relu:
    case Activation::prelu:
    case Activation::relu6:
      return 2;
    case Activation::softsign:
      return 3;
    case Activation::hard_sigmoid:
      return 4;
    case Activation::hard_swish:
      return 5;
    default:
      return kTranscendental;
  }
}

// Of the dense weights, which are read once a tile of rows.
uint64_t weight_bytes(const PlanStep& step, Precision precision) {
  const bool in_int8 = precision == Precision::int8;
  const uint64_t columns = step.groups * step.n;  // of a step, or of a run
  const uint64_t a_weight = in_int8 ? 1 : precision == Precision::fp16 ? 2 : sizeof(float);
  const uint64_t weights =
      (step.w == nullptr ? 0 : columns * step.k) + (step.w_state == nullptr ? 0 : columns * step.hidden);
  uint64_t floats = in_int8 ? columns : 0;  // a scale a column
  for (const float* each : {step.b, step.b_state, step.slope, step.scale, step.shift})
    floats += each == nullptr ? 0 : columns;
  return floats * sizeof(float) + weights * a_weight;
}

// Of columns of an item's row.
uint64_t item_bytes(const Plan& plan, const Operand& columns) {
  return columns.width * encoded_bytes(plan.buffers[columns.buffer].encoding);
}
// That come with them, however many they are.
uint64_t scale_bytes(const Plan& plan, const Operand& columns) {
  return plan.buffers[columns.buffer].encoding == Encoding::i8 ? sizeof(float) : 0;
}

// Of a row of a table of embeddings, with its scale and shift.
uint64_t row_bytes(const EmbeddingTable& table) {
  switch (table.encoding) {
    case TableEncoding::f32:
      return 4 * table.dim;
    case TableEncoding::f16:
      return 2 * table.dim;
    case TableEncoding::u8:
      return table.dim + 2 * sizeof(float);
    case TableEncoding::u4:
      return table.dim / 2 + 2 * sizeof(float);
  }
  return 0;
}

// Read from rows of tables: embeddings, and stored values of the catalogue's items.
uint64_t table_bytes(const PlanStep& step, const Plan& plan) {
  uint64_t bytes = step.table.data == nullptr ? 0 : step.inputs[0].width * row_bytes(step.table);
  if (step.domain == Domain::candidate)
    for (const Operand& input : step.inputs)
      if (plan.buffers[input.buffer].domain == Domain::item)
        bytes += item_bytes(plan, input) + scale_bytes(plan, input);
  return bytes;
}

}  // namespace

uint64_t step_flops(const PlanStep& step) {
  const uint64_t width = step.output.width;
  switch (step.op) {
    case Op::affine: {
      const uint64_t addends = step.inputs.size() - step.has_x;
      return (step.has_x ? 2 * width * step.k : 0) +
             width * (addends + (step.b != nullptr) + activation_flops(step.activation));
    }
    case Op::activation:
      return width * activation_flops(step.activation);
    case Op::softmax:
      return (kTranscendental + 3) * width;
    case Op::mixture:
      return 2 * width * (step.inputs.size() - 1);
    case Op::binary:
      return width;
    case Op::scale_shift:
      return 2 * width;
    case Op::reduce:
      return step.inputs[0].width;
    case Op::layer_norm:
      return 7 * width;
    case Op::l2_normalize:
      return 3 * width;
    case Op::dot:
      return 2 * step.inputs[0].width;
    case Op::embedding_bag:
      return step.inputs[0].width * width;
    case Op::matmul:
      return 2 * width * step.k;
    case Op::gru:
      return step.steps * step.hidden * (6 * (step.k + step.hidden) + 3 * (kTranscendental + 3));
    case Op::conv1d:
      return width * (2 * step.k + (step.b != nullptr));
    case Op::gather:
    case Op::copy:
    case Op::embedding:
    case Op::repeat:
    case Op::transpose:
    case Op::present:
    case Op::mask:
      return 0;  // they only move numbers
  }
  return 0;
}

std::string explain_json(const Program& program, uint64_t n_items) {
  const Plan& plan = program.plan();
  std::vector<Operand> tasks;
  for (const uint32_t t : plan.tasks) tasks.push_back(plan.outputs[t].operand);
  const std::vector<bool> for_tasks = needed_steps(plan, tasks);
  uint64_t flops[kDomains] = {}, stored = 0;
  std::string steps;
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    const PlanStep& step = plan.steps[i];
    const bool in_half = program.precision() == Precision::fp16 && step.w != nullptr;
    const Precision precision = program.runs_in_int8(i) ? Precision::int8 : in_half ? Precision::fp16 : Precision::fp32;
    const Buffer& to = plan.buffers[step.output.buffer];
    uint64_t kept = 0;
    if (to.domain == Domain::item && to.stored)
      kept = item_bytes(plan, step.output) + (step.output.offset == 0 ? scale_bytes(plan, step.output) : 0);
    stored += kept;
    if (for_tasks[i]) flops[static_cast<int>(step.domain)] += step_flops(step);
    steps += say(i == 0 ? "" : ", ", "{\"name\": ", json_quote(step.name), ", \"op\": \"", op_name(step.op),
                 "\", \"domain\": \"", domain_name(step.domain), "\", \"width\": ", step.output.width,
                 ", \"precision\": \"", precision_name(precision), "\", \"flops\": ", step_flops(step),
                 ", \"table_bytes\": ", table_bytes(step, plan), ", \"weight_bytes\": ", weight_bytes(step, precision),
                 ", \"stored_bytes\": ", kept, ", \"stored_dtype\": \"", kept == 0 ? "" : dtype_name(to),
                 "\", \"for_tasks\": ", for_tasks[i] ? "true" : "false", "}");
  }
  std::string totals;
  for (const Domain domain : {Domain::request, Domain::item, Domain::candidate})
    totals += say(totals.empty() ? "" : ", ", "\"", domain_name(domain), "\": ", flops[static_cast<int>(domain)]);
  const int item = static_cast<int>(Domain::item);
  return say("{\"isa\": ", json_quote(program.kernels().isa), ", \"precision\": \"",
             precision_name(program.precision()), "\", \"n_items\": ", n_items, ", \"flops\": {", totals,
             "}, \"stored_bytes_an_item\": ", stored,
             ", \"input_bytes_an_item\": ", (plan.ids_width[item] + plan.dense_width[item]) * sizeof(float),
             ", \"steps\": [", steps, "]}");
}

}  // namespace fastmtr
