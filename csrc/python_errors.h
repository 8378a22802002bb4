// Statuses of the C ABI as Python's exceptions.
#ifndef FASTMTR_PYTHON_ERRORS_H
#define FASTMTR_PYTHON_ERRORS_H

#include <pybind11/pybind11.h>

#include <memory>
#include <string>

#include "fastmtr.h"

namespace fastmtr::python {

namespace py = pybind11;

[[noreturn]] inline void raise(PyObject* type, const std::string& message) {
  // A path may hold bytes that are no UTF-8; that must not hide what is wrong.
  const auto text = py::reinterpret_steal<py::object>(
      PyUnicode_DecodeUTF8(message.data(), static_cast<Py_ssize_t>(message.size()), "replace"));
  PyErr_SetObject(type, text.ptr());
  throw py::error_already_set();
}

inline py::object error_class(const char* name) { return py::module_::import("fastmtr.errors").attr(name); }

[[noreturn]] inline void raise(const char* type, const std::string& message) {
  raise(error_class(type).ptr(), message);
}

[[noreturn]] inline void refuse_type(const std::string& message) { raise(PyExc_TypeError, message); }

inline void check(fmtr_status status) {
  if (status == FMTR_OK) return;
  const std::string message = fmtr_last_error();
  switch (status) {
    case FMTR_ERROR_ARGUMENT:
      raise(PyExc_ValueError, message);
    case FMTR_ERROR_SCHEMA:
      raise("SchemaError", message);
    case FMTR_ERROR_BUNDLE:
      raise("BundleError", message);
    case FMTR_ERROR_BACKEND:
      raise("BackendError", message);
    case FMTR_ERROR_MEMORY:
      raise(PyExc_MemoryError, message);
    case FMTR_ERROR_STALE:
      raise("StaleError", message);
    default:
      raise("FastMTRError", message);
  }
}

inline std::string take_text(char* text) {
  const std::unique_ptr<char, void (*)(char*)> owner(text, fmtr_string_free);
  return text;
}

}  // namespace fastmtr::python

#endif
