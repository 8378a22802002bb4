#include "core/device_model.h"

#include "core/json.h"
#include "core/status.h"

namespace fastmtr {

OnDevice::OnDevice(const Plan& plan, const Program& program, DevicePrecision precision, const DevicePlugin& plugin)
    : api_(*plugin.api), properties_(plugin.properties), lowering_(plan, program, precision, plugin.properties) {
  DeviceError error{};
  check_device(api_.model_create(&lowering_.program(), &model_, &error), error);
}

OnDevice::~OnDevice() { api_.model_free(model_); }

std::string OnDevice::describe() const {
  return say("{\"name\": ", json_quote(api_.name), ", \"processor\": ", json_quote(properties_.name),
             ", \"precision\": \"", precision_name(precision()), "\", \"bytes\": ", bytes(),
             ", \"candidates\": ", lowering_.describe(), "}");
}

DeviceMirror::DeviceMirror(std::shared_ptr<const OnDevice> on, uint64_t capacity)
    : on_(std::move(on)), capacity_(capacity) {
  DeviceError error{};
  check_device(on_->api().store_create(on_->model(), capacity, &store_, &error), error);
}

DeviceMirror::~DeviceMirror() { on_->api().store_free(store_); }

DeviceRows::DeviceRows(std::shared_ptr<const DeviceMirror> mirror, const std::vector<uint32_t>& slots, uint64_t n_items)
    : mirror_(std::move(mirror)), n_items_(n_items) {
  DeviceError error{};
  check_device(mirror_->on().api().catalogue_create(mirror_->get(), slots.empty() ? nullptr : slots.data(), n_items,
                                                    &catalogue_, &error),
               error);
}

DeviceRows::~DeviceRows() { mirror_->on().api().catalogue_free(catalogue_); }

void DeviceRows::need_keys(const std::function<void(int64_t*)>& read) const {
  const std::lock_guard lock(mutex_);
  if (has_keys_) return;
  std::vector<int64_t> keys(n_items_);
  read(keys.data());
  DeviceError error{};
  check_device(mirror_->on().api().catalogue_keys(catalogue_, keys.data(), &error), error);
  has_keys_ = true;
}

DeviceRunner::DeviceRunner(const OnDevice& on) : on_(on) {
  DeviceError error{};
  check_device(on.api().session_create(on.model(), &session_, &error), error);
}

DeviceRunner::~DeviceRunner() { on_.api().session_free(session_); }

void DeviceRunner::run(const DeviceCall& call) const {
  DeviceError error{};
  check_device(on_.api().run(session_, &call, &error), error);
}

void DeviceRunner::request_output(const DeviceCall& call, size_t plan_output, float* values) const {
  DeviceError error{};
  check_device(on_.api().request_output(session_, &call, on_.output(plan_output), values, &error), error);
}

}  // namespace fastmtr
