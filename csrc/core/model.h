// A loaded bundle: immutable and shared by threads, but for its catalogue, of which a new version can take the place of
// the current one at any time.
#ifndef FASTMTR_CORE_MODEL_H
#define FASTMTR_CORE_MODEL_H

#include <memory>
#include <mutex>
#include <string>

#include "core/catalogue_versions.h"
#include "core/device_model.h"
#include "core/input_check.h"
#include "core/plan.h"
#include "core/program.h"
#include "core/safetensors.h"

namespace fastmtr {

class Model {
 public:
  // `isa`: NULL for the best.
  Model(const std::string& directory, const char* isa, bool without_catalogue, Precision precision = Precision::fp32);
  // On a device; what the item phase makes is the CPU's, by `isa`.
  Model(const std::string& directory, const char* isa, bool without_catalogue, DevicePrecision precision,
        const DevicePlugin& device);
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const Plan& plan() const { return plan_; }
  const Program& program() const { return *program_; }
  const OnDevice* device() const { return device_.get(); }  // NULL: the CPU
  const InputCheck& check(Domain domain) const { return checks_[static_cast<int>(domain)]; }

  // What a session reads the catalogue through.
  CatalogueVersions& catalogues() const { return catalogues_; }

  // Each makes a new version, or throws and leaves the catalogue as it is.
  void set_catalogue(const fmtr_catalogue_data& data);
  void upsert(const fmtr_catalogue_data& data);
  uint64_t remove(const int64_t* keys, uint64_t n);  // returns how many of them there were

  // Calls body(const Catalogue*), NULL for none, with one version.
  template <class Body>
  auto read(const Body& body) const {
    CatalogueVersions::Reader reader(catalogues_);
    const CatalogueVersions::Snapshot snapshot(reader);
    return body(snapshot.get());
  }
  void read_keys(int64_t* keys, uint64_t capacity) const;
  // `keys` NULL: of all items; else of n.
  void read_item_output(const std::string& name, const int64_t* keys, uint64_t n, float* values,
                        uint64_t capacity) const;

  std::string describe() const;
  std::string explain() const;

 private:
  struct Files;
  Model(Files&& files, const Kernels& kernels, Precision precision, const DevicePlugin* device,
        DevicePrecision device_precision);
  uint64_t next_version() const;  // for the one thread that writes
  void publish(std::unique_ptr<Catalogue> next, uint64_t version);

  std::string plan_sha256_, weights_sha256_;  // as the manifest tells them
  SafeTensors weights_;
  Plan plan_;
  std::unique_ptr<const Program> program_;
  std::shared_ptr<const OnDevice> device_;
  InputCheck checks_[kDomains];
  std::mutex writer_;                     // held while a version is made: one after the other
  mutable CatalogueVersions catalogues_;  // its readers register themselves
};

}  // namespace fastmtr
#endif
