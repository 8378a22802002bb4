// Python's view of the C ABI: arrays in, arrays out, statuses as exceptions. Knows nothing of the engine but fastmtr.h.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "counting_bindings.h"
#include "device_arrays.h"
#include "fastmtr.h"
#include "feature_bindings.h"
#include "python_errors.h"

namespace py = pybind11;

namespace {

using namespace fastmtr::python;

template <class Body>
fmtr_status without_gil(const Body& body) {
  const py::gil_scoped_release released;
  return body();
}

// Runs without the GIL; the message of a failure is read on the same thread.
template <class Body>
void call(const Body& body) {
  check(without_gil(body));
}

template <class T>
struct TypeName;
template <>
struct TypeName<int32_t> {
  static constexpr const char* text = "int32";
};
template <>
struct TypeName<int64_t> {
  static constexpr const char* text = "int64";
};
template <>
struct TypeName<uint64_t> {
  static constexpr const char* text = "uint64";
};
template <>
struct TypeName<float> {
  static constexpr const char* text = "float32";
};

std::string shape_text(const py::array& array) { return py::str(array.attr("shape")); }

// An argument as it is: never converted, so that nothing is copied or rounded without the caller's knowledge.
template <class T>
py::array array_of(const py::object& object, const char* name, py::ssize_t n_dims) {
  const auto expected = [n_dims] {  // made for a mistake alone: it takes as long as the checks
    return std::string("expected a NumPy array of ") + TypeName<T>::text + ", C-contiguous, with " +
           std::to_string(n_dims) + (n_dims == 1 ? " dimension" : " dimensions");
  };
  if (!py::isinstance<py::array>(object))
    raise(PyExc_TypeError, std::string(name) + " is of type " +
                               std::string(py::str(py::type::of(object).attr("__name__"))) + ", " + expected());
  py::array array = py::reinterpret_borrow<py::array>(object);
  if (!array.dtype().is(py::dtype::of<T>()) && !array.dtype().equal(py::dtype::of<T>()))
    raise(PyExc_TypeError, std::string(name) + " has dtype " + std::string(py::str(array.dtype())) + ", " + expected());
  if (array.ndim() != n_dims)
    raise(PyExc_TypeError, std::string(name) + " has shape " + shape_text(array) + ", " + expected());
  constexpr int flags = int{py::array::c_style} | int{py::detail::npy_api::NPY_ARRAY_ALIGNED_};
  if ((array.flags() & flags) != flags)
    raise(PyExc_TypeError,
          std::string(name) + " is not contiguous in memory, " + expected() + ": use numpy.ascontiguousarray");
  return array;
}

// A packed matrix. None stands for one without columns. `rows` is its number of rows, once any argument has told it.
template <class T>
class Matrix {
 public:
  Matrix(const py::object& object, const char* name, uint64_t width, std::optional<uint64_t>& rows) {
    if (object.is_none()) {
      if (width > 0)
        raise("SchemaError",
              std::string(name) + " is None, expected an array with " + std::to_string(width) + " columns");
      return;
    }
    array_ = array_of<T>(object, name, 2);
    const auto n = static_cast<uint64_t>(array_.shape(0));
    if (static_cast<uint64_t>(array_.shape(1)) != width)
      raise("SchemaError", std::string(name) + " has shape " + shape_text(array_) + ", expected " +
                               std::to_string(width) + " columns");
    if (rows && *rows != n)
      raise("SchemaError",
            std::string(name) + " has " + std::to_string(n) + " rows, expected " + std::to_string(*rows));
    rows = n;
    data_ = static_cast<const T*>(array_.data());
  }
  const T* data() const { return data_; }

