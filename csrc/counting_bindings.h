// The functions of counting.h over arrays.
#ifndef FASTMTR_COUNTING_BINDINGS_H
#define FASTMTR_COUNTING_BINDINGS_H

#include <pybind11/pybind11.h>

namespace fastmtr::python {

void add_counting(pybind11::module_& m);

}  // namespace fastmtr::python

#endif
