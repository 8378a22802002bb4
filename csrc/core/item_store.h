// Where the items of a catalogue are kept: keys, packed inputs, and what the item phase computed from them.
//
// Each item is in a slot. Versions of a catalogue share a store: an item that is new or replaced gets a slot that no
// living version reads, so a slot does not change while anybody can see it. One thread at a time writes (that which
// makes the next version), many read.
#ifndef FASTMTR_CORE_ITEM_STORE_H
#define FASTMTR_CORE_ITEM_STORE_H

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "core/plan.h"
#include "core/program.h"
#include "core/region.h"
#include "core/safetensors.h"

namespace fastmtr {

constexpr uint64_t kMaxItems = UINT32_MAX - 2;  // slots are 32-bit numbers, the last two of which mean something else

class OnDevice;
class DeviceMirror;

// One row an item.
struct ItemInputs {
  const int64_t* keys = nullptr;
  const int32_t* ids = nullptr;
  const float* dense = nullptr;
};

class ItemStore {
 public:
  // With room for n_items, and to spare.
  ItemStore(const Plan& plan, const Program& program, uint64_t n_items);
  ItemStore(const ItemStore&) = delete;
  ItemStore& operator=(const ItemStore&) = delete;

  // Fills the first n slots of an empty store from inputs that stay where they are, in a mapped file.
  void open(SafeTensors&& file, const ItemInputs& inputs, uint32_t n);

  // n slots in ascending order; none where there is no room for so many. The slots given back come first.
  std::optional<std::vector<uint32_t>> take(uint64_t n);
  void give_back(const std::vector<uint32_t>& slots) noexcept;
  bool has_room(uint64_t n) const;

  // Item i of `from` into slots[i], and what the item phase computes from it.
  void write(const std::vector<uint32_t>& slots, const ItemInputs& from);
  // The item in slots[i] of another store of the same program into slot i, which is taken.
  void move_in(const ItemStore& other, const std::vector<uint32_t>& slots);

  // The same slots on a device, which is given what has been written since the last call. For the writer.
  std::shared_ptr<const DeviceMirror> mirror(const std::shared_ptr<const OnDevice>& device);

  // For the writer: where the next version finds its inputs, and how many slots there are, taken or not.
  const ItemInputs& inputs() const { return inputs_; }
  uint64_t n_slots() const { return used_; }
  unsigned char* const* tables() const { return table_data_.data(); }
  const Program& program() const { return program_; }
  uint64_t bytes() const;  // beyond the mapped file

 private:
  void own_inputs();
  void upload(const DeviceMirror& mirror);
  void compute(const std::vector<uint32_t>& slots);

  const Program& program_;
  uint64_t capacity_;
  SafeTensors file_;
  ItemInputs inputs_;
  bool owns_inputs_ = true;
  Region keys_, ids_, dense_;
  std::vector<Region> tables_;
  std::vector<unsigned char*> table_data_;
  std::vector<uint32_t> written_;               // slots, since the mirror was brought up to date
  std::shared_ptr<const DeviceMirror> mirror_;  // NULL: there was none yet

  mutable std::mutex mutex_;  // of what follows: readers that leave give slots back
  uint64_t used_ = 0;         // slots that were ever taken
  std::vector<uint32_t> free_;
};

}  // namespace fastmtr
#endif
