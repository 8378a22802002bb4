// The C ABI over the engine: arguments looked at, options read by their size, exceptions turned into a status.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <memory>
#include <string>
#include <unordered_map>

#include "core/device_plugin.h"
#include "core/features.h"
#include "core/json.h"
#include "core/model.h"
#include "core/session.h"
#include "core/status.h"
#include "fastmtr.h"
#include "registry.h"

struct fmtr_model {
  std::shared_ptr<fastmtr::Model> model;
};

struct fmtr_features {
  std::unique_ptr<const fastmtr::Features> features;
};

struct fmtr_session {
  fastmtr::Session session;  // shares the model: freeing in the wrong order is no crash
};

namespace {

using fastmtr::fail;
using fastmtr::guard;

template <class T>
T& deref(T* pointer, const char* name) {
  if (pointer == nullptr) fail(FMTR_ERROR_ARGUMENT, name, " is NULL");
  return *pointer;
}

// The caller's struct may be of an earlier version, which had its first `least` bytes: members that came later are then
// zero, which means what it meant before them. Or of a later one: what this one does not know of must then be zero,
// that is, not asked for.
template <class Options>
Options read_options(const Options* options, const char* name, size_t least = sizeof(Options)) {
  const size_t size = options->struct_size;
  if (size < least)
    fail(FMTR_ERROR_ARGUMENT, name, "->struct_size is ", size, ", expected sizeof(", name, ") = ", sizeof(Options));
  const unsigned char* bytes = reinterpret_cast<const unsigned char*>(options);
  if (size > sizeof(Options) &&
      std::any_of(bytes + sizeof(Options), bytes + size, [](unsigned char byte) { return byte != 0; }))
    fail(FMTR_ERROR_ARGUMENT, name, " sets a member that fastmtr ", fmtr_version(),
         " does not know: the caller was built for a later version");
  Options copy{};
  std::memcpy(&copy, options, std::min(size, sizeof copy));
  return copy;
}

fmtr_batch read_batch(const fmtr_batch* batch) {
  const fmtr_batch copy = read_options(&deref(batch, "batch"), "fmtr_batch", offsetof(fmtr_batch, catalogue_version));
  if (copy.unknown_items != FMTR_UNKNOWN_ERROR && copy.unknown_items != FMTR_UNKNOWN_SKIP)
    fail(FMTR_ERROR_ARGUMENT, "unknown_items is ", static_cast<int>(copy.unknown_items),
         ", expected FMTR_UNKNOWN_ERROR or FMTR_UNKNOWN_SKIP");
  return copy;
}

// A number of the current catalogue, 0 without one.
template <class Number>
uint64_t of_catalogue(const fmtr_model* model, const Number& number) {
  uint64_t found = 0;
  guard([&] {
    if (model != nullptr)
      model->model->read([&](const fastmtr::Catalogue* catalogue) {
        if (catalogue != nullptr) found = number(*catalogue);
      });
  });
  return found;
}

char* give_text(const std::string& text) {
  char* copy = new char[text.size() + 1];
  std::memcpy(copy, text.c_str(), text.size() + 1);
  return copy;
}

}  // namespace

uint32_t fmtr_abi_version(void) { return FMTR_ABI_VERSION; }
const char* fmtr_version(void) { return FASTMTR_VERSION; }
const char* fmtr_last_error(void) { return fastmtr::last_error(); }

const char* fmtr_status_name(fmtr_status status) {
  switch (status) {
    case FMTR_OK:
      return "FMTR_OK";
    case FMTR_ERROR_ARGUMENT:
      return "FMTR_ERROR_ARGUMENT";
    case FMTR_ERROR_SCHEMA:
      return "FMTR_ERROR_SCHEMA";
    case FMTR_ERROR_BUNDLE:
      return "FMTR_ERROR_BUNDLE";
    case FMTR_ERROR_BACKEND:
      return "FMTR_ERROR_BACKEND";
    case FMTR_ERROR_MEMORY:
      return "FMTR_ERROR_MEMORY";
    case FMTR_ERROR_INTERNAL:
      return "FMTR_ERROR_INTERNAL";
    case FMTR_ERROR_STALE:
      return "FMTR_ERROR_STALE";
  }
  return "unknown status";
}

fmtr_status fmtr_info(char** json) {
  return guard([&] { deref(json, "json") = give_text(fastmtr::info_json()); });
}

void fmtr_string_free(char* text) { delete[] text; }

