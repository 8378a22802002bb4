#include "core/catalogue.h"

#include <algorithm>
#include <numeric>

#include "core/input_check.h"
#include "core/json.h"
#include "core/status.h"

namespace fastmtr {

namespace {

constexpr int kItem = static_cast<int>(Domain::item);
constexpr uint64_t kFewChanges = 1024;  // changed keys that are looked up apart, however small the catalogue

const Tensor& matrix(const SafeTensors& file, const std::string& name, std::string_view dtype,
                     const std::vector<uint64_t>& shape) {
  const Tensor& found = file.get(name, dtype);
  if (found.shape != shape)
    fail(FMTR_ERROR_BUNDLE, file.what(), ": ", quote(name), " has shape ", shape_text(found.shape), ", expected ",
         shape_text(shape));
  return found;
}

KeyMap map_of(const int64_t* keys, uint32_t n, fmtr_status status) {
  KeyMap map;
  const KeyMap::Repeat repeat = map.build(keys, n);
  if (repeat.first != kNoSlot)
    fail(status, "catalogue: item key ", keys[repeat.first], " stands twice, in rows ", repeat.first, " and ",
         repeat.second);
  return map;
}

}  // namespace

void check_items(const fmtr_catalogue_data& data, const Plan& plan, fmtr_status status) {
  const uint64_t n = data.n_items, ids_width = plan.ids_width[kItem], dense_width = plan.dense_width[kItem];
  if (n > kMaxItems) fail(FMTR_ERROR_ARGUMENT, "n_items is ", n, "; at most ", kMaxItems, " are possible");
  if (n > 0 && data.keys == nullptr) fail(FMTR_ERROR_ARGUMENT, "keys is NULL, but n_items is ", n);
  if (n > 0 && ids_width > 0 && data.ids == nullptr)
    fail(FMTR_ERROR_ARGUMENT, "ids is NULL, but the model reads ", ids_width, " id columns an item");
  if (n > 0 && dense_width > 0 && data.dense == nullptr)
    fail(FMTR_ERROR_ARGUMENT, "dense is NULL, but the model reads ", dense_width, " dense columns an item");
  InputCheck(plan, Domain::item).check(data.ids, data.dense, n, status);
}

Catalogue::Catalogue(std::shared_ptr<ItemStore> store) : store_(std::move(store)), inputs_(store_->inputs()) {}

Catalogue::~Catalogue() {
  if (!gone_.empty()) store_->give_back(gone_);
}

std::unique_ptr<Catalogue> Catalogue::open(const std::string& path, const Plan& plan, const Program& program) {
  SafeTensors file(path, "catalogue.safetensors");
  const Tensor& keys = file.get("keys", "I64");
  const uint64_t n = keys.shape.size() == 1 ? keys.shape[0] : 0;
  matrix(file, "keys", "I64", {n});
  if (n > kMaxItems) fail(FMTR_ERROR_BUNDLE, "catalogue.safetensors: ", n, " items; at most ", kMaxItems, " are read");
  const ItemInputs inputs{
      reinterpret_cast<const int64_t*>(keys.data),
      reinterpret_cast<const int32_t*>(matrix(file, "ids", "I32", {n, plan.ids_width[kItem]}).data),
      reinterpret_cast<const float*>(matrix(file, "dense", "F32", {n, plan.dense_width[kItem]}).data)};
  InputCheck(plan, Domain::item).check(inputs.ids, inputs.dense, n, FMTR_ERROR_BUNDLE);
  KeyMap map = map_of(inputs.keys, static_cast<uint32_t>(n), FMTR_ERROR_BUNDLE);
  auto store = std::make_shared<ItemStore>(plan, program, n);
  store->open(std::move(file), inputs, static_cast<uint32_t>(n));
  std::unique_ptr<Catalogue> catalogue(new Catalogue(std::move(store)));
  catalogue->n_items_ = static_cast<uint32_t>(n);
  catalogue->index_ = KeyIndex(std::move(map));
  return catalogue;
}

std::unique_ptr<Catalogue> Catalogue::copy(const fmtr_catalogue_data& data, const Plan& plan, const Program& program) {
  check_items(data, plan, FMTR_ERROR_SCHEMA);
  const uint32_t n = static_cast<uint32_t>(data.n_items);
  KeyMap map = map_of(data.keys, n, FMTR_ERROR_SCHEMA);
  auto store = std::make_shared<ItemStore>(plan, program, n);
  store->write(*store->take(n), {data.keys, data.ids, data.dense});
  std::unique_ptr<Catalogue> catalogue(new Catalogue(std::move(store)));
  catalogue->n_items_ = n;
  catalogue->index_ = KeyIndex(std::move(map));
  return catalogue;
}

std::unique_ptr<Catalogue> Catalogue::with(const fmtr_catalogue_data& data) const {
  const uint64_t n = data.n_items;
  const KeyMap given = map_of(data.keys, static_cast<uint32_t>(n), FMTR_ERROR_SCHEMA);
  std::vector<uint32_t> before(n);
  const uint64_t n_new = index_.find(data.keys, n, before.data());
  if (n_new > kMaxItems - n_items_)
    fail(FMTR_ERROR_ARGUMENT, n_items_, " items and ", n_new, " more; at most ", kMaxItems, " are possible");
  const auto slots = store_->take(n);
  if (!slots) fail(FMTR_ERROR_INTERNAL, "the store has no room for ", n, " items");
  try {
    store_->write(*slots, {data.keys, data.ids, data.dense});
    std::unique_ptr<Catalogue> next(new Catalogue(store_));
    next->n_items_ = static_cast<uint32_t>(n_items_ + n_new);
    next->slots_.reserve(next->n_items_);
    if (slots_.empty()) {
      next->slots_.resize(n_items_);
      std::iota(next->slots_.begin(), next->slots_.end(), 0u);
    } else {
      next->slots_ = slots_;
    }
    std::vector<bool> is_replaced(store_->n_slots());
    next->replaced_.reserve(n - n_new);
    for (uint32_t i = 0; i < n; ++i) {
      if (before[i] == kNoSlot) {
        next->slots_.push_back((*slots)[i]);
        continue;
      }
      is_replaced[before[i]] = true;
      next->replaced_.push_back(before[i]);
    }
    if (n_new < n)
      for (uint32_t row = 0; row < n_items_; ++row)
        if (is_replaced[next->slots_[row]]) next->slots_[row] = (*slots)[given.find(inputs_.keys[next->slots_[row]])];
    next->forget_plain_order();
    next->index_keys(index_, data.keys, slots->data(), n);
    next->gone_ = *slots;
    return next;
  } catch (...) {
    store_->give_back(*slots);
    throw;
  }
}

std::unique_ptr<Catalogue> Catalogue::without(const int64_t* keys, uint64_t n) const {
  std::vector<int64_t> gone_keys;
  std::vector<bool> goes(store_->n_slots());
  for (uint64_t i = 0; i < n; ++i) {
    const uint32_t slot = index_.find(keys[i]);
    if (slot == kNoSlot || goes[slot]) continue;
    goes[slot] = true;
    gone_keys.push_back(keys[i]);
  }
  std::unique_ptr<Catalogue> next(new Catalogue(store_));
  next->slots_.reserve(n_items_);
  for (uint32_t row = 0; row < n_items_; ++row) (goes[slot(row)] ? next->replaced_ : next->slots_).push_back(slot(row));
  next->n_items_ = static_cast<uint32_t>(next->slots_.size());
  next->forget_plain_order();
  const std::vector<uint32_t> none(gone_keys.size(), kNoSlot);
  next->index_keys(index_, gone_keys.data(), none.data(), none.size());
  return next;
}

std::unique_ptr<Catalogue> Catalogue::moved(uint64_t more, const Plan& plan) const {
  auto store = std::make_shared<ItemStore>(plan, store_->program(), n_items_ + more);
  std::vector<uint32_t> from(n_items_);
  for (uint32_t row = 0; row < n_items_; ++row) from[row] = slot(row);
  store->take(n_items_);
  store->move_in(*store_, from);
  std::unique_ptr<Catalogue> same(new Catalogue(std::move(store)));
  same->n_items_ = n_items_;
  same->index_keys();
  return same;
}

// Rows that are slots need no table, and are read faster.
void Catalogue::forget_plain_order() {
  uint32_t row = 0;
  while (row < n_items_ && slots_[row] == row) ++row;
  if (row == n_items_) slots_ = {};
}

// Few changed keys are looked up apart from the map that versions share; many make a new map.
void Catalogue::index_keys(const KeyIndex& before, const int64_t* keys, const uint32_t* slots, uint64_t n) {
  if (before.n_changed() + n > std::max<uint64_t>(kFewChanges, n_items_ / 16)) return index_keys();
  index_ = before.with(keys, slots, n);
}

void Catalogue::index_keys() {
  KeyMap map(n_items_);
  for (uint32_t row = 0; row < n_items_; ++row) map.set(inputs_.keys[slot(row)], slot(row));
  index_ = KeyIndex(std::move(map));
}

void Catalogue::put_on(const std::shared_ptr<const OnDevice>& device) {
  rows_ = std::make_unique<const DeviceRows>(store_->mirror(device), slots_, n_items_);
}

void Catalogue::publish(uint64_t version, Catalogue* previous) noexcept {
  version_ = version;
  bytes_ = store_->bytes() + slots_.size() * sizeof(uint32_t) + index_.bytes();
  gone_.clear();
  if (previous != nullptr) previous->gone_.swap(replaced_);
}

void Catalogue::bind(Context& context) const {
  context.item_ids = inputs_.ids;
  context.item_dense = inputs_.dense;
  context.tables = store_->tables();
}

void Catalogue::read_keys(int64_t* keys) const {
  for (uint32_t row = 0; row < n_items_; ++row) keys[row] = inputs_.keys[slot(row)];
}

void Catalogue::read(const Port& port, float* values) const { read_slots(port, slots(0), n_items_, values); }

void Catalogue::read(const Port& port, const int64_t* keys, uint64_t n, float* values) const {
  std::vector<uint32_t> slots(n);
  if (index_.find(keys, n, slots.data()) > 0) {
    const auto first = std::find(slots.begin(), slots.end(), kNoSlot) - slots.begin();
    fail(FMTR_ERROR_SCHEMA, "item ", keys[first], " (number ", first, ") is not in the catalogue of ", n_items_,
         " items");
  }
  read_slots(port, slots.data(), n, values);
}

// `slots` NULL: the first n.
void Catalogue::read_slots(const Port& port, const uint32_t* slots, uint64_t n, float* values) const {
  if (n == 0) return;
  Context context;
  bind(context);
  context.gather = slots;
  const Program& program = store_->program();
  program.kernels().copy(n, port.width, program.rows(port, Domain::candidate, context), {values, port.width});
}

}  // namespace fastmtr
