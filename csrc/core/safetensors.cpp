#include "core/safetensors.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "core/json.h"
#include "core/status.h"

namespace fastmtr {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian and used where it lies");

namespace {

constexpr uint64_t kMaxHeader = 64u << 20;
constexpr size_t kMaxRank = 8;

uint64_t whole(const Json& value, const std::string& where, std::string_view role) {
  if (!value.integer || value.whole < 0)
    fail(FMTR_ERROR_BUNDLE, where, ": ", role, " must be a whole number of 0 or more, found ", value.kind_name());
  return static_cast<uint64_t>(value.whole);
}

}  // namespace

uint64_t element_bytes(std::string_view dtype) {
  if (dtype == "F64" || dtype == "I64" || dtype == "U64") return 8;
  if (dtype == "F32" || dtype == "I32" || dtype == "U32") return 4;
  if (dtype == "F16" || dtype == "BF16" || dtype == "I16" || dtype == "U16") return 2;
  if (dtype == "I8" || dtype == "U8" || dtype == "BOOL" || dtype == "F8_E4M3" || dtype == "F8_E5M2") return 1;
  return 0;
}

uint64_t Tensor::count() const {
  uint64_t n = 1;
  for (const uint64_t d : shape) n *= d;
  return n;
}

std::string shape_text(const std::vector<uint64_t>& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += say(i == 0 ? "" : ", ", shape[i]);
  return out + "]";
}

SafeTensors::SafeTensors(const std::string& path, std::string_view what) : what_(what), file_(path) {
  if (file_.size() < 8) fail(FMTR_ERROR_BUNDLE, what, ": ", file_.size(), " bytes are too few for a safetensors file");
  uint64_t header = 0;
  for (int i = 7; i >= 0; --i) header = header << 8 | file_.data()[i];
  if (header > kMaxHeader)
    fail(FMTR_ERROR_BUNDLE, what, ": the header says ", header, " bytes, at most ", kMaxHeader, " are read");
  if (header > file_.size() - 8)
    fail(FMTR_ERROR_BUNDLE, what, ": the header says ", header, " bytes, but the file ends after ", file_.size() - 8);
  const uint64_t data_bytes = file_.size() - 8 - header;
  const Json json = parse_json(file_.text().substr(8, static_cast<size_t>(header)), say(what, " header"));
  if (json.kind != Json::Kind::object)
    fail(FMTR_ERROR_BUNDLE, what, ": the header must be an object, found ", json.kind_name());

  struct Span {
    uint64_t begin, end;
    const std::string* name;
  };
  std::vector<Span> spans;
  for (const auto& [name, entry] : json.object) {
    if (name == "__metadata__") continue;
    const std::string where = say(what, ": tensor ", quote(name));
    const Json* dtype = entry.find("dtype");
    const Json* shape = entry.find("shape");
    const Json* offsets = entry.find("data_offsets");
    if (dtype == nullptr || shape == nullptr || offsets == nullptr || entry.object.size() != 3)
      fail(FMTR_ERROR_BUNDLE, where, ": expected exactly the members dtype, shape and data_offsets");
    const uint64_t element = dtype->kind == Json::Kind::string ? element_bytes(dtype->string) : 0;
    if (element == 0) fail(FMTR_ERROR_BUNDLE, where, ": unknown dtype ", quote(dtype->string));
    if (shape->kind != Json::Kind::array || shape->array.size() > kMaxRank)
      fail(FMTR_ERROR_BUNDLE, where, ": shape must be a list of at most ", kMaxRank, " numbers");
    if (offsets->kind != Json::Kind::array || offsets->array.size() != 2)
      fail(FMTR_ERROR_BUNDLE, where, ": data_offsets must be a list of two numbers");

    Tensor tensor;
    tensor.dtype = dtype->string;
    // The product is guarded with every extent taken as at least 1, so that a zero cannot hide an overflow of the
    // others.
    uint64_t most = element, bytes = element;
    for (const Json& extent : shape->array) {
      const uint64_t d = whole(extent, where, "an extent");
      const uint64_t at_least_one = std::max<uint64_t>(d, 1);
      if (most > std::numeric_limits<uint64_t>::max() / at_least_one)
        fail(FMTR_ERROR_BUNDLE, where, ": the shape's product overflows 64 bits");
      most *= at_least_one;
      bytes *= d;
      tensor.shape.push_back(d);
    }
    const uint64_t begin = whole(offsets->array[0], where, "a data offset");
    const uint64_t end = whole(offsets->array[1], where, "a data offset");
    if (begin > end || end > data_bytes)
      fail(FMTR_ERROR_BUNDLE, where, ": data offsets ", begin, " .. ", end, " do not lie within the file's ",
           data_bytes, " data bytes");
    if (end - begin != bytes)
      fail(FMTR_ERROR_BUNDLE, where, ": ", tensor.dtype, " ", shape_text(tensor.shape), " needs ", bytes,
           " bytes, data offsets give ", end - begin);
    tensor.bytes = bytes;
    tensor.data = file_.data() + 8 + header + begin;
    spans.push_back({begin, end, &name});
    tensors_.emplace(name, std::move(tensor));
  }

  std::sort(spans.begin(), spans.end(),
            [](const Span& a, const Span& b) { return a.begin != b.begin ? a.begin < b.begin : a.end < b.end; });
  uint64_t at = 0;
  for (const Span& span : spans) {
    if (span.begin != at)
      fail(FMTR_ERROR_BUNDLE, what, ": tensor ", quote(*span.name), " begins at data byte ", span.begin, ", expected ",
           at, span.begin < at ? " (it overlaps another)" : " (there is a gap)");
    at = span.end;
  }
  if (at != data_bytes)
    fail(FMTR_ERROR_BUNDLE, what, ": the tensors end at data byte ", at, ", the file at ", data_bytes);
}

const Tensor* SafeTensors::find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

const Tensor& SafeTensors::get(const std::string& name, std::initializer_list<std::string_view> dtypes) const {
  const Tensor* tensor = find(name);
  if (tensor == nullptr) fail(FMTR_ERROR_BUNDLE, what_, ": there is no tensor ", quote(name));
  if (std::find(dtypes.begin(), dtypes.end(), tensor->dtype) == dtypes.end()) {
    std::string expected;
    for (const std::string_view dtype : dtypes) expected += say(expected.empty() ? "" : " or ", dtype);
    fail(FMTR_ERROR_BUNDLE, what_, ": tensor ", quote(name), " is ", tensor->dtype, ", expected ", expected);
  }
  if (reinterpret_cast<uintptr_t>(tensor->data) % element_bytes(tensor->dtype) != 0)
    fail(FMTR_ERROR_BUNDLE, what_, ": tensor ", quote(name), " does not begin at a multiple of its element's size");
  return *tensor;
}

}  // namespace fastmtr
