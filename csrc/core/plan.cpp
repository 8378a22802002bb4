#include "core/plan.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <unordered_set>

#include "core/intervals.h"
#include "core/json.h"
#include "core/plan_check.h"
#include "core/plan_reader.h"
#include "core/status.h"

namespace fastmtr {

namespace {

constexpr int64_t kFirstVersion = 1, kPlanVersion = 2;  // of plan.json; each reads what those before it wrote
constexpr int64_t kMaxWidth = 1 << 20;                  // columns of a buffer or a packed matrix
constexpr size_t kMaxBuffers = 1 << 14;
constexpr uint64_t kMaxColumns = 1 << 24;  // of all buffers together

constexpr Name<Domain> kDomainNames[] = {
    {"request", Domain::request}, {"item", Domain::item}, {"candidate", Domain::candidate}};
constexpr Name<Role> kRoleNames[] = {{"task", Role::task}, {"request", Role::request}, {"item", Role::item}};
constexpr Name<Op> kOpNames[] = {{"gather", Op::gather},
                                 {"copy", Op::copy},
                                 {"embedding", Op::embedding},
                                 {"embedding_bag", Op::embedding_bag},
                                 {"affine", Op::affine},
                                 {"activation", Op::activation},
                                 {"softmax", Op::softmax},
                                 {"mixture", Op::mixture},
                                 {"binary", Op::binary},
                                 {"scale_shift", Op::scale_shift},
                                 {"reduce", Op::reduce},
                                 {"layer_norm", Op::layer_norm},
                                 {"l2_normalize", Op::l2_normalize},
                                 {"dot", Op::dot},
                                 {"repeat", Op::repeat},
                                 {"transpose", Op::transpose},
                                 {"matmul", Op::matmul},
                                 {"present", Op::present},
                                 {"mask", Op::mask},
                                 {"gru", Op::gru},
                                 {"conv1d", Op::conv1d}};
constexpr Name<Activation> kActivationNames[] = {{"none", Activation::none},
                                                 {"relu", Activation::relu},
                                                 {"leaky_relu", Activation::leaky_relu},
                                                 {"prelu", Activation::prelu},
                                                 {"elu", Activation::elu},
                                                 {"sigmoid", Activation::sigmoid},
                                                 {"tanh", Activation::tanh},
                                                 {"silu", Activation::silu},
                                                 {"gelu", Activation::gelu},
                                                 {"gelu_tanh", Activation::gelu_tanh},
                                                 {"softplus", Activation::softplus},
                                                 {"exp", Activation::exp},
                                                 {"selu", Activation::selu},
                                                 {"mish", Activation::mish},
                                                 {"relu6", Activation::relu6},
                                                 {"hard_sigmoid", Activation::hard_sigmoid},
                                                 {"hard_swish", Activation::hard_swish},
                                                 {"softsign", Activation::softsign},
                                                 {"log", Activation::log},
                                                 {"sqrt", Activation::sqrt},
                                                 {"abs", Activation::abs}};
constexpr Name<Binary> kBinaryNames[] = {{"add", Binary::add}, {"sub", Binary::sub}, {"mul", Binary::mul},
                                         {"div", Binary::div}, {"max", Binary::max}, {"min", Binary::min}};
constexpr Name<Reduce> kReduceNames[] = {{"sum", Reduce::sum}, {"mean", Reduce::mean}, {"max", Reduce::max}};
constexpr Name<Pooling> kPoolingNames[] = {{"sum", Pooling::sum}, {"mean", Pooling::mean}, {"max", Pooling::max}};
enum class Kind : uint8_t { ids, dense };
constexpr Name<Kind> kKindNames[] = {{"ids", Kind::ids}, {"dense", Kind::dense}};
enum class Dtype : uint8_t { i32, f32, f16, i8 };
constexpr Name<Dtype> kDtypeNames[] = {
    {"i32", Dtype::i32}, {"f32", Dtype::f32}, {"f16", Dtype::f16}, {"i8", Dtype::i8}};
constexpr Name<bool> kFusionNames[] = {{"sum", false}, {"product", true}};
constexpr Name<bool> kGruOutputNames[] = {{"last", false}, {"all", true}};

class PlanReader {
 public:
  PlanReader(const Json& json, const SafeTensors& weights) : top_(json, "top level"), weights_(weights) {}

