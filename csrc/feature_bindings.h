// The feature program for Python, and the functions of feature_kernels.h over arrays.
#ifndef FASTMTR_FEATURE_BINDINGS_H
#define FASTMTR_FEATURE_BINDINGS_H

#include <pybind11/pybind11.h>

namespace fastmtr::python {

void add_features(pybind11::module_& m);

}  // namespace fastmtr::python

#endif
