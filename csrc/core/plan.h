// plan.json, read and checked: after read_plan() every operand, width, weight shape, id bound and order of execution
// holds, and nothing that executes the plan needs to check again. The rules are those of docs/bundle.md.
#ifndef FASTMTR_CORE_PLAN_H
#define FASTMTR_CORE_PLAN_H

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "backend.h"
#include "core/safetensors.h"

namespace fastmtr {

enum class Role : uint8_t { task, request, item };

struct Buffer {
  std::string name;
  Domain domain;
  bool ids;
  Encoding encoding;  // of the stored rows; steps of its own domain read and write f32
  bool stored;
  uint64_t width;
  int64_t input = -1;  // index of the input it holds
};

struct Operand {
  uint32_t buffer = 0;
  uint64_t offset = 0, width = 0;
};

struct PlanInput {
  std::string name;
  Domain domain;
  bool ids;
  uint64_t offset, width;  // columns of the packed matrix
  uint32_t rows = 0;       // ids: every id is below it
  int64_t padding = -1;    // ids: -1 for none
  uint32_t buffer;
};

struct PlanStep {
  Op op;
  Domain domain;
  std::string name;
  std::vector<Operand> inputs;  // affine: x first when has_x, then the addends
  Operand output;

  bool has_x = false;
  // Products: affine, gru (of x: n = 3 hidden), conv1d (of a window: k = kernel times channels), matmul. n also: the
  // size of what softmax and norms run over, embedding dimension, columns of scale_shift and activation.
  uint64_t groups = 1, n = 0, k = 0;
  uint64_t m = 0;                           // matmul
  uint64_t steps = 1;                       // affine, gru, conv1d: products of a row, side by side
  uint64_t outer = 0, axis = 0, inner = 0;  // reduce; outer also: matmul
  uint64_t hidden = 0;                      // gru
  Arrangement order{};                      // repeat, transpose, conv1d: its windows side by side
  bool transpose_b = false;                 // matmul
  bool all_states = false;                  // gru
  Activation activation = Activation::none;
  Binary binary = Binary::add;
  Reduce reduce = Reduce::sum;
  Pooling pooling = Pooling::sum;
  float alpha = 0, eps = 0, value = 0;
  int64_t padding = -1;

  EmbeddingTable table{};  // its rows are k

  // Into the mapped weights; NULL where the step has none.
  const float *w = nullptr, *b = nullptr, *slope = nullptr, *scale = nullptr, *shift = nullptr;
  const float *w_state = nullptr, *b_state = nullptr;  // gru; w and b are those of x

  // conv1d: a window is columns of x as they lie. (Without padding none reaches beyond x.)
  bool windows_in_place() const { return order.before == 0 && order.n_step == order.inner; }

  // gru: steps whose products with x are made together.
  uint64_t steps_at_once() const { return steps < 8 ? steps : 8; }

  // Floats a row that it needs while it runs.
  uint64_t workspace() const {
    if (op == Op::gru) return steps_at_once() * n + n + hidden;
    return op == Op::conv1d && !windows_in_place() ? steps * k : 0;
  }
};

// The product of factors of at most 2^20; where it is beyond 2^20, some number beyond it, without overflow.
inline uint64_t product(std::initializer_list<uint64_t> factors) {
  uint64_t result = 1;
  for (const uint64_t factor : factors)
    if (result <= uint64_t{1} << 20) result *= factor;
  return result;
}

struct PlanOutput {
  std::string name;
  Role role;
  Operand operand;
};

struct Fusion {
  bool product = false;
  std::vector<uint32_t> tasks;  // positions among the task outputs
  std::vector<float> weights, offsets;
};

struct Plan {
  std::vector<PlanInput> inputs;
  std::vector<Buffer> buffers;
  std::vector<PlanStep> steps;
  std::vector<PlanOutput> outputs;
  std::vector<uint32_t> tasks;  // positions among the outputs
  Fusion fusion;
  uint64_t ids_width[kDomains] = {}, dense_width[kDomains] = {};  // of the packed matrices
  std::vector<std::unique_ptr<float[]>> rearranged;               // weights in an order other than the file's

  // Throws FMTR_ERROR_ARGUMENT naming those there are.
  const PlanOutput& output(std::string_view name, Role role) const;
};

const char* domain_name(Domain domain);
const char* op_name(Op op);
const char* role_name(Role role);
const char* dtype_name(const Buffer& buffer);
size_t encoded_bytes(Encoding encoding);  // of a number

// Throws FMTR_ERROR_BUNDLE naming the step, what was found and what was expected. The plan points into `weights`.
Plan read_plan(std::string_view json, const SafeTensors& weights);

// The steps that the given operands depend on.
std::vector<bool> needed_steps(const Plan& plan, const std::vector<Operand>& roots);

}  // namespace fastmtr
#endif