  Plan read() {
    const Json& version = top_.required("plan_version");
    if (!version.integer) top_.refuse(say("'plan_version' must be a whole number, found ", version.kind_name()));
    if (version.whole < kFirstVersion || version.whole > kPlanVersion)
      top_.refuse(say("plan_version is ", version.whole, "; fastmtr ", fmtr_version(), " executes versions ",
                      kFirstVersion, " to ", kPlanVersion,
                      version.whole > kPlanVersion
                          ? ": install a newer fastmtr, or compile the bundle again with this one"
                          : ": compile the bundle again"));
    read_buffers();
    read_inputs();
    read_steps();
    check_steps(plan_);
    read_outputs();
    read_fusion();
    top_.finish();
    return std::move(plan_);
  }

 private:
  Operand operand(const Json& json, const Reader& at, std::string_view role) {
    const bool three = json.kind == Json::Kind::array && json.array.size() == 3;
    for (size_t i = 0; three && i < 3; ++i)
      if (!json.array[i].integer || json.array[i].whole < 0)
        at.refuse(say(role, " must be three whole numbers [buffer, offset, width]"));
    if (!three) at.refuse(say(role, " must be a list [buffer, offset, width]"));
    const auto number = [&](size_t i) { return static_cast<uint64_t>(json.array[i].whole); };
    if (number(0) >= plan_.buffers.size())
      at.refuse(say(role, " names buffer ", number(0), ", there are ", plan_.buffers.size()));
    const Buffer& buffer = plan_.buffers[number(0)];
    if (number(2) == 0) at.refuse(say(role, " has width 0"));
    if (number(1) > buffer.width || number(2) > buffer.width - number(1))
      at.refuse(say(role, " is columns ", number(1), " .. ", number(1) + number(2), " of buffer ", number(0), " (",
                    quote(buffer.name), "), which has ", buffer.width));
    return {static_cast<uint32_t>(number(0)), number(1), number(2)};
  }

  void read_buffers() {
    const auto& list = top_.list("buffers");
    if (list.size() > kMaxBuffers) top_.refuse(say(list.size(), " buffers; at most ", kMaxBuffers, " are read"));
    uint64_t columns = 0;
    for (size_t i = 0; i < list.size(); ++i) {
      Reader at(list[i], say("buffer ", i));
      Buffer buffer;
      buffer.name = at.text("name");
      at.rename(say("buffer ", i, " (", quote(buffer.name), ")"));
      buffer.domain = at.choice("domain", kDomainNames);
      const Dtype dtype = at.choice("dtype", kDtypeNames);
      buffer.ids = dtype == Dtype::i32;
      buffer.encoding = dtype == Dtype::f16 ? Encoding::f16 : dtype == Dtype::i8 ? Encoding::i8 : Encoding::f32;
      buffer.width = static_cast<uint64_t>(at.whole("width", 1, kMaxWidth));
      columns += buffer.width;
      if (columns > kMaxColumns)
        at.refuse(say("the buffers up to here have ", columns, " columns; at most ", kMaxColumns, " are read"));
      at.required("stored");
      buffer.stored = at.boolean("stored", false);
      if (buffer.encoding != Encoding::f32 && (buffer.domain != Domain::item || !buffer.stored))
        at.refuse(say("has dtype ", dtype_name(buffer), ", which only stored item buffers may have"));
      at.finish();
      plan_.buffers.push_back(std::move(buffer));
    }
  }