 private:
  py::array array_;
  const T* data_ = nullptr;
};

template <class T>
T* mutable_data(py::array_t<T>& array) {
  return array.mutable_data();
}

fmtr_precision precision_of(const std::string& name) {
  if (name == "fp32") return FMTR_FP32;
  if (name == "fp16") return FMTR_FP16;
  if (name == "int8") return FMTR_INT8;
  if (name == "tf32") return FMTR_TF32;
  if (name == "bf16") return FMTR_BF16;
  raise(PyExc_ValueError, "precision must be 'fp32', 'fp16', 'int8', 'tf32' or 'bf16', found '" + name + "'");
}

struct OutputKey {
  std::string role, name;
  auto operator<=>(const OutputKey&) const = default;
};

class Model {
 public:
  Model(const std::filesystem::path& path, const std::optional<std::string>& isa, bool without_catalogue,
        const std::string& precision, const std::string& device) {
    const fmtr_load_options options{sizeof(fmtr_load_options), isa ? isa->c_str() : nullptr, without_catalogue,
                                    precision_of(precision), device.c_str()};
    call([&] { return fmtr_model_load(path.c_str(), &options, &model_); });
    try {
      const py::dict about = py::module_::import("json").attr("loads")(describe());
      n_fused_ = py::len(about["fusion"]["tasks"]);
      const auto on = about["device"]["name"].cast<std::string>();
      if (on != "cpu") place_ = DevicePlace{{on == "cuda" ? kDlCuda : kDlCpu, 0}};
      for (const py::handle output : about["outputs"])
        widths_[{output["role"].cast<std::string>(), output["name"].cast<std::string>()}] =
            output["width"].cast<uint64_t>();
    } catch (...) {
      fmtr_model_free(model_);
      throw;
    }
  }
  ~Model() { fmtr_model_free(model_); }
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  fmtr_model* get() const { return model_; }
  uint64_t width(fmtr_domain domain, fmtr_kind kind) const { return fmtr_model_width(model_, domain, kind); }
  uint64_t n_tasks() const { return fmtr_model_n_tasks(model_); }
  uint64_t n_items() const { return fmtr_model_n_items(model_); }
  uint64_t n_fused() const { return n_fused_; }
  uint64_t output_width(const char* role, const std::string& name) const {
    const auto found = widths_.find({role, name});
    return found == widths_.end() ? 0 : found->second;  // the engine then says which there are
  }

  uint64_t version() const { return fmtr_model_catalogue_version(model_); }

  DevicePlace place() const {
    if (!place_) raise("BackendError", "the model is on the CPU: arrays of a device are for a model that is there");
    return *place_;
  }
  // Memory outlives the model's Python object, not the model.
  static std::shared_ptr<DeviceArray> make_array(const std::shared_ptr<Model>& model, const char* dtype,
                                                 std::vector<int64_t> shape) {
    DeviceArray empty(nullptr, model->place(), dtype, shape);
    void* memory = nullptr;
    check(fmtr_device_allocate(model->get(), empty.bytes(), &memory));
    return std::make_shared<DeviceArray>(
        DeviceMemory(memory, [model](void* each) { fmtr_device_free(model->get(), each); }), model->place(), dtype,
        std::move(shape));
  }
  py::array to_host(const DeviceArray& from) const {
    py::array to(py::dtype(from.dtype()), from.shape());
    void* data = to.mutable_data();
    call([&] { return fmtr_device_copy_out(model_, data, from.data(), from.bytes()); });
    return to;
  }

  // Of one version.
  struct Size {
    uint64_t version, n_items;
  };
  Size size() const {
    for (;;) {
      const Size size{version(), n_items()};
      if (size.version == version()) return size;
    }
  }

  std::string describe() const {
    char* json = nullptr;
    check(fmtr_model_describe(model_, &json));
    return take_text(json);
  }

  std::string explain() const {
    char* json = nullptr;
    check(fmtr_model_explain(model_, &json));
    return take_text(json);
  }

  void set_catalogue(const py::object& keys, const py::object& ids, const py::object& dense) {
    give_items(fmtr_model_set_catalogue, keys, ids, dense);
  }

