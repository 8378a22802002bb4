// The plugin's table of functions: see device.h.
#include <cstdio>

#include "core/status.h"
#include "cuda/model.h"
#include "cuda/session.h"

namespace fastmtr {

namespace {

using device::CallSession;
using device::LoadedModel;
using device::Store;
using device::Version;

template <class Body>
int32_t guarded(DeviceError* error, const Body& body) noexcept {
  try {
    device::use_device(0);
    body();
    return FMTR_OK;
  } catch (const Error& caught) {
    std::snprintf(error->text, sizeof error->text, "%s", caught.what());
    return caught.status();
  } catch (const std::bad_alloc&) {
    std::snprintf(error->text, sizeof error->text, "out of memory");
    return FMTR_ERROR_MEMORY;
  } catch (const std::exception& caught) {
    std::snprintf(error->text, sizeof error->text, "%s", caught.what());
    return FMTR_ERROR_INTERNAL;
  }
}

template <class To, class From>
To* as(From* pointer) {
  return reinterpret_cast<To*>(pointer);
}

int32_t get_properties(DeviceProperties* to, DeviceError* error) {
  std::string why;
  if (device::device_count(why) == 0) {
    std::snprintf(error->text, sizeof error->text, "%s", why.c_str());
    return FMTR_ERROR_BACKEND;
  }
  return guarded(error, [&] {
    const device::Properties found = device::properties(0);
    std::snprintf(to->name, sizeof to->name, "%s", found.name.c_str());
    to->blocks_at_once = found.multiprocessors;
    to->shared_bytes = static_cast<uint32_t>(found.shared_bytes);
    constexpr size_t kReservedBytes = 1024;  // of shared memory, by the runtime, for each block
    to->half_bytes = static_cast<uint32_t>(found.shared_bytes_multiprocessor / 2 - kReservedBytes);
    to->block_bytes = device::block_bytes();
    to->memory_bytes = found.memory_bytes;
  });
}

int32_t model_create(const DeviceProgram* program, DeviceModel** model, DeviceError* error) {
  return guarded(error, [&] { *model = as<DeviceModel>(new LoadedModel(*program)); });
}
void model_free(DeviceModel* model) { delete as<LoadedModel>(model); }
uint64_t model_bytes(const DeviceModel* model) { return as<const LoadedModel>(model)->bytes(); }

int32_t store_create(DeviceModel* model, uint64_t capacity, DeviceStore** store, DeviceError* error) {
  return guarded(error, [&] { *store = as<DeviceStore>(new Store(*as<LoadedModel>(model), capacity)); });
}
void store_free(DeviceStore* store) { delete as<Store>(store); }
int32_t store_write(DeviceStore* store, const DeviceItems* items, DeviceError* error) {
  return guarded(error, [&] { as<Store>(store)->write(*items); });
}
uint64_t store_bytes(const DeviceStore* store) { return as<const Store>(store)->bytes(); }

int32_t catalogue_create(DeviceStore* store, const uint32_t* slots, uint64_t n_items, DeviceCatalogue** catalogue,
                         DeviceError* error) {
  return guarded(error, [&] {
    auto version = std::make_unique<Version>(as<Store>(store), n_items);
    if (slots != nullptr && n_items > 0) {
      version->slots_here.assign(slots, slots + n_items);
      device::Stream stream;
      version->slots = device::Memory<uint32_t>(n_items);
      stream.copy_in(version->slots.data(), slots, n_items * sizeof *slots);
      stream.wait();
    }
    *catalogue = as<DeviceCatalogue>(version.release());
  });
}
void catalogue_free(DeviceCatalogue* catalogue) { delete as<Version>(catalogue); }
int32_t catalogue_keys(DeviceCatalogue* catalogue, const int64_t* keys, DeviceError* error) {
  return guarded(error, [&] { as<Version>(catalogue)->set_keys(keys); });
}

int32_t session_create(DeviceModel* model, DeviceSession** session, DeviceError* error) {
  return guarded(error, [&] { *session = as<DeviceSession>(new CallSession(*as<LoadedModel>(model))); });
}
void session_free(DeviceSession* session) { delete as<CallSession>(session); }
int32_t run(DeviceSession* session, const DeviceCall* call, DeviceError* error) {
  return guarded(error, [&] { as<CallSession>(session)->run(*call); });
}
int32_t request_output(DeviceSession* session, const DeviceCall* call, uint32_t index, float* values,
                       DeviceError* error) {
  return guarded(error, [&] { as<CallSession>(session)->request_output(*call, index, values); });
}

int32_t allocate(uint64_t bytes, void** memory, DeviceError* error) {
  return guarded(error, [&] { *memory = device::allocate(bytes, device::Place::device); });
}
void release(void* memory) { device::release(memory, device::Place::device); }
int32_t copy_out(void* to, const void* from, uint64_t bytes, DeviceError* error) {
  return guarded(error, [&] {
    device::Stream stream;
    stream.copy_out(to, from, bytes);
    stream.wait();
  });
}

constexpr DeviceApi kApi{
    kDeviceApiVersion,
    FASTMTR_VERSION,
    FASTMTR_DEVICE_NAME,
    get_properties,
    model_create,
    model_free,
    model_bytes,
    store_create,
    store_free,
    store_write,
    store_bytes,
    catalogue_create,
    catalogue_free,
    catalogue_keys,
    session_create,
    session_free,
    run,
    request_output,
    allocate,
    release,
    copy_out,
};

}  // namespace
}  // namespace fastmtr

extern "C" __attribute__((visibility("default"))) const fastmtr::DeviceApi* fmtr_device_api() { return &fastmtr::kApi; }
