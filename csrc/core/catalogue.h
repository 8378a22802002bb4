// The items: their keys, their packed inputs, and what the item phase computed from them. Immutable once built.
#ifndef FASTMTR_CORE_CATALOGUE_H
#define FASTMTR_CORE_CATALOGUE_H

#include <memory>
#include <vector>

#include "core/arena.h"
#include "core/key_map.h"
#include "core/program.h"
#include "core/safetensors.h"
#include "fastmtr.h"

namespace fastmtr {

class Catalogue {
 public:
  // From catalogue.safetensors; the inputs stay where they are mapped.
  static std::shared_ptr<const Catalogue> open(const std::string& path, const Plan& plan, const Program& program);
  // From the caller's arrays, which are copied.
  static std::shared_ptr<const Catalogue> copy(const fmtr_catalogue_data& data, const Plan& plan,
                                               const Program& program);

  uint32_t n_items() const { return n_items_; }
  const int64_t* keys() const { return keys_; }
  const KeyMap& rows() const { return map_; }
  void bind(Context& context) const;  // item inputs and tables
  uint64_t bytes() const;             // beyond the mapped file

  // An item value of every item, in row order.
  void read(const Port& port, const Program& program, float* values) const;

 private:
  void build(const Plan& plan, const Program& program, fmtr_status status);

  SafeTensors file_;
  Aligned<int64_t> own_keys_;
  Aligned<int32_t> own_ids_;
  Aligned<float> own_dense_;
  const int64_t* keys_ = nullptr;
  const int32_t* ids_ = nullptr;
  const float* dense_ = nullptr;
  uint32_t n_items_ = 0;
  KeyMap map_;
  std::vector<Aligned<float>> tables_;
  std::vector<float*> table_data_;
};

}  // namespace fastmtr
#endif
