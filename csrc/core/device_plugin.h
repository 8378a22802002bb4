// Finding a device's plugin: a shared library beside this one, opened when somebody asks for the device.
#ifndef FASTMTR_CORE_DEVICE_PLUGIN_H
#define FASTMTR_CORE_DEVICE_PLUGIN_H

#include <string>
#include <vector>

#include "device.h"

namespace fastmtr {

struct DevicePlugin {
  const DeviceApi* api = nullptr;  // NULL: it cannot be used, and `why` says why
  DeviceProperties properties{};
  std::string why;
  bool there = false;  // the library, usable or not
};

// "cuda", and for tests "cuda-host". Opened once; the result stays.
const DevicePlugin& device_plugin(const std::string& name);

// The names that device_plugin() knows.
const std::vector<std::string>& device_names();

// Throws FMTR_ERROR_BACKEND with the reason. "auto": NULL where there is no such device; then the CPU computes.
const DevicePlugin* choose_device(const std::string& name);

// Throws what a function of the table says.
void check_device(int32_t status, const DeviceError& error);

}  // namespace fastmtr
#endif
