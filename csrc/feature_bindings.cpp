#include "feature_bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/feature_batch.h"
#include "core/feature_kernels.h"
#include "fastmtr.h"
#include "python_errors.h"

namespace fastmtr::python {

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;
using Base = std::optional<std::pair<Array<int32_t>, Array<float>>>;

constexpr const char* kDomains[] = {"request", "item", "candidate"};

// A list's elements, in memory that is kept from row to row.
struct List {
  std::vector<int64_t> ints;
  std::vector<double> floats;
  std::vector<fmtr_text> texts;
  std::vector<uint8_t> valid;
};

struct Room {
  std::vector<fmtr_value> values;
  std::deque<List> lists;
  size_t n_lists = 0;
};
thread_local Room room;

py::object plain(const char* function, const py::handle& value, const py::handle& name, int64_t ticks_per_second) {
  const py::object found = py::module_::import("fastmtr.features.values").attr(function);
  if (std::string_view(function) == "ticks")
    return found(value, py::arg("name") = name,
                 py::arg("unit") = ticks_per_second == 1           ? "s"
                                   : ticks_per_second == 1'000     ? "ms"
                                   : ticks_per_second == 1'000'000 ? "us"
                                                                   : "ns");
  return found(value, py::arg("name") = name);
}

class Features {
 public:
  Features(const py::bytes& json, const py::dict& arrays) {
    std::vector<Array<uint8_t>> bytes;
    std::vector<std::string> names, dtypes;
    std::vector<std::vector<uint64_t>> shapes;
    std::vector<py::array> kept;
    for (const auto& [name, value] : arrays) {
      const auto array = py::cast<py::array>(value);
      const py::array flat = py::array::ensure(array, py::array::c_style);
      const char kind = flat.dtype().kind();
      names.push_back(py::cast<std::string>(name));
      dtypes.push_back(std::string(kind == 'i'   ? "I"
                                   : kind == 'u' ? "U"
                                   : kind == 'f' ? "F"
                                                 : "?") +
                       std::to_string(flat.itemsize() * 8));
      shapes.emplace_back(flat.shape(), flat.shape() + flat.ndim());
      kept.push_back(flat);
    }
    std::vector<fmtr_array> given;
    for (size_t i = 0; i < names.size(); ++i)
      given.push_back({names[i].c_str(), dtypes[i].c_str(), shapes[i].size(), shapes[i].data(), kept[i].data()});
    const std::string_view text = json;
    fmtr_features* made = nullptr;
    check(fmtr_features_create(text.data(), text.size(), given.data(), given.size(), &made));
    features_.reset(made);
    const py::dict found = py::module_::import("json").attr("loads")(describe());
    ticks_per_second_ = py::cast<int64_t>(found["ticks_per_second"]);
    for (int d = 0; d < 3; ++d) {
      Domain& domain = domains_[d];
      domain.ids = static_cast<py::ssize_t>(fmtr_features_width(made, static_cast<fmtr_domain>(d), FMTR_IDS));
      domain.dense = static_cast<py::ssize_t>(fmtr_features_width(made, static_cast<fmtr_domain>(d), FMTR_DENSE));
      for (const py::handle column : found[kDomains[d]]["columns"]) {
        Column to;
        to.name = py::reinterpret_borrow<py::str>(column["name"]);
        for (const py::handle each : column["accepts"]) {
          const std::string kind = py::cast<std::string>(each);
          to.read = true;
          to.numbers = to.numbers || kind == "number";
          to.ticks = to.ticks || kind == "ticks";
        }
        domain.index[to.name] = domain.columns.size();
        domain.columns.push_back(std::move(to));
      }
    }
  }

  std::string describe() const { return text_of(fmtr_features_describe); }
  std::string counts() const { return text_of(fmtr_features_counts); }

