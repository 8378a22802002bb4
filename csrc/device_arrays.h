// Arrays in a device's memory, as Python's libraries pass them to one another: DLPack and __cuda_array_interface__.
#ifndef FASTMTR_DEVICE_ARRAYS_H
#define FASTMTR_DEVICE_ARRAYS_H

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace fastmtr::python {

namespace py = pybind11;

// DLPack's structs, version 0.x, whose layout is fixed: https://dmlc.github.io/dlpack/latest/c_api.html
struct DlDevice {
  int32_t type, number;
};
struct DlDataType {
  uint8_t code, bits;
  uint16_t lanes;
};
struct DlTensor {
  void* data;
  DlDevice device;
  int32_t n_dims;
  DlDataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; NULL: contiguous
  uint64_t byte_offset;
};
struct DlManagedTensor {
  DlTensor tensor;
  void* context;
  void (*deleter)(DlManagedTensor*);
};
constexpr int32_t kDlCpu = 1, kDlCuda = 2, kDlCudaManaged = 13;
constexpr uint8_t kDlInt = 0, kDlFloat = 2;
constexpr const char* kDlName = "dltensor";

// Where the arrays of a model's device lie for DLPack: the emulated device's memory is the host's.
struct DevicePlace {
  DlDevice device;
  bool is_cuda() const { return device.type == kDlCuda; }
};

// Memory of the device, freed with its last user.
using DeviceMemory = std::shared_ptr<void>;

// What the engine gives back; contiguous.
class DeviceArray {
 public:
  DeviceArray(DeviceMemory memory, DevicePlace place, std::string dtype, std::vector<int64_t> shape)
      : memory_(std::move(memory)), place_(place), dtype_(std::move(dtype)), shape_(std::move(shape)) {}

  void* data() const { return memory_.get(); }
  const std::vector<int64_t>& shape() const { return shape_; }
  const std::string& dtype() const { return dtype_; }
  DevicePlace place() const { return place_; }
  uint64_t bytes() const {
    uint64_t n = item_bytes();
    for (const int64_t each : shape_) n *= static_cast<uint64_t>(each);
    return n;
  }

  // All work on it is done: no stream has to be waited for.
  py::capsule dlpack(const py::kwargs&) const {
    struct Owner {
      DlManagedTensor managed;
      std::vector<int64_t> shape;
      DeviceMemory memory;
    };
    auto owner = std::make_unique<Owner>();
    owner->shape = shape_;
    owner->memory = memory_;
    const bool whole = dtype_[0] != 'f';
    owner->managed.tensor = {data(),
                             place_.device,
                             static_cast<int32_t>(shape_.size()),
                             {whole ? kDlInt : kDlFloat, static_cast<uint8_t>(8 * item_bytes()), 1},
                             owner->shape.data(),
                             nullptr,
                             0};
    owner->managed.context = owner.get();
    owner->managed.deleter = [](DlManagedTensor* managed) { delete static_cast<Owner*>(managed->context); };
    const py::capsule capsule(static_cast<const void*>(&owner.release()->managed), kDlName, [](PyObject* object) {
      if (!PyCapsule_IsValid(object, kDlName)) return;  // somebody has taken it
      auto* managed = static_cast<DlManagedTensor*>(PyCapsule_GetPointer(object, kDlName));
      managed->deleter(managed);
    });
    return capsule;
  }
  py::tuple dlpack_device() const { return py::make_tuple(place_.device.type, place_.device.number); }

  py::dict cuda_array_interface() const {
    if (!place_.is_cuda()) throw py::attribute_error("this array is not in a GPU's memory");
    py::dict about;
    about["shape"] = py::tuple(py::cast(shape_));
    about["typestr"] = (dtype_[0] == 'f' ? "<f" : "<i") + std::to_string(item_bytes());
    about["data"] = py::make_tuple(reinterpret_cast<uintptr_t>(data()), false);
    about["strides"] = py::none();
    about["version"] = 3;
    return about;
  }

 private:
  uint64_t item_bytes() const { return dtype_ == "int64" ? 8 : 4; }

  DeviceMemory memory_;
  DevicePlace place_;
  std::string dtype_;
  std::vector<int64_t> shape_;
};

// An argument in the device's memory: any object with __dlpack__ or __cuda_array_interface__, contiguous. `refuse`
// throws a TypeError of a text.
class DeviceArgument {
 public:
  template <class Refuse>
  DeviceArgument(const py::object& object, const char* name, const std::string& dtype, const DevicePlace& place,
                 const Refuse& refuse) {
    const bool whole = dtype[0] != 'f';
    const int bits = dtype == "int64" ? 64 : 32;
    if (py::hasattr(object, "__cuda_array_interface__") && place.is_cuda()) {
      const py::dict about = object.attr("__cuda_array_interface__");
      const std::string expected = (whole ? "<i" : "<f") + std::to_string(bits / 8);
      const auto found = about["typestr"].cast<std::string>();
      if (found != expected) refuse(std::string(name) + " is of type " + found + ", expected " + dtype);
      shape_ = about["shape"].cast<std::vector<int64_t>>();
      if (about.contains("strides") && !about["strides"].is_none()) {
        const auto strides = about["strides"].cast<std::vector<int64_t>>();
        check_contiguous(strides, bits / 8, name, refuse);
      }
      data_ = reinterpret_cast<void*>(about["data"].cast<py::tuple>()[0].cast<uintptr_t>());
      if (about.contains("stream") && !about["stream"].is_none()) {
        waits_ = true;  // 1: the default stream
        const auto stream = about["stream"].cast<uintptr_t>();
        stream_ = stream == 1 ? nullptr : reinterpret_cast<void*>(stream);
      }
      owner_ = object;
      return;
    }
    if (!py::hasattr(object, "__dlpack__"))
      refuse(std::string(name) + " has neither __dlpack__ nor __cuda_array_interface__: expected an array in the " +
             "device's memory, of " + dtype);
    const auto device = object.attr("__dlpack_device__")().cast<std::pair<int32_t, int32_t>>();
    const bool fits =
        place.is_cuda() ? device.first == kDlCuda || device.first == kDlCudaManaged : device.first == place.device.type;
    if (!fits || device.second != place.device.number)
      refuse(std::string(name) + " is on DLPack's device " + std::to_string(device.first) + ":" +
             std::to_string(device.second) + ", expected " + std::to_string(place.device.type) + ":" +
             std::to_string(place.device.number));
    // What fills it is then part of the default stream, which is waited for.
    capsule_ = place.is_cuda() ? object.attr("__dlpack__")(py::arg("stream") = 1) : object.attr("__dlpack__")();
    waits_ = place.is_cuda();
    auto* managed = static_cast<DlManagedTensor*>(PyCapsule_GetPointer(capsule_.ptr(), kDlName));
    if (managed == nullptr) throw py::error_already_set();
    const DlTensor& tensor = managed->tensor;
    if (tensor.dtype.code != (whole ? kDlInt : kDlFloat) || tensor.dtype.bits != bits || tensor.dtype.lanes != 1)
      refuse(std::string(name) + " has another dtype, expected " + dtype);
    shape_.assign(tensor.shape, tensor.shape + tensor.n_dims);
    if (tensor.strides != nullptr) check_contiguous({tensor.strides, tensor.strides + tensor.n_dims}, 1, name, refuse);
    data_ = static_cast<char*>(tensor.data) + tensor.byte_offset;
  }

  void* data() const { return data_; }
  const std::vector<int64_t>& shape() const { return shape_; }
  bool waits() const { return waits_; }
  void* stream() const { return stream_; }

 private:
  template <class Refuse>
  void check_contiguous(const std::vector<int64_t>& strides, int64_t step, const char* name, const Refuse& refuse) {
    for (size_t i = shape_.size(); i-- > 0; step *= shape_[i])
      if (shape_[i] > 1 && strides[i] != step) refuse(std::string(name) + " is not contiguous in memory");
  }

  py::object owner_, capsule_;  // the capsule frees what it holds, unused
  void* data_ = nullptr;
  std::vector<int64_t> shape_;
  bool waits_ = false;
  void* stream_ = nullptr;
};

}  // namespace fastmtr::python
#endif