  void read_inputs() {
    const auto& list = top_.list("inputs");
    std::unordered_set<std::string> names;
    Intervals columns[kDomains][2];
    for (size_t i = 0; i < list.size(); ++i) {
      Reader at(list[i], say("input ", i));
      PlanInput input;
      input.name = at.text("name");
      at.rename(say("input ", i, " (", quote(input.name), ")"));
      if (!names.insert(input.name).second) at.refuse("the name stands twice");
      input.domain = at.choice("domain", kDomainNames);
      input.ids = at.choice("kind", kKindNames) == Kind::ids;
      input.offset = static_cast<uint64_t>(at.whole("offset", 0, kMaxWidth));
      input.width = static_cast<uint64_t>(at.whole("width", 1, kMaxWidth));
      const uint64_t end = input.offset + input.width;
      if (end > kMaxWidth) at.refuse(say("columns end at ", end, ", at most ", kMaxWidth, " are read"));
      if (input.ids) {
        input.rows = static_cast<uint32_t>(at.whole("rows", 1, std::numeric_limits<int32_t>::max()));
        if (at.optional("padding") != nullptr) input.padding = at.whole("padding", 0, int64_t{input.rows} - 1);
      } else if (at.optional("rows") != nullptr || at.optional("padding") != nullptr) {
        at.refuse("'rows' and 'padding' belong to kind 'ids'");
      }
      auto& taken = columns[static_cast<int>(input.domain)][input.ids];
      if (taken.overlaps(input.offset, end))
        at.refuse(say("columns ", input.offset, " .. ", end, " overlap those of another input"));
      taken.add(input.offset, end);
      auto& width = (input.ids ? plan_.ids_width : plan_.dense_width)[static_cast<int>(input.domain)];
      width = std::max(width, end);

      const auto index = static_cast<uint64_t>(at.whole("buffer", 0, int64_t{kMaxBuffers}));
      if (index >= plan_.buffers.size()) at.refuse(say("names buffer ", index, ", there are ", plan_.buffers.size()));
      Buffer& buffer = plan_.buffers[index];
      input.buffer = static_cast<uint32_t>(index);
      const std::string about = say("buffer ", index, " (", quote(buffer.name), ") ");
      if (buffer.input >= 0) at.refuse(say(about, "already holds another input"));
      if (buffer.domain != input.domain)
        at.refuse(say(about, "has domain ", domain_name(buffer.domain), ", expected ", domain_name(input.domain)));
      if (buffer.ids != input.ids || buffer.encoding != Encoding::f32)
        at.refuse(say(about, "has dtype ", dtype_name(buffer), ", expected ", input.ids ? "i32" : "f32"));
      if (buffer.width != input.width)
        at.refuse(say(about, "has width ", buffer.width, ", expected the input's ", input.width));
      if (!buffer.stored) at.refuse(say(about, "holds an input, so its 'stored' must be true"));
      buffer.input = static_cast<int64_t>(i);
      at.finish();
      plan_.inputs.push_back(std::move(input));
    }
    for (size_t i = 0; i < plan_.buffers.size(); ++i) {
      const Buffer& buffer = plan_.buffers[i];
      if (buffer.input < 0 && buffer.stored && buffer.domain != Domain::item)
        fail(FMTR_ERROR_BUNDLE, "plan.json: buffer ", i, " (", quote(buffer.name), "): 'stored' is true, but it is a ",
             domain_name(buffer.domain), " buffer that holds no input; only item buffers are stored");
    }
  }

  // A weight of the step, with its shape for the caller to check; NULL when the step does not name it.
  const Tensor* weight(Reader& weights, std::string_view role) {
    if (weights.optional(role) == nullptr) return nullptr;
    return &weights_.get(weights.text(role), "F32");
  }

  const float* shaped(Reader& weights, std::string_view role, const std::vector<uint64_t>& shape, bool required) {
    const Tensor* tensor = weight(weights, role);
    if (tensor == nullptr) {
      if (required) weights.refuse(say("'", role, "' is missing"));
      return nullptr;
    }
    if (tensor->shape != shape)
      weights.refuse(say("'", role, "' has shape ", shape_text(tensor->shape), ", expected ", shape_text(shape)));
    return reinterpret_cast<const float*>(tensor->data);
  }

  void read_table(Reader& attrs, Reader& weights, PlanStep& step) {
    const Tensor& tensor = weights_.get(weights.text("table"), {"F32", "F16", "U8"});
    if (tensor.shape.size() != 2 || tensor.shape[0] == 0 || tensor.shape[1] == 0 || tensor.shape[1] > kMaxWidth)
      weights.refuse(say("'table' has shape ", shape_text(tensor.shape), ", expected [rows, dimension]"));
    EmbeddingTable& table = step.table;
    table.data = tensor.data;
    table.dim = tensor.shape[1];
    table.encoding = tensor.dtype == "F16" ? TableEncoding::f16 : TableEncoding::f32;
    if (tensor.dtype == "U8") {
      const int64_t bits = attrs.whole("bits", 4, 8);
      if (bits != 4 && bits != 8) attrs.refuse(say("'bits' must be 4 or 8, found ", bits));
      table.encoding = bits == 4 ? TableEncoding::u4 : TableEncoding::u8;
      if (bits == 4) table.dim *= 2;
      table.scales = of_rows(weights, "table_scale", tensor.shape[0]);
      table.shifts = of_rows(weights, "table_shift", tensor.shape[0]);
    }
    step.k = tensor.shape[0];
    step.n = table.dim;
  }

