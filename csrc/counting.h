// How often each value of a column occurs: what the fitting of features counts, without Python objects.
#ifndef FASTMTR_COUNTING_H
#define FASTMTR_COUNTING_H

#include <pybind11/pybind11.h>

namespace fastmtr::python {

void add_counting(pybind11::module_& m);

}  // namespace fastmtr::python

#endif