  void upsert(const py::object& keys, const py::object& ids, const py::object& dense) {
    give_items(fmtr_model_upsert, keys, ids, dense);
  }

  uint64_t remove(const py::object& keys) {
    const py::array checked = array_of<int64_t>(keys, "keys", 1);
    uint64_t deleted = 0;
    call([&] {
      return fmtr_model_delete(model_, static_cast<const int64_t*>(checked.data()),
                               static_cast<uint64_t>(checked.size()), &deleted);
    });
    return deleted;
  }

  py::array_t<int64_t> keys() const {
    return of_one_version<int64_t>([&](uint64_t n) {
      py::array_t<int64_t> keys(static_cast<py::ssize_t>(n));
      int64_t* data = mutable_data(keys);
      return std::pair(without_gil([&] { return fmtr_model_keys(model_, data, n); }), keys);
    });
  }

  py::array_t<float> item_output(const std::string& name, const py::object& keys) const {
    const uint64_t width = output_width("item", name);
    if (!keys.is_none()) {
      const py::array checked = array_of<int64_t>(keys, "keys", 1);
      py::array_t<float> values({checked.size(), static_cast<py::ssize_t>(width)});
      float* data = mutable_data(values);
      const auto n = static_cast<uint64_t>(checked.size());
      call([&] {
        return fmtr_model_item_output_of(model_, name.c_str(), static_cast<const int64_t*>(checked.data()), n, data,
                                         n * width);
      });
      return values;
    }
    return of_one_version<float>([&](uint64_t n) {
      py::array_t<float> values({static_cast<py::ssize_t>(n), static_cast<py::ssize_t>(width)});
      float* data = mutable_data(values);
      return std::pair(without_gil([&] { return fmtr_model_item_output(model_, name.c_str(), data, n * width); }),
                       values);
    });
  }

 private:
  template <class Function>
  void give_items(Function function, const py::object& keys, const py::object& ids, const py::object& dense) {
    const py::array checked = array_of<int64_t>(keys, "keys", 1);
    std::optional<uint64_t> rows = static_cast<uint64_t>(checked.shape(0));
    const Matrix<int32_t> id_matrix(ids, "ids", width(FMTR_ITEM, FMTR_IDS), rows);
    const Matrix<float> dense_matrix(dense, "dense", width(FMTR_ITEM, FMTR_DENSE), rows);
    const fmtr_catalogue_data data{sizeof(fmtr_catalogue_data), *rows, static_cast<const int64_t*>(checked.data()),
                                   id_matrix.data(), dense_matrix.data()};
    call([&] { return function(model_, &data); });
  }

  // body(number of items) gives a status and a result; again, if the catalogue changed meanwhile.
  template <class Number, class Body>
  py::array_t<Number> of_one_version(const Body& body) const {
    for (;;) {
      const Size size = this->size();
      const auto [status, result] = body(size.n_items);
      if (size.version != version()) continue;
      check(status);
      return result;
    }
  }

  fmtr_model* model_ = nullptr;
  uint64_t n_fused_ = 0;
  std::optional<DevicePlace> place_;  // none: the CPU
  std::map<OutputKey, uint64_t> widths_;
};

class Session {
 public:
  Session(std::shared_ptr<Model> model, uint32_t threads, uint32_t tile) : model_(std::move(model)) {
    const fmtr_session_options options{sizeof(fmtr_session_options), threads, tile};
    call([&] { return fmtr_session_create(model_->get(), &options, &session_); });
  }
  ~Session() { fmtr_session_free(session_); }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  py::tuple score(const py::object& request_ids, const py::object& request_dense, const py::object& offsets,
                  const py::object& items, const py::object& candidate_ids, const py::object& candidate_dense,
                  bool skip_unknown, const py::object& fusion_weights, uint64_t catalogue_version) {
    return with_batch(request_ids, request_dense, offsets, items, candidate_ids, candidate_dense, skip_unknown,
                      fusion_weights, catalogue_version, [&](const Batch& batch) {
                        const auto total = static_cast<py::ssize_t>(batch.total);
                        py::array_t<float> scores({total, static_cast<py::ssize_t>(model_->n_tasks())});
                        py::array_t<float> fused(total);
                        float *scores_data = mutable_data(scores), *fused_data = mutable_data(fused);
                        call([&] { return fmtr_score(session_, &batch.c, scores_data, fused_data); });
                        return py::make_tuple(scores, fused);
                      });
  }