static fastmtr::DevicePrecision device_precision_of(fmtr_precision precision) {
  switch (precision) {
    case FMTR_FP32:
      return fastmtr::DevicePrecision::fp32;
    case FMTR_FP16:
      return fastmtr::DevicePrecision::fp16;
    case FMTR_TF32:
      return fastmtr::DevicePrecision::tf32;
    case FMTR_BF16:
      return fastmtr::DevicePrecision::bf16;
    case FMTR_INT8:
      fail(FMTR_ERROR_BACKEND, "precision int8 is the CPU's; a GPU has fp32, tf32, fp16 and bf16");
  }
  fail(FMTR_ERROR_ARGUMENT, "precision is ", static_cast<int>(precision),
       ", expected FMTR_FP32, FMTR_TF32, FMTR_FP16 or FMTR_BF16");
}

static fastmtr::Precision precision_of(fmtr_precision precision) {
  switch (precision) {
    case FMTR_FP32:
      return fastmtr::Precision::fp32;
    case FMTR_FP16:
      return fastmtr::Precision::fp16;
    case FMTR_INT8:
      return fastmtr::Precision::int8;
    case FMTR_TF32:
    case FMTR_BF16:
      fail(FMTR_ERROR_BACKEND, "precision ", precision == FMTR_TF32 ? "tf32" : "bf16",
           " is a GPU's; the CPU has fp32, fp16 and int8");
  }
  fail(FMTR_ERROR_ARGUMENT, "precision is ", static_cast<int>(precision),
       ", expected FMTR_FP32, FMTR_FP16 or FMTR_INT8");
}

fmtr_status fmtr_model_load(const char* directory, const fmtr_load_options* options, fmtr_model** model) {
  return guard([&] {
    deref(model, "model") = nullptr;
    fmtr_load_options chosen{sizeof(fmtr_load_options), nullptr, 0, FMTR_FP32, nullptr};
    if (options != nullptr) chosen = read_options(options, "fmtr_load_options", offsetof(fmtr_load_options, precision));
    const char* path = &deref(directory, "directory");
    const bool without_catalogue = chosen.without_catalogue != 0;
    const std::string device = chosen.device == nullptr ? "cpu" : chosen.device;
    const fastmtr::DevicePlugin* plugin = device == "cpu" ? nullptr : fastmtr::choose_device(device);
    *model = new fmtr_model{
        plugin == nullptr
            ? std::make_shared<fastmtr::Model>(path, chosen.isa, without_catalogue, precision_of(chosen.precision))
            : std::make_shared<fastmtr::Model>(path, chosen.isa, without_catalogue,
                                               device_precision_of(chosen.precision), *plugin)};
  });
}

void fmtr_model_free(fmtr_model* model) { delete model; }

fmtr_status fmtr_model_describe(const fmtr_model* model, char** json) {
  return guard([&] { deref(json, "json") = give_text(deref(model, "model").model->describe()); });
}

fmtr_status fmtr_model_explain(const fmtr_model* model, char** json) {
  return guard([&] { deref(json, "json") = give_text(deref(model, "model").model->explain()); });
}

uint64_t fmtr_model_width(const fmtr_model* model, fmtr_domain domain, fmtr_kind kind) {
  if (model == nullptr || domain < FMTR_REQUEST || domain > FMTR_CANDIDATE) return 0;
  const fastmtr::Plan& plan = model->model->plan();
  return kind == FMTR_IDS ? plan.ids_width[domain] : plan.dense_width[domain];
}

uint64_t fmtr_model_n_tasks(const fmtr_model* model) {
  return model == nullptr ? 0 : model->model->plan().tasks.size();
}

uint64_t fmtr_model_n_items(const fmtr_model* model) {
  return of_catalogue(model, [](const fastmtr::Catalogue& catalogue) { return catalogue.n_items(); });
}

uint64_t fmtr_model_catalogue_version(const fmtr_model* model) {
  return of_catalogue(model, [](const fastmtr::Catalogue& catalogue) { return catalogue.version(); });
}

fmtr_status fmtr_model_set_catalogue(fmtr_model* model, const fmtr_catalogue_data* data) {
  return guard(
      [&] { deref(model, "model").model->set_catalogue(read_options(&deref(data, "data"), "fmtr_catalogue_data")); });
}

fmtr_status fmtr_model_upsert(fmtr_model* model, const fmtr_catalogue_data* data) {
  return guard([&] { deref(model, "model").model->upsert(read_options(&deref(data, "data"), "fmtr_catalogue_data")); });
}

fmtr_status fmtr_model_delete(fmtr_model* model, const int64_t* keys, uint64_t n, uint64_t* deleted) {
  return guard([&] {
    fastmtr::Model& from = *deref(model, "model").model;
    if (n > 0) deref(keys, "keys");
    const uint64_t found = from.remove(keys, n);
    if (deleted != nullptr) *deleted = found;
  });
}

fmtr_status fmtr_model_keys(const fmtr_model* model, int64_t* keys, uint64_t capacity) {
  return guard([&] { deref(model, "model").model->read_keys(keys, capacity); });
}