  // A number a row of a table. One that is not finite would make NaN of ids that are as good as any.
  const float* of_rows(Reader& weights, std::string_view role, uint64_t n) {
    const float* numbers = shaped(weights, role, {n}, true);
    const float* bad = std::find_if_not(numbers, numbers + n, [](float x) { return std::isfinite(x); });
    if (bad != numbers + n) weights.refuse(say("'", role, "' is ", *bad, " for row ", bad - numbers));
    return numbers;
  }

  void read_padding(Reader& attrs, PlanStep& step) {
    if (attrs.optional("padding") != nullptr)
      step.padding = attrs.whole("padding", 0, std::numeric_limits<int32_t>::max());
  }

  void read_activation(Reader& attrs, Reader& weights, PlanStep& step, uint64_t width, bool required) {
    if (required || attrs.optional("activation") != nullptr)
      step.activation = attrs.choice("activation", kActivationNames);
    const bool needs_alpha = step.activation == Activation::leaky_relu || step.activation == Activation::elu;
    if (needs_alpha || attrs.optional("alpha") != nullptr) step.alpha = attrs.real("alpha");
    step.slope = shaped(weights, "slope", {width}, step.activation == Activation::prelu);
    if (step.slope != nullptr && step.activation != Activation::prelu)
      weights.refuse("'slope' belongs to activation 'prelu'");
  }

  static uint64_t count(Reader& attrs, std::string_view key) {
    return static_cast<uint64_t>(attrs.whole(key, 1, kMaxWidth));
  }
  static uint64_t count(Reader& attrs, std::string_view key, uint64_t otherwise) {
    return attrs.optional(key) != nullptr ? count(attrs, key) : otherwise;
  }

  void read_affine(Reader& at, Reader& attrs, Reader& weights, PlanStep& step) {
    step.groups = count(attrs, "groups", 1);
    step.steps = count(attrs, "steps", 1);
    const bool shared_x = attrs.boolean("shared_x", false);
    const Tensor* w = weight(weights, "w");
    step.has_x = attrs.boolean("has_x", w != nullptr);
    if (step.has_x != (w != nullptr))
      at.refuse(step.has_x ? "has an x but no weight 'w'" : "has a weight 'w' but no x");
    if (step.has_x && step.inputs.empty()) at.refuse("has_x is true, but there is no input");
    const uint64_t width = part(at, "output", step.output.width, step.steps, "steps");
    step.n = part(at, "output", width, step.groups, "groups");
    if (step.has_x) {
      const uint64_t of_step = part(at, "x", step.inputs[0].width, step.steps, "steps");
      step.k = part(at, "x", of_step, shared_x ? 1 : step.groups, "groups");
      const std::vector<uint64_t> grouped{step.groups, step.n, step.k}, plain{step.n, step.k};
      if (w->shape != grouped && (step.groups != 1 || w->shape != plain))
        weights.refuse(say("'w' has shape ", shape_text(w->shape), ", expected ",
                           shape_text({step.groups, step.n, step.k}),
                           " = [groups, output columns a group, x columns a group]"));
      step.w = reinterpret_cast<const float*>(w->data);
    }
    step.b = shaped(weights, "b", {width}, false);
    if (step.inputs.empty() && step.b == nullptr) at.refuse("has no x, no addend and no 'b'");
    read_activation(attrs, weights, step, width, false);
    if (shared_x ||
        !step.has_x) {  // one product with the groups' columns side by side: the same weights in the same order
      step.groups = 1;
      step.n = width;
    }
  }

  // Columns of each of so many equal parts.
  static uint64_t part(const Reader& at, std::string_view what, uint64_t width, uint64_t parts, std::string_view name) {
    if (width % parts != 0)
      at.refuse(say(what, " has width ", width, ", which is no multiple of the ", parts, " ", name));
    return width / parts;
  }

  // Scale and shift are of a run of columns.
  void read_norm(Reader& at, Reader& attrs, PlanStep& step) {
    step.eps = attrs.real("eps");
    step.n = count(attrs, "size", step.output.width);
    part(at, "output", step.output.width, step.n, "columns of a run");
  }

  static uint64_t steps_width(const Reader& at, const PlanStep& step) {
    if (step.inputs.empty()) at.refuse("has no inputs, expected x first");
    return part(at, "x", step.inputs[0].width, step.steps, "steps");
  }