  py::tuple rank(const py::object& request_ids, const py::object& request_dense, const py::object& offsets,
                 const py::object& items, uint64_t k, const py::object& candidate_ids,
                 const py::object& candidate_dense, bool skip_unknown, const py::object& fusion_weights,
                 uint64_t catalogue_version) {
    return with_batch(request_ids, request_dense, offsets, items, candidate_ids, candidate_dense, skip_unknown,
                      fusion_weights, catalogue_version, [&](const Batch& batch) {
                        const List list(batch, k, *model_);
                        call([&] {
                          return fmtr_rank(session_, &batch.c, k, list.positions_data, list.fused_data,
                                           list.scores_data, list.counts_data);
                        });
                        return py::make_tuple(list.positions, list.fused, list.scores, list.counts);
                      });
  }

  py::tuple rank_certified(const py::object& request_ids, const py::object& request_dense, const py::object& offsets,
                           const py::object& items, uint64_t k, float width, float safety,
                           const py::object& candidate_ids, const py::object& candidate_dense, bool skip_unknown,
                           const py::object& fusion_weights, uint64_t catalogue_version) {
    const fmtr_certify_options options{sizeof(fmtr_certify_options), width, safety};
    return with_batch(request_ids, request_dense, offsets, items, candidate_ids, candidate_dense, skip_unknown,
                      fusion_weights, catalogue_version, [&](const Batch& batch) {
                        const List list(batch, k, *model_);
                        py::array_t<int64_t> rescored(list.counts.size());
                        auto* rescored_data = reinterpret_cast<uint64_t*>(mutable_data(rescored));
                        call([&] {
                          return fmtr_rank_certified(session_, &batch.c, k, &options, list.positions_data,
                                                     list.fused_data, list.scores_data, list.counts_data,
                                                     rescored_data);
                        });
                        return py::make_tuple(list.positions, list.fused, list.scores, list.counts, rescored);
                      });
  }

  py::array_t<float> precision_errors(const py::object& request_ids, const py::object& request_dense,
                                      const py::object& offsets, const py::object& items,
                                      const py::object& candidate_ids, const py::object& candidate_dense,
                                      bool skip_unknown, const py::object& fusion_weights, uint64_t catalogue_version) {
    return with_batch(request_ids, request_dense, offsets, items, candidate_ids, candidate_dense, skip_unknown,
                      fusion_weights, catalogue_version, [&](const Batch& batch) {
                        py::array_t<float> errors(static_cast<py::ssize_t>(batch.total));
                        float* data = mutable_data(errors);
                        call([&] { return fmtr_precision_errors(session_, &batch.c, data); });
                        return errors;
                      });
  }