  py::tuple encode(const std::string& domain_name, const py::dict& row, const Base& base) const {
    const fmtr_domain d = domain(domain_name);
    const Domain& of = domains_[d];
    Array<int32_t> ids({py::ssize_t{1}, of.ids});
    Array<float> dense({py::ssize_t{1}, of.dense});
    const int32_t* base_ids = nullptr;
    const float* base_dense = nullptr;
    if (base) {
      if (base->first.size() != of.ids || base->second.size() != of.dense)
        raise(PyExc_ValueError, "base must be one packed row of the domain: " + std::to_string(of.ids) + " ids and " +
                                    std::to_string(of.dense) + " numbers");
      base_ids = base->first.data();
      base_dense = base->second.data();
    }
    encode_row(d, row, base_ids, base_dense, ids.mutable_data(), dense.mutable_data());
    return py::make_tuple(std::move(ids), std::move(dense));
  }

  py::tuple encode_rows(const std::string& domain_name, const py::sequence& rows) const {
    const fmtr_domain d = domain(domain_name);
    const Domain& of = domains_[d];
    const auto n = static_cast<py::ssize_t>(py::len(rows));
    Array<int32_t> ids({n, of.ids});
    Array<float> dense({n, of.dense});
    for (py::ssize_t i = 0; i < n; ++i)
      encode_row(d, py::dict(py::object(rows[static_cast<size_t>(i)])), nullptr, nullptr,
                 ids.mutable_data() + i * of.ids, dense.mutable_data() + i * of.dense);
    return py::make_tuple(std::move(ids), std::move(dense));
  }

  py::tuple encode_columns(const std::string& domain_name, const py::dict& columns, py::ssize_t n) const {
    const fmtr_domain d = domain(domain_name);
    const Domain& of = domains_[d];
    std::vector<std::pair<size_t, py::list>> given;
    for (const auto& [name, values] : columns) {
      py::list list(py::reinterpret_borrow<py::object>(values));
      if (static_cast<py::ssize_t>(list.size()) != n)
        raise(PyExc_ValueError, "column " + py::cast<std::string>(py::repr(name)) + " has " +
                                    std::to_string(list.size()) + " values, expected " + std::to_string(n));
      given.emplace_back(column(of, name), std::move(list));
    }
    Array<int32_t> ids({n, of.ids});
    Array<float> dense({n, of.dense});
    for (py::ssize_t i = 0; i < n; ++i) {
      Row row(*this, of);
      for (const auto& [at, list] : given) row.add(at, list[static_cast<size_t>(i)]);
      row.encode(d, nullptr, nullptr, ids.mutable_data() + i * of.ids, dense.mutable_data() + i * of.dense);
    }
    return py::make_tuple(std::move(ids), std::move(dense));
  }

 private:
  struct Column {
    py::str name;
    bool read = false, numbers = false, ticks = false;
  };
  struct Domain {
    py::dict index;
    std::vector<Column> columns;
    py::ssize_t ids = 0, dense = 0;
  };
  struct Free {
    void operator()(fmtr_features* features) const { fmtr_features_free(features); }
  };

  // The values of one row; what they point to lives as long as the row's own objects, and `kept`.
  class Row {
   public:
    Row(const Features& features, const Domain& domain) : features_(features), domain_(domain) {
      room.values.clear();
      room.n_lists = 0;
    }

    void add(size_t at, py::handle given) {
      const Column& column = domain_.columns[at];
      if (!column.read) return;
      fmtr_value value{};
      value.column = static_cast<uint32_t>(at);
      convert(column, given, value);
      room.values.push_back(value);
    }

    void encode(fmtr_domain d, const int32_t* base_ids, const float* base_dense, int32_t* ids, float* dense) const {
      check(fmtr_features_encode(features_.features_.get(), d, room.values.data(), room.values.size(), base_ids,
                                 base_dense, ids, dense));
    }

