// A plan made ready to run: weights packed for the instruction set, every operand turned into a place in memory, and a
// layout of the workspace in which buffers that are never alive together share memory.
#ifndef FASTMTR_CORE_PROGRAM_H
#define FASTMTR_CORE_PROGRAM_H

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "backend.h"
#include "core/arena.h"
#include "core/plan.h"
#include "core/profile.h"

namespace fastmtr {

// fp16: the weights of all products are stored in half precision. int8: candidates' products are computed in 8 bits.
// Everything else is fp32.
enum class Precision : uint8_t { fp32, fp16, int8 };

const char* precision_name(Precision precision);

// Throws FMTR_ERROR_BUNDLE where one of a step's weights is beyond half precision.
void check_half(const std::string& name, const float* w, uint64_t n);

// Where the rows of an operand lie.
enum class Space : uint8_t {
  request_ids,
  request_dense,  // the caller's packed matrices
  item_ids,
  item_dense,  // the catalogue's
  candidate_ids,
  candidate_dense,  // the caller's
  item_table,       // a stored item buffer that a step wrote
  embedding_table,  // rows of the table of an embedding, where they lie
  request_tile,     // workspace of the request phase, read by candidates too
  tile              // workspace of the item phase or of the candidate phase
};

// A buffer that is stored in another encoding is both: its own phase makes it in the tile, and encodes it into the
// table for the candidates.
struct Port {
  Space space;
  uint32_t table = 0;  // item_table: which; embedding_table: that of which step
  size_t place = 0;    // tiles: floats a row that lie before the buffer
  size_t column = 0;
  size_t stride = 0;  // elements from row to row; item_table: see Table
  size_t width = 0;
};

struct Step {
  const PlanStep* plan;
  Port out;
  uint32_t first_input, n_inputs;      // in Program::ports
  const void* packed = nullptr;        // in fp32, or in fp16 where that is the program's precision
  const void* packed_state = nullptr;  // gru: of w_state
  const void* packed_int8 = nullptr;   // NULL: the step stays in fp32
  int64_t source = -1;                 // in 8 bits: the step that is made on the way; -1: none
};

// A stored item buffer that steps write: one row an item.
struct Table {
  uint32_t buffer;
  Encoding encoding;
  size_t width;
  size_t row_bytes;
  size_t scale_at;  // i8: the byte of a row where its scale lies
  Port made;        // where the item phase has it; f32: in the table itself

  size_t stride() const { return row_bytes / encoded_bytes(encoding); }
};

// What a run of steps reads and writes.
struct Context {
  const int32_t *request_ids = nullptr, *item_ids = nullptr, *candidate_ids = nullptr;
  const float *request_dense = nullptr, *item_dense = nullptr, *candidate_dense = nullptr;
  const int64_t* item_keys = nullptr;
  unsigned char* const* tables = nullptr;
  float* request_tile = nullptr;
  size_t request_tile_rows = 0;  // that its layout was made for
  float* tile = nullptr;
  size_t tile_rows = 0;
  size_t request_row = 0;                // of the first row, in the packed matrices
  size_t request_tile_row = 0;           // the same, in the tile
  const uint32_t* request_of = nullptr;  // candidates: their requests, counted from those rows; NULL: one for all
  size_t item_row = 0;                   // item phase, or candidates that are consecutive items
  const uint32_t* gather = nullptr;      // candidates: their item rows; NULL: item_row and those after it
  size_t gather_after = 0;               // item rows in it behind those: the next tile's
  size_t candidate_row = 0;
  bool exact = false;          // candidates in fp32, whatever the program's precision
  Rows* scratch = nullptr;     // Program::max_inputs of them
  Profile* profile = nullptr;  // NULL: no clock is read
};

class Program {
 public:
  Program(const Plan& plan, const Kernels& kernels, Precision precision);
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  // Floats of workspace for `rows` rows.
  size_t tile_floats(Domain domain, size_t rows) const {
    return floats_a_row_[static_cast<int>(domain)] * round_up(rows, kLine);
  }
  size_t floats_a_row(Domain domain) const { return floats_a_row_[static_cast<int>(domain)]; }
  // Of a candidate's: without the widest buffer that 8 bits leave untouched.
  size_t busy_floats_a_candidate() const { return floats_a_row(Domain::candidate) - untouched_floats_; }

