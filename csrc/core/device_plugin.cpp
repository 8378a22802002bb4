#include "core/device_plugin.h"

#include <dlfcn.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <optional>

#include "core/status.h"

namespace fastmtr {

namespace {

struct Known {
  const char* library;
  const char* built_with;
};

Known known(const std::string& name) {
  if (name == "cuda") return {"libfastmtr_cuda.so", "-DFASTMTR_CUDA=ON"};
  return {"libfastmtr_cuda_host.so", "-DFASTMTR_CUDA_HOST=ON"};
}

std::string path_of(const std::string& name) {
  const char* forced = std::getenv(name == "cuda" ? "FASTMTR_CUDA_PLUGIN" : "FASTMTR_CUDA_HOST_PLUGIN");
  if (forced != nullptr && *forced != '\0') return forced;
  Dl_info here{};
  if (::dladdr(reinterpret_cast<void*>(&fmtr_version), &here) == 0 || here.dli_fname == nullptr) return {};
  return (std::filesystem::path(here.dli_fname).parent_path() / known(name).library).string();
}

DevicePlugin open_plugin(const std::string& name) {
  DevicePlugin plugin;
  const std::string path = path_of(name);
  std::error_code ignored;
  if (path.empty() || !std::filesystem::exists(path, ignored)) {
    plugin.why = say("its plugin is not there (", path.empty() ? known(name).library : path, "): build fastmtr with ",
                     known(name).built_with);
    return plugin;
  }
  plugin.there = true;
  void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    plugin.why = say("its plugin cannot be loaded: ", ::dlerror());
    return plugin;
  }
  const auto get = reinterpret_cast<const DeviceApi* (*)()>(::dlsym(library, "fmtr_device_api"));
  const DeviceApi* api = get == nullptr ? nullptr : get();
  if (api == nullptr) {
    plugin.why = say(path, " is no plugin of fastmtr");
  } else if (api->api_version != kDeviceApiVersion || std::strcmp(api->fastmtr_version, fmtr_version()) != 0) {
    plugin.why =
        say("its plugin ", path, " is of fastmtr ", api->fastmtr_version, " (interface ", api->api_version,
            "), this is fastmtr ", fmtr_version(), " (interface ", kDeviceApiVersion, "): build both together");
  } else {
    DeviceError error{};
    if (api->properties(&plugin.properties, &error) != FMTR_OK)
      plugin.why = error.text;
    else
      plugin.api = api;
  }
  return plugin;  // the library stays open: what runs in it may outlive a model
}

}  // namespace

const std::vector<std::string>& device_names() {
  static const std::vector<std::string> names{"cuda", "cuda-host"};
  return names;
}

const DevicePlugin& device_plugin(const std::string& name) {
  static std::mutex mutex;
  static std::array<std::optional<DevicePlugin>, 2> opened;
  const std::lock_guard lock(mutex);
  auto& plugin = opened[name == "cuda" ? 0 : 1];
  if (!plugin) plugin = open_plugin(name);
  return *plugin;
}

const DevicePlugin* choose_device(const std::string& name) {
  if (name == "auto") {
    const DevicePlugin& cuda = device_plugin("cuda");
    return cuda.api == nullptr ? nullptr : &cuda;
  }
  for (const std::string& known : device_names()) {
    if (name != known) continue;
    const DevicePlugin& plugin = device_plugin(name);
    if (plugin.api == nullptr) fail(FMTR_ERROR_BACKEND, "device '", name, "' cannot be used here: ", plugin.why);
    return &plugin;
  }
  fail(FMTR_ERROR_BACKEND, "device must be 'cpu', 'cuda' or 'auto', found '", name, "'");
}

void check_device(int32_t status, const DeviceError& error) {
  if (status != FMTR_OK) throw Error(static_cast<fmtr_status>(status), error.text);
}

}  // namespace fastmtr