  void read_gru(Reader& at, Reader& attrs, Reader& weights, PlanStep& step) {
    step.steps = count(attrs, "steps");
    step.hidden = count(attrs, "hidden");
    step.all_states = attrs.choice("output", kGruOutputNames);
    step.k = steps_width(at, step);
    step.n = 3 * step.hidden;
    step.w = shaped(weights, "w_x", {step.n, step.k}, true);
    step.w_state = shaped(weights, "w_h", {step.n, step.hidden}, true);
    step.b = shaped(weights, "b_x", {step.n}, false);
    step.b_state = shaped(weights, "b_h", {step.n}, false);
    read_padding(attrs, step);
    if (step.inputs.size() > 1 && step.padding < 0) attrs.refuse("'padding' is missing, the id of a step to leave out");
    if (step.inputs.size() == 1 && step.padding >= 0) attrs.refuse("'padding' has no meaning without ids as input 1");
    check_workspace(at, step);
  }

  void read_conv1d(Reader& at, Reader& attrs, Reader& weights, PlanStep& step) {
    const uint64_t steps = count(attrs, "steps"), stride = count(attrs, "stride", 1),
                   dilation = count(attrs, "dilation", 1);
    const uint64_t padding =
        attrs.optional("padding") != nullptr ? static_cast<uint64_t>(attrs.whole("padding", 0, kMaxWidth)) : 0;
    step.steps = steps;
    const uint64_t channels = steps_width(at, step);
    const Tensor* w = weight(weights, "w");
    if (w == nullptr) weights.refuse("'w' is missing");
    if (w->shape.size() != 3 || w->shape[0] == 0 || w->shape[1] != channels || w->shape[2] == 0)
      weights.refuse(say("'w' has shape ", shape_text(w->shape), ", expected [outputs, ", channels, ", kernel]"));
    const uint64_t kernel = w->shape[2], there = steps + 2 * padding;
    if (kernel > there || dilation * (kernel - 1) >= there)
      at.refuse(say("a kernel of ", kernel, " with dilation ", dilation, " reaches beyond the ", steps, " steps and ",
                    2 * padding, " of padding"));
    step.n = w->shape[0];
    step.k = kernel * channels;
    step.steps = (there - dilation * (kernel - 1) - 1) / stride + 1;
    step.order = {1,
                  step.steps,
                  kernel,
                  channels,
                  0,
                  stride * channels,
                  dilation * channels,
                  padding * channels,
                  steps * channels};
    step.b = shaped(weights, "b", {step.n}, false);
    if (step.output.width / step.steps != step.n || step.output.width % step.steps != 0)
      at.refuse(say("output has width ", step.output.width, ", expected ", step.n, " for each of ", step.steps,
                    " positions of the kernel"));
    check_workspace(at, step);
    // From [outputs, channels, kernel] to the order of a window's columns.
    const auto* from = reinterpret_cast<const float*>(w->data);
    auto to = std::make_unique<float[]>(step.n * step.k);
    for (uint64_t o = 0; o < step.n; ++o)
      for (uint64_t c = 0; c < channels; ++c)
        for (uint64_t i = 0; i < kernel; ++i) to[(o * kernel + i) * channels + c] = *from++;
    step.w = to.get();
    plan_.rearranged.push_back(std::move(to));
  }

  static void check_workspace(const Reader& at, const PlanStep& step) {
    if (step.workspace() > static_cast<uint64_t>(kMaxWidth))
      at.refuse(say("needs ", step.workspace(), " columns of workspace, at most ", kMaxWidth, " are given"));
  }

