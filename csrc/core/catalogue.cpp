#include "core/catalogue.h"

#include <algorithm>
#include <cstring>

#include "core/input_check.h"
#include "core/json.h"
#include "core/status.h"
#include "core/tile.h"

namespace fastmtr {

namespace {

constexpr uint64_t kMaxItems = UINT32_MAX - 1;  // rows are gathered by 32-bit numbers, the last of which means "none"
constexpr int kItem = static_cast<int>(Domain::item);

const Tensor& matrix(const SafeTensors& file, const std::string& name, std::string_view dtype,
                     const std::vector<uint64_t>& shape) {
  const Tensor& found = file.get(name, dtype);
  if (found.shape != shape) {
    Tensor expected;
    expected.shape = shape;
    fail(FMTR_ERROR_BUNDLE, file.what(), ": ", quote(name), " has shape ", found.shape_text(), ", expected ",
         expected.shape_text());
  }
  return found;
}

}  // namespace

std::shared_ptr<const Catalogue> Catalogue::open(const std::string& path, const Plan& plan, const Program& program) {
  auto catalogue = std::make_shared<Catalogue>();
  catalogue->file_ = SafeTensors(path, "catalogue.safetensors");
  const SafeTensors& file = catalogue->file_;
  const Tensor& keys = file.get("keys", "I64");
  const uint64_t n = keys.shape.size() == 1 ? keys.shape[0] : 0;
  matrix(file, "keys", "I64", {n});
  if (n > kMaxItems) fail(FMTR_ERROR_BUNDLE, "catalogue.safetensors: ", n, " items; at most ", kMaxItems, " are read");
  catalogue->n_items_ = static_cast<uint32_t>(n);
  catalogue->keys_ = reinterpret_cast<const int64_t*>(keys.data);
  catalogue->ids_ = reinterpret_cast<const int32_t*>(matrix(file, "ids", "I32", {n, plan.ids_width[kItem]}).data);
  catalogue->dense_ = reinterpret_cast<const float*>(matrix(file, "dense", "F32", {n, plan.dense_width[kItem]}).data);
  catalogue->build(plan, program, FMTR_ERROR_BUNDLE);
  return catalogue;
}

std::shared_ptr<const Catalogue> Catalogue::copy(const fmtr_catalogue_data& data, const Plan& plan,
                                                 const Program& program) {
  const uint64_t n = data.n_items, ids_width = plan.ids_width[kItem], dense_width = plan.dense_width[kItem];
  if (n > kMaxItems) fail(FMTR_ERROR_ARGUMENT, "n_items is ", n, "; at most ", kMaxItems, " are possible");
  if (n > 0 && data.keys == nullptr) fail(FMTR_ERROR_ARGUMENT, "keys is NULL, but n_items is ", n);
  if (n > 0 && ids_width > 0 && data.ids == nullptr)
    fail(FMTR_ERROR_ARGUMENT, "ids is NULL, but the model reads ", ids_width, " id columns an item");
  if (n > 0 && dense_width > 0 && data.dense == nullptr)
    fail(FMTR_ERROR_ARGUMENT, "dense is NULL, but the model reads ", dense_width, " dense columns an item");
  auto catalogue = std::make_shared<Catalogue>();
  catalogue->n_items_ = static_cast<uint32_t>(n);
  catalogue->own_keys_ = Aligned<int64_t>(n);
  catalogue->own_ids_ = Aligned<int32_t>(n * ids_width);
  catalogue->own_dense_ = Aligned<float>(n * dense_width);
  std::copy_n(data.keys, n, catalogue->own_keys_.data());
  std::copy_n(data.ids, n * ids_width, catalogue->own_ids_.data());
  std::copy_n(data.dense, n * dense_width, catalogue->own_dense_.data());
  catalogue->keys_ = catalogue->own_keys_.data();
  catalogue->ids_ = catalogue->own_ids_.data();
  catalogue->dense_ = catalogue->own_dense_.data();
  catalogue->build(plan, program, FMTR_ERROR_SCHEMA);
  return catalogue;
}

void Catalogue::build(const Plan& plan, const Program& program, fmtr_status status) {
  InputCheck(plan, Domain::item).check(ids_, dense_, n_items_, status);
  const KeyMap::Repeat repeat = map_.build(keys_, n_items_);
  if (repeat.first != kNoRow)
    fail(status, "catalogue: item key ", keys_[repeat.first], " stands twice, in rows ", repeat.first, " and ",
         repeat.second);

  for (const Table& table : program.tables()) tables_.emplace_back(size_t{n_items_} * table.stride);
  for (Aligned<float>& table : tables_) table_data_.push_back(table.data());
  const size_t tile = tile_rows(program.floats_a_row(Domain::item), 0);
  Aligned<float> workspace(program.tile_floats(Domain::item, tile));
  std::vector<Rows> scratch(program.max_inputs());
  Context context;
  bind(context);
  context.tile = workspace.data();
  context.tile_rows = tile;
  context.scratch = scratch.data();
  for (size_t row = 0; row < n_items_; row += tile) {
    context.item_row = row;
    program.run(Domain::item, std::min<size_t>(tile, n_items_ - row), context);
  }
}

void Catalogue::bind(Context& context) const {
  context.item_ids = ids_;
  context.item_dense = dense_;
  context.tables = table_data_.data();
}

uint64_t Catalogue::bytes() const {
  uint64_t bytes = own_keys_.bytes() + own_ids_.bytes() + own_dense_.bytes() + map_.bytes();
  for (const Aligned<float>& table : tables_) bytes += table.bytes();
  return bytes;
}

void Catalogue::read(const Port& port, const Program& program, float* values) const {
  if (n_items_ == 0) return;
  Context context;
  bind(context);
  program.kernels().copy(n_items_, port.width, program.rows(port, Domain::item, context), {values, port.width});
}

}  // namespace fastmtr