  // Items, and with `on_device` the results, are in the device's memory.
  py::tuple rank_device_items(const py::object& request_ids, const py::object& request_dense, const py::object& offsets,
                              const py::object& items, uint64_t k, bool rows, bool on_device,
                              const py::object& candidate_ids, const py::object& candidate_dense,
                              const py::object& fusion_weights, uint64_t catalogue_version) {
    const DeviceArgument there(items, "items", "int64", model_->place(), refuse_type);
    uint64_t total = 1;
    for (const int64_t each : there.shape()) total *= static_cast<uint64_t>(each);
    const Batch batch(*model_, request_ids, request_dense, offsets, py::none(), candidate_ids, candidate_dense, true,
                      fusion_weights, {catalogue_version, 0}, total);
    const fmtr_device_items chosen{sizeof(fmtr_device_items),
                                   static_cast<const int64_t*>(there.data()),
                                   rows,
                                   on_device,
                                   there.waits(),
                                   there.stream()};
    const auto n = static_cast<int64_t>(batch.c.n_requests), width = static_cast<int64_t>(k);
    if (on_device) {
      const auto make = [&](const char* dtype, std::vector<int64_t> shape) {
        return Model::make_array(model_, dtype, std::move(shape));
      };
      const auto positions = make("int64", {n, width}), listed = make("int64", {n, width}),
                 fused = make("float32", {n, width}),
                 scores = make("float32", {n, width, static_cast<int64_t>(model_->n_tasks())}),
                 counts = make("int64", {n});
      call([&] {
        return fmtr_rank_device_items(session_, &batch.c, &chosen, k, static_cast<uint64_t*>(positions->data()),
                                      static_cast<int64_t*>(listed->data()), static_cast<float*>(fused->data()),
                                      static_cast<float*>(scores->data()), static_cast<uint64_t*>(counts->data()));
      });
      return py::make_tuple(positions, listed, fused, scores, counts);
    }
    const List list(batch, k, *model_);
    py::array_t<int64_t> listed({n, width});
    int64_t* listed_data = mutable_data(listed);
    call([&] {
      return fmtr_rank_device_items(session_, &batch.c, &chosen, k, list.positions_data, listed_data, list.fused_data,
                                    list.scores_data, list.counts_data);
    });
    return py::make_tuple(list.positions, listed, list.fused, list.scores, list.counts);
  }

  std::shared_ptr<DeviceArray> request_output_on_device(const std::string& name, const py::object& request_ids,
                                                        const py::object& request_dense) {
    const Requests requests(*model_, request_ids, request_dense);
    const uint64_t n = requests.c.n_requests, width = model_->output_width("request", name);
    const auto values = Model::make_array(model_, "float32", {static_cast<int64_t>(n), static_cast<int64_t>(width)});
    auto* data = static_cast<float*>(values->data());
    call([&] { return fmtr_request_output_device(session_, &requests.c, name.c_str(), data, n * width); });
    return values;
  }

  std::string profile(const py::object& request_ids, const py::object& request_dense, const py::object& offsets,
                      const py::object& items, uint64_t k, uint64_t repeats, const py::object& candidate_ids,
                      const py::object& candidate_dense, bool skip_unknown, const py::object& fusion_weights,
                      uint64_t catalogue_version) {
    return with_batch(request_ids, request_dense, offsets, items, candidate_ids, candidate_dense, skip_unknown,
                      fusion_weights, catalogue_version, [&](const Batch& batch) {
                        char* json = nullptr;
                        call([&] { return fmtr_profile(session_, &batch.c, k, repeats, &json); });
                        return take_text(json);
                      });
  }

  py::array_t<float> request_output(const std::string& name, const py::object& request_ids,
                                    const py::object& request_dense) {
    const Requests requests(*model_, request_ids, request_dense);
    const uint64_t n = requests.c.n_requests, width = model_->output_width("request", name);
    py::array_t<float> values({static_cast<py::ssize_t>(n), static_cast<py::ssize_t>(width)});
    float* data = mutable_data(values);
    call([&] { return fmtr_request_output(session_, &requests.c, name.c_str(), data, n * width); });
    return values;
  }

 private:
  // Requests alone.
  struct Requests {
    std::optional<uint64_t> n;
    Matrix<int32_t> ids;
    Matrix<float> dense;
    fmtr_batch c{};

    Requests(const Model& model, const py::object& request_ids, const py::object& request_dense)
        : ids(request_ids, "request_ids", model.width(FMTR_REQUEST, FMTR_IDS), n),
          dense(request_dense, "request_dense", model.width(FMTR_REQUEST, FMTR_DENSE), n) {
      c.struct_size = sizeof c;
      c.n_requests = n.value_or(1);
      c.request_ids = ids.data();
      c.request_dense = dense.data();
    }
  };