   private:
    void convert(const Column& column, py::handle given, fmtr_value& value) {
      PyObject* const object = given.ptr();
      if (object == Py_None) return;
      if (PyFloat_Check(object)) {
        value.type = FMTR_FLOAT;
        value.of.number = PyFloat_AS_DOUBLE(object);
      } else if (PyUnicode_Check(object)) {
        const fmtr_text text = utf8(column, given);
        value.type = FMTR_TEXT;
        value.of.text = text.data;
        value.count = text.size;
      } else if (PyLong_Check(object)) {
        int overflow = 0;
        value.of.whole = PyLong_AsLongLongAndOverflow(object, &overflow);
        value.type = FMTR_INT;
        if (overflow != 0) other(column, given, value);
      } else if (PyList_Check(object) || PyTuple_Check(object)) {
        list(column, given, value);
      } else if (py::isinstance<py::array>(given) && py::cast<py::array>(given).ndim() > 0) {
        kept_.push_back(given.attr("tolist")());
        list(column, kept_.back(), value);
      } else {
        other(column, given, value);
      }
    }

    // What is rare in a request goes the way that it goes in a table.
    void other(const Column& column, py::handle given, fmtr_value& value) {
      const char* const function = column.numbers ? "number" : column.ticks ? "ticks" : "category";
      kept_.push_back(plain(function, given, column.name, features_.ticks_per_second_));
      const py::handle found = kept_.back();
      value.type = FMTR_NULL;
      if (!found.is_none()) convert(column, found, value);
    }

    fmtr_text utf8(const Column& column, py::handle text) {
      Py_ssize_t size = 0;
      const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
      if (data == nullptr) {
        PyErr_Clear();
        plain("utf8", text, column.name, 1);  // raises
        throw py::error_already_set();
      }
      return {data, static_cast<uint64_t>(size)};
    }

    void list(const Column& column, py::handle given, fmtr_value& value) {
      if (room.n_lists == room.lists.size()) room.lists.emplace_back();
      List& to = room.lists[room.n_lists++];
      to.ints.clear();
      to.floats.clear();
      to.texts.clear();
      to.valid.clear();
      bool any_text = false, any_number = false, all_whole = !column.numbers, any_null = false;
      const py::sequence elements = py::reinterpret_borrow<py::sequence>(given);
      const auto n = static_cast<size_t>(py::len(elements));
      for (size_t i = 0; i < n; ++i) {
        fmtr_value each{};
        const py::object element = elements[i];
        convert_element(column, element, each);
        double x = each.of.number;
        if (each.type == FMTR_INT) x = static_cast<double>(each.of.whole);
        const bool null = each.type == FMTR_NULL || (each.type == FMTR_FLOAT && std::isnan(x));
        to.valid.push_back(null ? 0 : 1);
        any_null = any_null || null;
        to.texts.push_back(each.type == FMTR_TEXT ? fmtr_text{each.of.text, each.count} : fmtr_text{});
        to.floats.push_back(null || each.type == FMTR_TEXT ? 0 : x);
        if (each.type == FMTR_FLOAT && !null) {
          all_whole = all_whole && x == std::floor(x) && x >= -0x1p63 && x < 0x1p63;
          to.ints.push_back(all_whole ? static_cast<int64_t>(x) : 0);
        } else {
          to.ints.push_back(each.type == FMTR_INT ? each.of.whole : 0);
        }
        any_text = any_text || each.type == FMTR_TEXT;
        any_number = any_number || (!null && each.type != FMTR_TEXT);
      }
      if (any_text && any_number) refuse(column, "a list of numbers and text");
      value.count = n;
      value.valid = any_null ? to.valid.data() : nullptr;
      value.type = any_text ? FMTR_TEXTS : all_whole ? FMTR_INTS : FMTR_FLOATS;
      if (any_text)
        value.of.texts = to.texts.data();
      else if (all_whole)
        value.of.ints = to.ints.data();
      else
        value.of.floats = to.floats.data();
    }

    void convert_element(const Column& column, const py::object& element, fmtr_value& value) {
      if (PyList_Check(element.ptr()) || PyTuple_Check(element.ptr())) refuse(column, "a list in a list");
      if (PyUnicode_Check(element.ptr()) && element.ref_count() == 1) kept_.push_back(element);
      convert(column, element, value);
    }

    [[noreturn]] static void refuse(const Column& column, const char* found) {
      const char* const expected = column.numbers ? "numbers"
                                   : column.ticks ? "points in time"
                                                  : "whole numbers or text";
      raise("SchemaError",
            "column " + py::cast<std::string>(py::repr(column.name)) + " should hold " + expected + ", found " + found);
    }

