#include "counting_bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "counting.h"

namespace py = pybind11;

namespace fastmtr::python {
namespace {

template <class T>
using Vector = py::array_t<T, py::array::c_style>;

template <class T>
using Optional = std::optional<Vector<T>>;

void refuse(const std::string& message) { throw py::value_error(message); }

// The numbers of an optional vector beside n values.
template <class T>
const T* beside(py::ssize_t n, const Optional<T>& vector, const char* name) {
  if (!vector) return nullptr;
  if (vector->ndim() != 1 || vector->shape(0) != n)
    refuse(std::string(name) + " must be a vector of " + std::to_string(n) + " numbers");
  return vector->data();
}

template <class T>
Vector<T> to_array(const std::vector<T>& values) {
  return Vector<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::tuple ints_counted(const Vector<int64_t>& values, const Optional<uint8_t>& valid,
                       const Optional<int64_t>& weights) {
  if (values.ndim() != 1) refuse("values must be a vector");
  const py::ssize_t n = values.shape(0);
  const uint8_t* flags = beside(n, valid, "valid");
  const int64_t *times = beside(n, weights, "weights"), *given = values.data();
  const IntCounts found = [&] {
    const py::gil_scoped_release released;
    return count_ints(given, n, flags, times);
  }();
  return py::make_tuple(to_array(found.values), to_array(found.counts));
}

template <class Offset>
py::tuple texts_counted(const Vector<uint8_t>& data, const Vector<Offset>& offsets, const Optional<uint8_t>& valid,
                        const Optional<int64_t>& weights) {
  if (data.ndim() != 1 || offsets.ndim() != 1 || offsets.shape(0) == 0)
    refuse("data and offsets must be vectors, and there is one more offset than texts");
  const py::ssize_t n = offsets.shape(0) - 1;
  const uint8_t* flags = beside(n, valid, "valid");
  const int64_t* times = beside(n, weights, "weights");
  const Texts<Offset> texts{data.data(), data.shape(0), offsets.data()};
  const TextCounts found = [&] {
    const py::gil_scoped_release released;
    return count_texts(texts, n, flags, times);
  }();
  Vector<int64_t> ends(static_cast<py::ssize_t>(found.texts.size() + 1));
  int64_t* end = ends.mutable_data();
  *end = 0;
  for (const Text& each : found.texts) {
    end[1] = end[0] + each.size;
    ++end;
  }
  Vector<uint8_t> content(*end);
  uint8_t* at = content.mutable_data();
  for (const Text& each : found.texts) at = std::copy_n(each.bytes, each.size, at);
  return py::make_tuple(content, ends, to_array(found.counts));
}

Vector<int64_t> texts_ordered(const Vector<uint8_t>& data, const Vector<int64_t>& offsets,
                              const Vector<int64_t>& counts) {
  if (data.ndim() != 1 || offsets.ndim() != 1 || counts.ndim() != 1 || offsets.shape(0) != counts.shape(0) + 1)
    refuse("data, offsets and counts must be vectors, and there is one more offset than counts");
  const py::ssize_t n = counts.shape(0);
  const Texts<int64_t> texts{data.data(), data.shape(0), offsets.data()};
  const int64_t* times = counts.data();
  return to_array([&] {
    const py::gil_scoped_release released;
    return order_texts(texts, n, times);
  }());
}

}  // namespace

void add_counting(py::module_& m) {
  const auto none = py::none();
  m.def("count_ints", ints_counted, py::arg("values").noconvert(), py::arg("valid") = none, py::arg("weights") = none);
  m.def("count_texts", texts_counted<int32_t>, py::arg("data").noconvert(), py::arg("offsets").noconvert(),
        py::arg("valid") = none, py::arg("weights") = none);
  m.def("count_texts", texts_counted<int64_t>, py::arg("data").noconvert(), py::arg("offsets").noconvert(),
        py::arg("valid") = none, py::arg("weights") = none);
  m.def("order_texts", texts_ordered, py::arg("data").noconvert(), py::arg("offsets").noconvert(),
        py::arg("counts").noconvert());
}

}  // namespace fastmtr::python