  // The arguments of score() and rank(), alive as long as the C struct that points into them.
  struct Batch {
    std::optional<uint64_t> n_requests, n_candidates;
    Matrix<int32_t> request_ids;
    Matrix<float> request_dense;
    std::optional<Matrix<int32_t>> candidate_ids;
    std::optional<Matrix<float>> candidate_dense;
    py::array offsets, items, weights;
    uint64_t total = 0;
    fmtr_batch c{};

    Batch(const Model& model, const py::object& ids, const py::object& dense, const py::object& offsets_object,
          const py::object& items_object, const py::object& candidate_ids_object,
          const py::object& candidate_dense_object, bool skip_unknown, const py::object& fusion_weights,
          const Model::Size& size, std::optional<uint64_t> n_elsewhere = std::nullopt)
        : request_ids(ids, "request_ids", model.width(FMTR_REQUEST, FMTR_IDS), n_requests),
          request_dense(dense, "request_dense", model.width(FMTR_REQUEST, FMTR_DENSE), n_requests) {
      c.struct_size = sizeof c;
      if (n_elsewhere)
        total = *n_elsewhere, read_offsets(offsets_object);
      else if (!items_object.is_none())
        read_candidates(offsets_object, items_object);
      else
        total = n_requests.value_or(1) * size.n_items;
      c.n_requests = n_requests.value_or(1);
      n_candidates = total;
      candidate_ids.emplace(candidate_ids_object, "candidate_ids", model.width(FMTR_CANDIDATE, FMTR_IDS), n_candidates);
      candidate_dense.emplace(candidate_dense_object, "candidate_dense", model.width(FMTR_CANDIDATE, FMTR_DENSE),
                              n_candidates);
      c.request_ids = request_ids.data();
      c.request_dense = request_dense.data();
      c.candidate_ids = candidate_ids->data();
      c.candidate_dense = candidate_dense->data();
      c.unknown_items = skip_unknown ? FMTR_UNKNOWN_SKIP : FMTR_UNKNOWN_ERROR;
      c.catalogue_version = size.version;
      if (fusion_weights.is_none()) return;
      weights = array_of<float>(fusion_weights, "fusion_weights", 1);
      if (static_cast<uint64_t>(weights.size()) != model.n_fused())
        raise(PyExc_ValueError, "fusion_weights has " + std::to_string(weights.size()) + " numbers, the model fuses " +
                                    std::to_string(model.n_fused()) + " tasks");
      c.fusion_weights = static_cast<const float*>(weights.data());
    }

    void read_candidates(const py::object& offsets_object, const py::object& items_object) {
      items = array_of<int64_t>(items_object, "items", 1);
      total = static_cast<uint64_t>(items.size());
      read_offsets(offsets_object);
      static const int64_t nothing = 0;  // NULL would mean the whole catalogue
      c.items = total > 0 ? static_cast<const int64_t*>(items.data()) : &nothing;
    }

    void read_offsets(const py::object& offsets_object) {
      if (py::isinstance<py::array>(offsets_object) &&
          py::reinterpret_borrow<py::array>(offsets_object).dtype().equal(py::dtype::of<int64_t>()))
        offsets = array_of<int64_t>(offsets_object, "offsets",
                                    1);  // a negative one reads as a huge one, which does not ascend
      else
        offsets = array_of<uint64_t>(offsets_object, "offsets", 1);
      if (offsets.size() < 1)
        raise(PyExc_ValueError, "offsets is empty, expected one number more than there are requests");
      const auto n = static_cast<uint64_t>(offsets.size() - 1);
      if (n_requests && *n_requests != n)
        raise(PyExc_ValueError, "offsets has " + std::to_string(n + 1) + " numbers for " + std::to_string(*n_requests) +
                                    " requests, expected one more than requests");
      n_requests = n;
      c.offsets = static_cast<const uint64_t*>(offsets.data());
      if (c.offsets[n] != total)
        raise(PyExc_ValueError, "offsets ends with " + std::to_string(static_cast<int64_t>(c.offsets[n])) +
                                    ", but there are " + std::to_string(total) + " items");
    }
  };