    const Features& features_;
    const Domain& domain_;
    std::vector<py::object> kept_;
  };

  static fmtr_domain domain(const std::string& name) {
    for (int d = 0; d < 3; ++d)
      if (name == kDomains[d]) return static_cast<fmtr_domain>(d);
    raise(PyExc_ValueError, "domain must be 'request', 'item' or 'candidate', found '" + name + "'");
  }

  static size_t column(const Domain& of, py::handle name) {
    PyObject* found = PyDict_GetItemWithError(of.index.ptr(), name.ptr());
    if (found == nullptr) {
      if (PyErr_Occurred() == nullptr) PyErr_SetObject(PyExc_KeyError, name.ptr());
      throw py::error_already_set();
    }
    return PyLong_AsSize_t(found);
  }

  void encode_row(fmtr_domain d, const py::dict& given, const int32_t* base_ids, const float* base_dense, int32_t* ids,
                  float* dense) const {
#ifdef Py_GIL_DISABLED
    const py::dict values(given.attr("copy")());  // what another thread changes must not be looked at meanwhile
#else
    const py::dict& values = given;
#endif
    const Domain& of = domains_[d];
    Row row(*this, of);
    Py_ssize_t at = 0;
    PyObject *name = nullptr, *value = nullptr;
    while (PyDict_Next(values.ptr(), &at, &name, &value)) row.add(column(of, name), value);
    row.encode(d, base_ids, base_dense, ids, dense);
  }

  std::string text_of(fmtr_status (*read)(const fmtr_features*, char**)) const {
    char* json = nullptr;
    check(read(features_.get(), &json));
    return take_text(json);
  }

