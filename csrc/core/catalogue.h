// One version of the items: which there are, in which order, and where the store keeps them. Immutable once published.
//
// An item's row is its place in the order: items that are replaced keep their row, new ones come last, and after a
// delete the others close up.
#ifndef FASTMTR_CORE_CATALOGUE_H
#define FASTMTR_CORE_CATALOGUE_H

#include <memory>
#include <string>
#include <vector>

#include "core/device_model.h"
#include "core/item_store.h"
#include "core/key_map.h"
#include "fastmtr.h"

namespace fastmtr {

class Catalogue {
 public:
  // From catalogue.safetensors; the inputs stay where they are mapped.
  static std::unique_ptr<Catalogue> open(const std::string& path, const Plan& plan, const Program& program);
  // From the caller's arrays, which are copied.
  static std::unique_ptr<Catalogue> copy(const fmtr_catalogue_data& data, const Plan& plan, const Program& program);

  // The next version, with these items, checked by check_items(), added or replaced. There must be room for them.
  std::unique_ptr<Catalogue> with(const fmtr_catalogue_data& data) const;
  // The next version, without these items; keys that are not there are passed over.
  std::unique_ptr<Catalogue> without(const int64_t* keys, uint64_t n) const;
  // The same version in a store of its own, which has room for `more` items.
  std::unique_ptr<Catalogue> moved(uint64_t more, const Plan& plan) const;
  bool has_room(uint64_t more) const { return store_->has_room(more); }

  Catalogue(const Catalogue&) = delete;
  Catalogue& operator=(const Catalogue&) = delete;
  ~Catalogue();

  uint64_t version() const { return version_; }
  uint32_t n_items() const { return n_items_; }
  uint32_t slot(uint32_t row) const { return slots_.empty() ? row : slots_[row]; }
  // Slots of the rows from `first` on; NULL: they are the rows themselves.
  const uint32_t* slots(uint64_t first) const { return slots_.empty() ? nullptr : slots_.data() + first; }
  const KeyIndex& index() const { return index_; }
  const Program& program() const { return store_->program(); }
  void bind(Context& context) const;         // item inputs and tables
  uint64_t bytes() const { return bytes_; }  // beyond the mapped file; what versions share included

  // Of every item, in row order.
  void read_keys(int64_t* keys) const;
  void read(const Port& port, float* values) const;
  // Of n items.
  void read(const Port& port, const int64_t* keys, uint64_t n, float* values) const;

  // Brings it to the device, before readers can see it.
  void put_on(const std::shared_ptr<const OnDevice>& device);
  void put_keys_on_device() const {
    rows_->need_keys([this](int64_t* keys) { read_keys(keys); });
  }
  const DeviceCatalogue* on_device() const { return rows_ == nullptr ? nullptr : rows_->get(); }

  // Before readers can see it. The slots that it has no more go with `previous` (NULL: it is the first).
  void publish(uint64_t version, Catalogue* previous) noexcept;

 private:
  explicit Catalogue(std::shared_ptr<ItemStore> store);
  void read_slots(const Port& port, const uint32_t* slots, uint64_t n, float* values) const;
  void index_keys();
  void index_keys(const KeyIndex& before, const int64_t* keys, const uint32_t* slots, uint64_t n);
  void forget_plain_order();

  std::shared_ptr<ItemStore> store_;
  ItemInputs inputs_;
  uint32_t n_items_ = 0;
  std::vector<uint32_t> slots_;  // by row; empty: slot = row
  KeyIndex index_;
  std::unique_ptr<const DeviceRows> rows_;
  uint64_t version_ = 0, bytes_ = 0;
  std::vector<uint32_t> replaced_;  // slots that the version before has and this one has not
  // Slots that this version has and the next one has not; until it is published, those that it took.
  std::vector<uint32_t> gone_;
};

// Refuses, with FMTR_ERROR_ARGUMENT, items that are not there or too many, and with `status` what is wrong in them.
void check_items(const fmtr_catalogue_data& data, const Plan& plan, fmtr_status status);

}  // namespace fastmtr
#endif