fmtr_status fmtr_model_item_output(const fmtr_model* model, const char* name, float* values, uint64_t capacity) {
  return guard(
      [&] { deref(model, "model").model->read_item_output(&deref(name, "name"), nullptr, 0, values, capacity); });
}

fmtr_status fmtr_model_item_output_of(const fmtr_model* model, const char* name, const int64_t* keys, uint64_t n,
                                      float* values, uint64_t capacity) {
  return guard([&] {
    const fastmtr::Model& of = *deref(model, "model").model;
    static const int64_t nothing = 0;  // NULL would mean all items
    if (n > 0) deref(keys, "keys");
    of.read_item_output(&deref(name, "name"), n > 0 ? keys : &nothing, n, values, capacity);
  });
}

fmtr_status fmtr_session_create(fmtr_model* model, const fmtr_session_options* options, fmtr_session** session) {
  return guard([&] {
    deref(session, "session") = nullptr;
    fmtr_session_options chosen{sizeof(fmtr_session_options), 1, 0};
    if (options != nullptr) chosen = read_options(options, "fmtr_session_options");
    *session = new fmtr_session{{deref(model, "model").model, chosen.threads, chosen.tile}};
  });
}

void fmtr_session_free(fmtr_session* session) { delete session; }

fmtr_status fmtr_score(fmtr_session* session, const fmtr_batch* batch, float* scores, float* fused) {
  return guard([&] { deref(session, "session").session.score(read_batch(batch), scores, fused); });
}

fmtr_status fmtr_rank(fmtr_session* session, const fmtr_batch* batch, uint64_t k, uint64_t* positions, float* fused,
                      float* scores, uint64_t* counts) {
  return guard([&] {
    deref(session, "session").session.rank(read_batch(batch), {k, positions, fused, scores, counts});
  });
}

fmtr_status fmtr_rank_certified(fmtr_session* session, const fmtr_batch* batch, uint64_t k,
                                const fmtr_certify_options* options, uint64_t* positions, float* fused, float* scores,
                                uint64_t* counts, uint64_t* rescored) {
  return guard([&] {
    fmtr_certify_options chosen{sizeof(fmtr_certify_options), 0, 0};
    if (options != nullptr) chosen = read_options(options, "fmtr_certify_options");
    if (!(chosen.width >= 0) || !std::isfinite(chosen.width))
      fail(FMTR_ERROR_ARGUMENT, "width is ", double{chosen.width}, ", expected a number that is not negative");
    constexpr float kSafety = 2;
    if (chosen.safety == 0) chosen.safety = kSafety;
    if (!(chosen.safety >= 1) || !std::isfinite(chosen.safety))
      fail(FMTR_ERROR_ARGUMENT, "safety is ", double{chosen.safety}, ", expected at least 1, or 0 for ",
           double{kSafety});
    deref(session, "session")
        .session.rank_certified(read_batch(batch), {k, positions, fused, scores, counts},
                                {{chosen.width, chosen.safety}, rescored});
  });
}

fmtr_status fmtr_precision_errors(fmtr_session* session, const fmtr_batch* batch, float* errors) {
  return guard([&] { deref(session, "session").session.errors(read_batch(batch), errors); });
}

fmtr_status fmtr_profile(fmtr_session* session, const fmtr_batch* batch, uint64_t k, uint64_t repeats, char** json) {
  return guard([&] {
    deref(json, "json") = nullptr;
    if (repeats == 0) fail(FMTR_ERROR_ARGUMENT, "repeats is 0, expected at least 1");
    *json = give_text(deref(session, "session").session.profile(read_batch(batch), k, repeats));
  });
}

fmtr_status fmtr_request_output(fmtr_session* session, const fmtr_batch* batch, const char* name, float* values,
                                uint64_t capacity) {
  return guard([&] {
    deref(session, "session").session.request_output(read_batch(batch), &deref(name, "name"), values, capacity);
  });
}

static const fastmtr::DeviceApi& device_of(const fmtr_model* model) {
  const fastmtr::OnDevice* device = deref(model, "model").model->device();
  if (device == nullptr) fail(FMTR_ERROR_BACKEND, "the model is on the CPU, which has no memory of its own");
  return device->api();
}

fmtr_status fmtr_device_allocate(const fmtr_model* model, uint64_t bytes, void** memory) {
  return guard([&] {
    fastmtr::DeviceError error{};
    deref(memory, "memory") = nullptr;
    fastmtr::check_device(device_of(model).allocate(bytes, memory, &error), error);
  });
}

void fmtr_device_free(const fmtr_model* model, void* memory) {
  if (memory != nullptr) guard([&] { device_of(model).release(memory); });
}

fmtr_status fmtr_device_copy_out(const fmtr_model* model, void* to, const void* from, uint64_t bytes) {
  return guard([&] {
    fastmtr::DeviceError error{};
    fastmtr::check_device(device_of(model).copy_out(to, from, bytes, &error), error);
  });
}