  void read_steps() {
    const auto& list = top_.list("steps");
    for (size_t i = 0; i < list.size(); ++i) {
      Reader at(list[i], say("step ", i));
      PlanStep step;
      step.name = at.text("name");
      at.rename(say("step ", i, " (", quote(step.name), ")"));
      step.op = at.choice("op", kOpNames);
      at.rename(say("step ", i, " (", op_name(step.op), " ", quote(step.name), ")"));
      step.domain = at.choice("domain", kDomainNames);
      at.optional("remark");  // for those who read the plan
      const auto& inputs = at.list("inputs");
      for (size_t j = 0; j < inputs.size(); ++j) step.inputs.push_back(operand(inputs[j], at, say("input ", j)));
      step.output = operand(at.required("output"), at, "output");

      static const Json none = [] {
        Json json;
        json.kind = Json::Kind::object;
        return json;
      }();
      const Json* attrs_json = at.optional("attrs");
      const Json* weights_json = at.optional("weights");
      Reader attrs(attrs_json != nullptr ? *attrs_json : none, say(at.where(), ", attrs"));
      Reader weights(weights_json != nullptr ? *weights_json : none, say(at.where(), ", weights"));
      const uint64_t width = step.output.width;
      switch (step.op) {
        case Op::gather:
        case Op::copy:
        case Op::mixture:
        case Op::dot:
          break;
        case Op::embedding:
          read_padding(attrs, step);
          read_table(attrs, weights, step);
          break;
        case Op::embedding_bag:
          step.pooling = attrs.choice("mode", kPoolingNames);
          read_padding(attrs, step);
          read_table(attrs, weights, step);
          break;
        case Op::affine:
          read_affine(at, attrs, weights, step);
          break;
        case Op::activation:
          step.n = width;
          read_activation(attrs, weights, step, width, true);
          break;
        case Op::softmax:
          step.n = count(attrs, "size");
          break;
        case Op::binary:
          step.binary = attrs.choice("fn", kBinaryNames);
          break;
        case Op::scale_shift:
          step.n = width;
          step.scale = shaped(weights, "scale", {width}, true);
          step.shift = shaped(weights, "shift", {width}, true);
          break;
        case Op::reduce:
          step.reduce = attrs.choice("fn", kReduceNames);
          step.outer = count(attrs, "outer");
          step.axis = count(attrs, "axis");
          step.inner = count(attrs, "inner");
          break;
        case Op::layer_norm:
          read_norm(at, attrs, step);
          step.scale = shaped(weights, "scale", {step.n}, false);
          step.shift = shaped(weights, "shift", {step.n}, false);
          break;
        case Op::l2_normalize:
          read_norm(at, attrs, step);
          break;
        case Op::repeat: {
          const uint64_t outer = count(attrs, "outer", 1), times = count(attrs, "times");
          const uint64_t inner = part(at, "output", part(at, "output", width, outer, "outer"), times, "times");
          step.order = {outer, times, 1, inner, inner, 0, 0, 0, outer * inner};
          break;
        }
        case Op::transpose: {
          const uint64_t outer = count(attrs, "outer", 1), a = count(attrs, "a"), b = count(attrs, "b"),
                         inner = count(attrs, "inner", 1);
          if (product({outer, a, b, inner}) != width)
            at.refuse(say("output has width ", width, ", expected outer ", outer, " times a ", a, " times b ", b,
                          " times inner ", inner));
          step.order = {outer, b, a, inner, a * b * inner, inner, b * inner, 0, width};
          break;
        }
        case Op::matmul:
          step.outer = count(attrs, "outer", 1);
          step.m = count(attrs, "m");
          step.k = count(attrs, "k");
          step.n = count(attrs, "n");
          step.transpose_b = attrs.boolean("transpose_b", false);
          break;
        case Op::mask:
          if (attrs.optional("value") != nullptr) step.value = attrs.real("value");
          [[fallthrough]];
        case Op::present:
          step.padding = attrs.whole("padding", 0, std::numeric_limits<int32_t>::max());
          break;
        case Op::gru:
          read_gru(at, attrs, weights, step);
          break;
        case Op::conv1d:
          read_conv1d(at, attrs, weights, step);
          break;
      }
      attrs.finish();
      weights.finish();
      at.finish();
      plan_.steps.push_back(std::move(step));
    }
  }

  void read_outputs() {
    const auto& list = top_.list("outputs");
    std::unordered_set<std::string> names;
    for (size_t i = 0; i < list.size(); ++i) {
      Reader at(list[i], say("output ", i));
      PlanOutput output;
      output.name = at.text("name");
      at.rename(say("output ", i, " (", quote(output.name), ")"));
      if (!names.insert(output.name).second) at.refuse("the name stands twice");
      output.role = at.choice("role", kRoleNames);
      output.operand = operand(at.required("operand"), at, "operand");
      at.finish();
      check_output(plan_, output, at.where());
      if (output.role == Role::task) plan_.tasks.push_back(static_cast<uint32_t>(i));
      plan_.outputs.push_back(std::move(output));
    }
  }