  // What ranking gives back.
  struct List {
    py::array_t<int64_t> positions;
    py::array_t<float> fused, scores;
    py::array_t<int64_t> counts;
    // The same bits: UINT64_MAX, "no candidate", is -1 in Python.
    uint64_t *positions_data, *counts_data;
    float *fused_data, *scores_data;

    List(const Batch& batch, uint64_t k, const Model& model)
        : List(static_cast<py::ssize_t>(batch.c.n_requests), static_cast<py::ssize_t>(k),
               static_cast<py::ssize_t>(model.n_tasks())) {}
    List(py::ssize_t n, py::ssize_t k, py::ssize_t n_tasks)
        : positions({n, k}), fused({n, k}), scores({n, k, n_tasks}), counts(n) {
      positions_data = reinterpret_cast<uint64_t*>(mutable_data(positions));
      counts_data = reinterpret_cast<uint64_t*>(mutable_data(counts));
      fused_data = mutable_data(fused);
      scores_data = mutable_data(scores);
    }
  };

  // The whole catalogue must not change between making room for its scores and writing them: then once more, unless the
  // caller expects a certain version.
  template <class Body>
  std::invoke_result_t<const Body&, const Batch&> with_batch(const py::object& request_ids,
                                                             const py::object& request_dense, const py::object& offsets,
                                                             const py::object& items, const py::object& candidate_ids,
                                                             const py::object& candidate_dense, bool skip_unknown,
                                                             const py::object& fusion_weights, uint64_t version,
                                                             const Body& body) {
    for (;;) {
      Model::Size size{version, 0};
      if (items.is_none()) {
        size = model_->size();
        if (version != 0 && version != size.version) refuse_version(version);
      }
      try {
        return body(Batch(*model_, request_ids, request_dense, offsets, items, candidate_ids, candidate_dense,
                          skip_unknown, fusion_weights, size));
      } catch (py::error_already_set& error) {
        if (version != 0 || !error.matches(error_class("StaleError"))) throw;
      }
    }
  }

  void refuse_version(uint64_t version) {
    fmtr_batch nothing{};
    nothing.struct_size = sizeof nothing;
    nothing.catalogue_version = version;
    call([&] { return fmtr_score(session_, &nothing, nullptr, nullptr); });
  }

  std::shared_ptr<Model> model_;
  fmtr_session* session_ = nullptr;
};

}  // namespace