fmtr_status fmtr_rank_device_items(fmtr_session* session, const fmtr_batch* batch, const fmtr_device_items* items,
                                   uint64_t k, uint64_t* positions, int64_t* items_out, float* fused, float* scores,
                                   uint64_t* counts) {
  return guard([&] {
    const fmtr_device_items chosen = read_options(&deref(items, "items"), "fmtr_device_items");
    deref(session, "session")
        .session.rank_device_items(read_batch(batch),
                                   {chosen.items, chosen.are_rows != 0, chosen.results_on_device != 0,
                                    chosen.wait_for_stream != 0, chosen.stream, items_out},
                                   {k, positions, fused, scores, counts});
  });
}

fmtr_status fmtr_request_output_device(fmtr_session* session, const fmtr_batch* batch, const char* name, float* values,
                                       uint64_t capacity) {
  return guard([&] {
    deref(session, "session").session.request_output(read_batch(batch), &deref(name, "name"), values, capacity, true);
  });
}

fmtr_status fmtr_features_load(const char* directory, fmtr_features** features) {
  return guard([&] {
    deref(features, "features") = nullptr;
    *features = new fmtr_features{fastmtr::Features::load(&deref(directory, "directory"))};
  });
}

fmtr_status fmtr_features_create(const char* json, uint64_t json_size, const fmtr_array* arrays, uint64_t n_arrays,
                                 fmtr_features** features) {
  return guard([&] {
    deref(features, "features") = nullptr;
    deref(json, "json");
    std::unordered_map<std::string, fastmtr::Tensor> named;
    if (n_arrays > 0) deref(arrays, "arrays");
    for (uint64_t i = 0; i < n_arrays; ++i) {
      const fmtr_array& array = arrays[i];
      fastmtr::Tensor tensor;
      tensor.dtype = &deref(array.dtype, "an array's dtype");
      const uint64_t element = fastmtr::element_bytes(tensor.dtype);
      if (element == 0) fail(FMTR_ERROR_ARGUMENT, "arrays[", i, "].dtype is ", fastmtr::quote(tensor.dtype));
      if (array.rank > 8)
        fail(FMTR_ERROR_ARGUMENT, "arrays[", i, "] has ", array.rank, " dimensions, at most 8 are read");
      if (array.rank > 0) tensor.shape.assign(&deref(array.shape, "an array's shape"), array.shape + array.rank);
      tensor.bytes = tensor.count() * element;
      tensor.data = static_cast<const unsigned char*>(array.data);
      if (tensor.bytes > 0) deref(tensor.data, "an array's data");
      named.emplace(&deref(array.name, "an array's name"), std::move(tensor));
    }
    const auto find = [&](const std::string& name) -> const fastmtr::Tensor* {
      const auto found = named.find(name);
      return found == named.end() ? nullptr : &found->second;
    };
    *features = new fmtr_features{
        std::make_unique<fastmtr::Features>(std::string_view(json, static_cast<size_t>(json_size)), find)};
  });
}

void fmtr_features_free(fmtr_features* features) { delete features; }

fmtr_status fmtr_features_describe(const fmtr_features* features, char** json) {
  return guard([&] { deref(json, "json") = give_text(deref(features, "features").features->describe()); });
}

fmtr_status fmtr_features_column(const fmtr_features* features, fmtr_domain domain, const char* name,
                                 uint32_t* column) {
  return guard([&] {
    const fastmtr::FeatureDomain& of = deref(features, "features").features->domain(domain);
    const auto found = of.column_of.find(&deref(name, "name"));
    if (found == of.column_of.end())
      fail(FMTR_ERROR_SCHEMA, fastmtr::quote(name),
           " is no raw column of that domain; fmtr_features_describe lists them");
    deref(column, "column") = found->second;
  });
}

uint64_t fmtr_features_width(const fmtr_features* features, fmtr_domain domain, fmtr_kind kind) {
  uint64_t width = 0;
  guard([&] {
    const fastmtr::FeatureDomain& of = deref(features, "features").features->domain(domain);
    width = kind == FMTR_IDS ? of.ids : of.dense;
  });
  return width;
}

fmtr_status fmtr_features_encode(const fmtr_features* features, fmtr_domain domain, const fmtr_value* values,
                                 uint64_t n, const int32_t* base_ids, const float* base_dense, int32_t* ids,
                                 float* dense) {
  return guard([&] {
    if (n > 0) deref(values, "values");
    deref(features, "features").features->encode(domain, values, n, base_ids, base_dense, ids, dense);
  });
}

fmtr_status fmtr_features_counts(const fmtr_features* features, char** json) {
  return guard([&] { deref(json, "json") = give_text(deref(features, "features").features->counts()); });
}