  void read_fusion() {
    const Json* json = top_.optional("fusion");
    Fusion& fusion = plan_.fusion;
    const size_t n_tasks = plan_.tasks.size();
    if (json == nullptr) {  // the plain sum of all tasks
      for (uint32_t t = 0; t < n_tasks; ++t) fusion.tasks.push_back(t);
      fusion.weights.assign(n_tasks, 1.0f);
      fusion.offsets.assign(n_tasks, 0.0f);
      return;
    }
    Reader at(*json, "fusion");
    fusion.product = at.choice("kind", kFusionNames);
    for (const Json& task : at.list("tasks")) {
      const auto found = std::find_if(plan_.tasks.begin(), plan_.tasks.end(), [&](uint32_t t) {
        return task.kind == Json::Kind::string && plan_.outputs[t].name == task.string;
      });
      if (found == plan_.tasks.end()) at.refuse(say("'tasks' names ", quote(task.string), ", which is no task output"));
      const auto position = static_cast<uint32_t>(found - plan_.tasks.begin());
      if (std::find(fusion.tasks.begin(), fusion.tasks.end(), position) != fusion.tasks.end())
        at.refuse(say("'tasks' names ", quote(task.string), " twice"));
      fusion.tasks.push_back(position);
    }
    if (fusion.tasks.empty() && n_tasks > 0) at.refuse("'tasks' is empty; name at least one task");
    for (const Json& weight : at.list("weights")) fusion.weights.push_back(at.real(weight, "weights"));
    if (fusion.weights.size() != fusion.tasks.size())
      at.refuse(say("there are ", fusion.weights.size(), " weights for ", fusion.tasks.size(), " tasks"));
    if (at.optional("offsets") != nullptr) {
      for (const Json& offset : at.list("offsets")) fusion.offsets.push_back(at.real(offset, "offsets"));
      if (fusion.offsets.size() != fusion.tasks.size())
        at.refuse(say("there are ", fusion.offsets.size(), " offsets for ", fusion.tasks.size(), " tasks"));
    } else {
      fusion.offsets.assign(fusion.tasks.size(), 0.0f);
    }
    at.finish();
  }

  Reader top_;
  const SafeTensors& weights_;
  Plan plan_;
};

}  // namespace

const char* domain_name(Domain domain) { return name_of(kDomainNames, domain); }
const char* op_name(Op op) { return name_of(kOpNames, op); }
const char* role_name(Role role) { return name_of(kRoleNames, role); }
size_t encoded_bytes(Encoding encoding) {
  switch (encoding) {
    case Encoding::f32:
      return 4;
    case Encoding::f16:
      return 2;
    case Encoding::i8:
      return 1;
  }
  return 0;
}
const char* dtype_name(const Buffer& buffer) {
  const Dtype dtype = buffer.ids                         ? Dtype::i32
                      : buffer.encoding == Encoding::f16 ? Dtype::f16
                      : buffer.encoding == Encoding::i8  ? Dtype::i8
                                                         : Dtype::f32;
  return name_of(kDtypeNames, dtype);
}

const PlanOutput& Plan::output(std::string_view name, Role role) const {
  for (const PlanOutput& output : outputs)
    if (output.name == name && output.role == role) return output;
  std::string known;
  for (const PlanOutput& output : outputs)
    if (output.role == role) known += say(known.empty() ? "" : ", ", output.name);
  fail(FMTR_ERROR_ARGUMENT, "the model has no ", role_name(role), " output ", quote(name),
       "; there are: ", known.empty() ? "none" : known);
}

Plan read_plan(std::string_view json, const SafeTensors& weights) {
  const Json parsed = parse_json(json, "plan.json");
  return PlanReader(parsed, weights).read();
}

std::vector<bool> needed_steps(const Plan& plan, const std::vector<Operand>& roots) {
  std::vector<Intervals> wanted(plan.buffers.size());
  for (const Operand& root : roots) wanted[root.buffer].add(root.offset, root.offset + root.width);
  std::vector<bool> needed(plan.steps.size(), false);
  for (size_t i = plan.steps.size(); i-- > 0;) {
    const PlanStep& step = plan.steps[i];
    if (!wanted[step.output.buffer].overlaps(step.output.offset, step.output.offset + step.output.width)) continue;
    needed[i] = true;
    for (const Operand& input : step.inputs) wanted[input.buffer].add(input.offset, input.offset + input.width);
  }
  return needed;
}

}  // namespace fastmtr