PYBIND11_MODULE(_native, m, py::mod_gil_not_used()) {
  m.doc() = "The engine, through its C ABI (fastmtr.h). Use fastmtr.Ranker unless packed inputs are what you have.";
  m.attr("__version__") = fmtr_version();
  m.def("info", [] {
    char* json = nullptr;
    check(fmtr_info(&json));
    return take_text(json);
  });

  const auto none = py::none();
  py::class_<Model, std::shared_ptr<Model>>(m, "Model")
      .def(py::init<const std::filesystem::path&, const std::optional<std::string>&, bool, const std::string&,
                    const std::string&>(),
           py::arg("path"), py::kw_only(), py::arg("isa") = none, py::arg("without_catalogue") = false,
           py::arg("precision") = "fp32", py::arg("device") = "cpu")
      .def("describe", &Model::describe)
      .def("explain", &Model::explain)
      .def("set_catalogue", &Model::set_catalogue, py::arg("keys"), py::arg("ids"), py::arg("dense"))
      .def("upsert", &Model::upsert, py::arg("keys"), py::arg("ids"), py::arg("dense"))
      .def("delete", &Model::remove, py::arg("keys"))
      .def("keys", &Model::keys)
      .def("to_host", &Model::to_host, py::arg("array"))
      .def("item_output", &Model::item_output, py::arg("name"), py::arg("keys") = none)
      .def_property_readonly("catalogue_version", &Model::version)
      .def_property_readonly("n_items", &Model::n_items)
      .def_property_readonly("n_tasks", &Model::n_tasks);

  py::class_<DeviceArray, std::shared_ptr<DeviceArray>>(m, "DeviceArray")
      .def_property_readonly("shape", [](const DeviceArray& a) { return py::tuple(py::cast(a.shape())); })
      .def_property_readonly("dtype", &DeviceArray::dtype)
      .def_property_readonly("__cuda_array_interface__", &DeviceArray::cuda_array_interface)
      .def("__dlpack__", &DeviceArray::dlpack)
      .def("__dlpack_device__", &DeviceArray::dlpack_device);

  py::class_<Session>(m, "Session")
      .def(py::init<std::shared_ptr<Model>, uint32_t, uint32_t>(), py::arg("model"), py::kw_only(),
           py::arg("threads") = 1, py::arg("tile") = 0)
      .def("score", &Session::score, py::arg("request_ids"), py::arg("request_dense"), py::arg("offsets"),
           py::arg("items"), py::kw_only(), py::arg("candidate_ids") = none, py::arg("candidate_dense") = none,
           py::arg("skip_unknown") = false, py::arg("fusion_weights") = none, py::arg("catalogue_version") = 0)
      .def("rank", &Session::rank, py::arg("request_ids"), py::arg("request_dense"), py::arg("offsets"),
           py::arg("items"), py::kw_only(), py::arg("k"), py::arg("candidate_ids") = none,
           py::arg("candidate_dense") = none, py::arg("skip_unknown") = false, py::arg("fusion_weights") = none,
           py::arg("catalogue_version") = 0)
      .def("rank_certified", &Session::rank_certified, py::arg("request_ids"), py::arg("request_dense"),
           py::arg("offsets"), py::arg("items"), py::kw_only(), py::arg("k"), py::arg("width"), py::arg("safety") = 0,
           py::arg("candidate_ids") = none, py::arg("candidate_dense") = none, py::arg("skip_unknown") = false,
           py::arg("fusion_weights") = none, py::arg("catalogue_version") = 0)
      .def("precision_errors", &Session::precision_errors, py::arg("request_ids"), py::arg("request_dense"),
           py::arg("offsets"), py::arg("items"), py::kw_only(), py::arg("candidate_ids") = none,
           py::arg("candidate_dense") = none, py::arg("skip_unknown") = false, py::arg("fusion_weights") = none,
           py::arg("catalogue_version") = 0)
      .def("rank_device_items", &Session::rank_device_items, py::arg("request_ids"), py::arg("request_dense"),
           py::arg("offsets"), py::arg("items"), py::kw_only(), py::arg("k"), py::arg("rows") = false,
           py::arg("on_device") = false, py::arg("candidate_ids") = none, py::arg("candidate_dense") = none,
           py::arg("fusion_weights") = none, py::arg("catalogue_version") = 0)
      .def("request_output_on_device", &Session::request_output_on_device, py::arg("name"), py::arg("request_ids"),
           py::arg("request_dense"))
      .def("profile", &Session::profile, py::arg("request_ids"), py::arg("request_dense"), py::arg("offsets"),
           py::arg("items"), py::kw_only(), py::arg("k") = 0, py::arg("repeats") = 10, py::arg("candidate_ids") = none,
           py::arg("candidate_dense") = none, py::arg("skip_unknown") = false, py::arg("fusion_weights") = none,
           py::arg("catalogue_version") = 0)
      .def("request_output", &Session::request_output, py::arg("name"), py::arg("request_ids"),
           py::arg("request_dense"));

  add_counting(m);
  add_features(m);
}