  // Runs the steps of that domain that task and stored item values need; or those in `only` (positions of steps of the
  // plan). After those of the item domain, tables of other encodings are written; FMTR_ERROR_SCHEMA where a value does
  // not go into one.
  void run(Domain domain, size_t rows, const Context& context) const;
  void run(const std::vector<uint32_t>& only, Domain domain, size_t rows, const Context& context) const;

  // For steps of that domain.
  Port port(const Operand& operand, Domain phase) const;
  Rows rows(const Port& port, Domain phase, const Context& context) const;
  IdRows id_rows(const Port& port, Domain phase, const Context& context) const;

  // The steps that this output of the plan needs, for run(); kept for outputs of role request.
  const std::vector<uint32_t>& steps_for(size_t output) const { return output_steps_[output]; }

  const std::vector<Table>& tables() const { return tables_; }
  size_t max_inputs() const { return max_inputs_; }
  uint64_t packed_bytes() const { return packed_.bytes() + packed_int8_.bytes(); }
  Precision precision() const { return precision_; }
  std::vector<std::string> int8_steps() const;  // their names
  bool reads_items() const { return reads_items_; }
  // Lookups take ids in rows of a fixed distance, so candidates of several requests cannot share a tile then.
  bool candidates_read_request_ids() const { return candidates_read_request_ids_; }
  const Kernels& kernels() const { return kernels_; }
  const Plan& plan() const { return plan_; }
  bool runs_in_int8(size_t step) const { return steps_[step].packed_int8 != nullptr; }

 private:
  void find_read_in_place();
  void lay_out(const std::vector<bool>& needed);
  void pack();
  void choose_int8(const std::vector<bool>& needed);
  int64_t source_of(size_t step) const;
  AffineArgs affine_args(const Step& step, Domain domain, size_t rows, const Context& context, Rows* scratch) const;
  void encode(size_t rows, const Context& context) const;
  void run_steps(const AffineArgs& all, size_t steps, size_t x_step, const Port* addends, Rows* room) const;
  void run_gru(const Step& step, Domain domain, size_t rows, const Context& context) const;
  void run_conv1d(const Step& step, Domain domain, size_t rows, const Context& context) const;
  void run_step(const Step& step, Domain domain, size_t rows, const Context& context) const;

  const Plan& plan_;
  const Kernels& kernels_;
  const Precision precision_;
  const ProductKernels& products_;      // of the precision's weights
  std::vector<size_t> place_, stride_;  // a buffer of the plan
  std::vector<int64_t> table_of_;       // a buffer of the plan: its table, -1 for none
  std::vector<int64_t> looked_up_by_;   // a buffer of the plan that is read in place: its step, -1 for all others
  std::vector<Table> tables_;
  std::vector<Step> steps_;  // one a step of the plan, same order
  std::vector<Port> ports_;
  std::vector<uint32_t> active_[kDomains];  // of steps_
  std::vector<uint32_t> active_int8_;       // of steps_, of candidates, without those that another makes on the way
  std::vector<std::vector<uint32_t>> output_steps_;
  size_t floats_a_row_[kDomains] = {};
  size_t untouched_floats_ = 0;
  Port workspace_[kDomains] = {};  // for the step that runs
  size_t max_inputs_ = 1;
  bool reads_items_ = false, candidates_read_request_ids_ = false;
  Aligned<uint8_t> packed_;
  Aligned<uint8_t> packed_int8_;
};

}  // namespace fastmtr
#endif