  std::unique_ptr<fmtr_features, Free> features_;
  Domain domains_[3];
  int64_t ticks_per_second_ = 1;
};

// ---- the functions of feature_kernels.h, element by element, and of feature_batch.h: for tests, in place of a GPU;
// and vocabularies as both read them

template <class Out, class In, class Each>
py::array_t<Out> mapped(const Array<In>& values, const Each& each) {
  py::array_t<Out> out(values.size());
  for (py::ssize_t i = 0; i < values.size(); ++i) out.mutable_data()[i] = each(values.data()[i]);
  return out;
}

template <class Entry, class Put>
py::array_t<uint8_t> vocabulary(size_t n, const Put& put) {
  const size_t places = std::bit_ceil(n * 2 + 1);
  std::vector<Entry> entries(places);
  for (Entry& each : entries) each.rank = kernels::kNoRank;
  for (size_t rank = 0; rank < n; ++rank)
    if (!put(entries.data(), places - 1, rank))
      raise(PyExc_ValueError, "value " + std::to_string(rank) + " stands twice in the vocabulary");
  const auto size = static_cast<py::ssize_t>(places * sizeof(Entry));
  return py::array_t<uint8_t>(size, reinterpret_cast<const uint8_t*>(entries.data()));
}

// As the kernels take them; the pointers in them are the caller's.
template <class T>
const T* structs(const Array<uint8_t>& bytes, const char* what, size_t* n) {
  *n = static_cast<size_t>(bytes.size()) / sizeof(T);
  if (*n * sizeof(T) != static_cast<size_t>(bytes.size()))
    raise(PyExc_ValueError, std::string(what) + " must be structs of " + std::to_string(sizeof(T)) + " bytes");
  return reinterpret_cast<const T*>(bytes.data());
}

void add_batches(py::module_& m) {
  m.def("index_ints", [](const Array<int64_t>& values) {
    return vocabulary<kernels::IntEntry>(
        static_cast<size_t>(values.size()), [&](kernels::IntEntry* entries, uint64_t mask, size_t rank) {
          return kernels::put_int(entries, mask, values.data()[rank], static_cast<uint32_t>(rank));
        });
  });
  m.def("index_texts", [](const Array<uint8_t>& data, const Array<int64_t>& offsets) {
    const int64_t* at = offsets.data();
    for (py::ssize_t i = 0; i + 1 < offsets.size(); ++i)
      if (at[i] < 0 || at[i + 1] < at[i] || at[i + 1] > data.size())
        raise(PyExc_ValueError, "offsets must ascend within the data");
    return vocabulary<kernels::TextEntry>(
        offsets.size() < 1 ? 0 : static_cast<size_t>(offsets.size() - 1),
        [&](kernels::TextEntry* entries, uint64_t mask, size_t rank) {
          return kernels::put_text(entries, mask, data.data(), static_cast<uint64_t>(at[rank]),
                                   static_cast<uint32_t>(at[rank + 1] - at[rank]), static_cast<uint32_t>(rank));
        });
  });
  m.def("encode_rows", [](const Array<uint8_t>& steps, const Array<uint8_t>& columns, uint64_t rows) {
    size_t n_steps = 0, n_columns = 0;
    const auto* of_steps = structs<kernels::Step>(steps, "steps", &n_steps);
    const auto* of_columns = structs<kernels::Column>(columns, "columns", &n_columns);
    std::vector<uint32_t> refused(n_steps);
    {
      const py::gil_scoped_release release;
      kernels::encode_rows(of_steps, n_steps, of_columns, rows, refused.data());
    }
    return py::array_t<uint32_t>(static_cast<py::ssize_t>(n_steps), refused.data());
  });
}

void add_kernels(py::module_ m) {
  m.def(
      "hash_ints",
      [](const Array<int64_t>& values, uint64_t seed) {
        return mapped<uint64_t>(values, [&](int64_t value) { return kernels::hash_int(value, seed); });
      },
      py::arg("values"), py::arg("seed") = 0);
  m.def(
      "hash_texts",
      [](const Array<uint8_t>& data, const Array<int64_t>& offsets, uint64_t seed) {
        if (offsets.size() < 1) raise(PyExc_ValueError, "offsets must have one number more than there are texts");
        py::array_t<uint64_t> out(offsets.size() - 1);
        for (py::ssize_t i = 0; i + 1 < offsets.size(); ++i) {
          const int64_t begin = offsets.data()[i], end = offsets.data()[i + 1];
          if (begin < 0 || end < begin || end > data.size())
            raise(PyExc_ValueError, "offsets must ascend within the data");
          out.mutable_data()[i] = kernels::hash_bytes(data.data() + begin, static_cast<uint64_t>(end - begin), seed);
        }
        return out;
      },
      py::arg("data"), py::arg("offsets"), py::arg("seed") = 0);
  m.def("log1p",
        [](const Array<double>& values) { return mapped<double>(values, [](double x) { return kernels::log1p(x); }); });
  m.def("sincos", [](const Array<double>& phase) {
    py::array_t<double> out({phase.size(), py::ssize_t{2}});
    for (py::ssize_t i = 0; i < phase.size(); ++i)
      kernels::sincos_of_turn(phase.data()[i], out.mutable_data() + 2 * i, out.mutable_data() + 2 * i + 1);
    return out;
  });
  m.def("elapsed", [](int64_t now, int64_t then, int64_t ticks_per_second) {
    if (ticks_per_second < 1) raise(PyExc_ValueError, "ticks_per_second must be 1 or more");
    return kernels::elapsed(now, then, ticks_per_second);
  });
  add_batches(m);
}

}  // namespace

void add_features(py::module_& m) {
  py::class_<Features>(m, "Features")
      .def(py::init<const py::bytes&, const py::dict&>(), py::arg("json"), py::arg("arrays"))
      .def("encode", &Features::encode, py::arg("domain"), py::arg("row"), py::arg("base") = py::none())
      .def("encode_rows", &Features::encode_rows, py::arg("domain"), py::arg("rows"))
      .def("encode_columns", &Features::encode_columns, py::arg("domain"), py::arg("columns"), py::arg("n"))
      .def("describe", &Features::describe)
      .def("counts", &Features::counts);
  add_kernels(m.def_submodule("feature_kernels"));
}

}  // namespace fastmtr::python
