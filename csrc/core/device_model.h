// What a model, its catalogue's versions and its sessions have on a device.
#ifndef FASTMTR_CORE_DEVICE_MODEL_H
#define FASTMTR_CORE_DEVICE_MODEL_H

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/device_lowering.h"
#include "core/device_plugin.h"
#include "core/item_store.h"

namespace fastmtr {

class OnDevice {
 public:
  OnDevice(const Plan& plan, const Program& program, DevicePrecision precision, const DevicePlugin& plugin);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  const DeviceApi& api() const { return api_; }
  DeviceModel* model() const { return model_; }
  DevicePrecision precision() const { return lowering_.program().precision; }
  uint32_t output(size_t plan_output) const { return lowering_.output(plan_output); }
  uint64_t bytes() const { return api_.model_bytes(model_); }
  std::string describe() const;  // JSON text

 private:
  const DeviceApi& api_;
  const DeviceProperties properties_;
  DeviceLowering lowering_;
  DeviceModel* model_ = nullptr;
};

// An item store's slots on the device; versions of a catalogue share it as they share the store.
class DeviceMirror {
 public:
  DeviceMirror(std::shared_ptr<const OnDevice> on, uint64_t capacity);
  ~DeviceMirror();
  DeviceMirror(const DeviceMirror&) = delete;
  DeviceMirror& operator=(const DeviceMirror&) = delete;

  const OnDevice& on() const { return *on_; }
  uint64_t capacity() const { return capacity_; }
  DeviceStore* get() const { return store_; }
  uint64_t bytes() const { return on_->api().store_bytes(store_); }

 private:
  std::shared_ptr<const OnDevice> on_;
  uint64_t capacity_;
  DeviceStore* store_ = nullptr;
};

// A version of a catalogue.
class DeviceRows {
 public:
  DeviceRows(std::shared_ptr<const DeviceMirror> mirror, const std::vector<uint32_t>& slots, uint64_t n_items);
  ~DeviceRows();
  DeviceRows(const DeviceRows&) = delete;
  DeviceRows& operator=(const DeviceRows&) = delete;

  const DeviceCatalogue* get() const { return catalogue_; }
  // Its keys go there at the first call: read(keys) fills them in, by row. By any thread.
  void need_keys(const std::function<void(int64_t*)>& read) const;
  uint64_t bytes() const { return mirror_->bytes(); }

 private:
  std::shared_ptr<const DeviceMirror> mirror_;
  DeviceCatalogue* catalogue_ = nullptr;
  uint64_t n_items_;
  mutable std::mutex mutex_;
  mutable bool has_keys_ = false;
};

// One thread's stream and memory.
class DeviceRunner {
 public:
  explicit DeviceRunner(const OnDevice& on);
  ~DeviceRunner();
  DeviceRunner(const DeviceRunner&) = delete;
  DeviceRunner& operator=(const DeviceRunner&) = delete;

  void run(const DeviceCall& call) const;
  void request_output(const DeviceCall& call, size_t plan_output, float* values) const;

 private:
  const OnDevice& on_;
  DeviceSession* session_ = nullptr;
};

}  // namespace fastmtr
#endif
