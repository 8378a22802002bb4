#include "core/item_store.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "core/arena.h"
#include "core/device_model.h"
#include "core/status.h"
#include "core/tile.h"

namespace fastmtr {

namespace {

constexpr uint64_t kSpare = 16 * 1024;  // items that a small catalogue can grow by before it moves to a larger store
constexpr int kItem = static_cast<int>(Domain::item);

}  // namespace

ItemStore::ItemStore(const Plan& plan, const Program& program, uint64_t n_items)
    : program_(program),
      capacity_(std::min(n_items + std::max(n_items, kSpare), kMaxItems)),
      keys_(sizeof(int64_t), capacity_),
      ids_(plan.ids_width[kItem] * sizeof(int32_t), capacity_),
      dense_(plan.dense_width[kItem] * sizeof(float), capacity_) {
  for (const Table& table : program.tables()) {
    tables_.emplace_back(table.row_bytes, capacity_);
    table_data_.push_back(tables_.back().row(0));
  }
  inputs_ = {keys_.as<int64_t>(), ids_.as<int32_t>(), dense_.as<float>()};
}

void ItemStore::open(SafeTensors&& file, const ItemInputs& inputs, uint32_t n) {
  file_ = std::move(file);
  inputs_ = inputs;
  owns_inputs_ = false;
  std::vector<uint32_t> slots(n);
  std::iota(slots.begin(), slots.end(), 0u);
  for (Region& table : tables_) table.grow(n);
  free_.reserve(n);
  used_ = n;
  compute(slots);
}

bool ItemStore::has_room(uint64_t n) const {
  const std::lock_guard lock(mutex_);
  return n <= free_.size() + (capacity_ - used_);
}

std::optional<std::vector<uint32_t>> ItemStore::take(uint64_t n) {
  if (!owns_inputs_) own_inputs();
  const std::lock_guard lock(mutex_);
  if (n > free_.size() + (capacity_ - used_)) return std::nullopt;
  std::vector<uint32_t> slots(n);
  const uint64_t again = std::min<uint64_t>(n, free_.size()), used = used_ + (n - again);
  for (Region* region : {&keys_, &ids_, &dense_}) region->grow(used);
  for (Region& table : tables_) table.grow(used);
  free_.reserve(used);  // so that giving back needs no memory
  std::copy(free_.end() - static_cast<ptrdiff_t>(again), free_.end(), slots.begin());
  free_.resize(free_.size() - again);
  std::iota(slots.begin() + static_cast<ptrdiff_t>(again), slots.end(), static_cast<uint32_t>(used_));
  used_ = used;
  std::sort(slots.begin(), slots.end());
  return slots;
}

void ItemStore::give_back(const std::vector<uint32_t>& slots) noexcept {
  const std::lock_guard lock(mutex_);
  free_.insert(free_.end(), slots.begin(), slots.end());
}

// The file's rows cannot grow. Versions that read them there go on.
void ItemStore::own_inputs() {
  const auto copy = [&](Region& to, const void* rows) {
    to.grow(used_);
    if (to.bytes() > 0) std::memcpy(to.row(0), rows, used_ * to.row_bytes());
  };
  copy(keys_, inputs_.keys);
  copy(ids_, inputs_.ids);
  copy(dense_, inputs_.dense);
  inputs_ = {keys_.as<int64_t>(), ids_.as<int32_t>(), dense_.as<float>()};
  owns_inputs_ = true;
}

void ItemStore::write(const std::vector<uint32_t>& slots, const ItemInputs& from) {
  const auto copy = [&](const Region& to, const void* rows) {
    if (to.row_bytes() == 0) return;
    for (size_t i = 0; i < slots.size(); ++i)
      std::memcpy(to.row(slots[i]), static_cast<const unsigned char*>(rows) + i * to.row_bytes(), to.row_bytes());
  };
  copy(keys_, from.keys);
  copy(ids_, from.ids);
  copy(dense_, from.dense);
  compute(slots);
  if (mirror_ != nullptr) written_.insert(written_.end(), slots.begin(), slots.end());
}

void ItemStore::move_in(const ItemStore& other, const std::vector<uint32_t>& slots) {
  const auto copy = [&](const Region& to, const void* rows) {
    for (size_t i = 0; i < slots.size() && to.row_bytes() > 0; ++i)
      std::memcpy(to.row(i), static_cast<const unsigned char*>(rows) + slots[i] * to.row_bytes(), to.row_bytes());
  };
  copy(keys_, other.inputs_.keys);
  copy(ids_, other.inputs_.ids);
  copy(dense_, other.inputs_.dense);
  for (size_t t = 0; t < tables_.size(); ++t) copy(tables_[t], other.table_data_[t]);
}

// Neighbouring slots go through the item phase together.
void ItemStore::compute(const std::vector<uint32_t>& slots) {
  const size_t tile = tile_rows(program_.floats_a_row(Domain::item), 0);
  Aligned<float> workspace(program_.tile_floats(Domain::item, std::min(tile, slots.size())));
  std::vector<Rows> scratch(program_.max_inputs());
  Context context;
  context.item_keys = inputs_.keys;
  context.item_ids = inputs_.ids;
  context.item_dense = inputs_.dense;
  context.tables = table_data_.data();
  context.tile = workspace.data();
  context.scratch = scratch.data();
  for (size_t first = 0, n = 0; first < slots.size(); first += n) {
    for (n = 1; n < tile && first + n < slots.size() && slots[first + n] == slots[first] + n;) ++n;
    context.item_row = slots[first];
    context.tile_rows = n;
    program_.run(Domain::item, n, context);
  }
}

std::shared_ptr<const DeviceMirror> ItemStore::mirror(const std::shared_ptr<const OnDevice>& device) {
  if (mirror_ == nullptr || mirror_->capacity() < used_) {  // versions that read the one before go on
    mirror_ = nullptr;
    const uint64_t room = used_ + used_ / 4 + 1024;
    const auto made = std::make_shared<const DeviceMirror>(device, std::min(room, capacity_));
    written_.resize(used_);
    std::iota(written_.begin(), written_.end(), 0u);
    upload(*made);
    mirror_ = made;
  } else {
    upload(*mirror_);
  }
  return mirror_;
}

void ItemStore::upload(const DeviceMirror& mirror) {
  std::vector<const void*> sources{inputs_.ids, inputs_.dense};
  sources.insert(sources.end(), table_data_.begin(), table_data_.end());
  const DeviceItems items{written_.size(), written_.data(), sources.data()};
  DeviceError error{};
  check_device(mirror.on().api().store_write(mirror.get(), &items, &error), error);
  written_.clear();
}

uint64_t ItemStore::bytes() const {
  uint64_t bytes = keys_.bytes() + ids_.bytes() + dense_.bytes();
  for (const Region& table : tables_) bytes += table.bytes();
  return bytes;
}

}  // namespace fastmtr
