// A loaded bundle: immutable and shared by threads, but for its catalogue, which is replaced as a whole.
#ifndef FASTMTR_CORE_MODEL_H
#define FASTMTR_CORE_MODEL_H

#include <memory>
#include <mutex>
#include <string>

#include "core/catalogue.h"
#include "core/input_check.h"
#include "core/plan.h"
#include "core/program.h"
#include "core/safetensors.h"

namespace fastmtr {

class Model {
 public:
  // `isa`: NULL for the best.
  Model(const std::string& directory, const char* isa, bool without_catalogue, Precision precision = Precision::fp32);
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const Plan& plan() const { return plan_; }
  const Program& program() const { return *program_; }
  const InputCheck& check(Domain domain) const { return checks_[static_cast<int>(domain)]; }

  std::shared_ptr<const Catalogue> catalogue() const;  // NULL: none
  void set_catalogue(const fmtr_catalogue_data& data);
  void read_item_output(const std::string& name, float* values, uint64_t capacity) const;

  std::string describe() const;

 private:
  struct Files;
  Model(Files&& files, const Kernels& kernels, Precision precision);

  SafeTensors weights_;
  Plan plan_;
  std::unique_ptr<const Program> program_;
  InputCheck checks_[kDomains];
  mutable std::mutex mutex_;  // of the pointer, not of what it points to
  std::shared_ptr<const Catalogue> catalogue_;
};

}  // namespace fastmtr
#endif
