// A safetensors file, mapped; every size, offset and type is checked before a tensor can be asked for.
#ifndef FASTMTR_CORE_SAFETENSORS_H
#define FASTMTR_CORE_SAFETENSORS_H

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/mapped_file.h"

namespace fastmtr {

struct Tensor {
  std::string dtype;  // "F32", "I32", "I64", ...
  std::vector<uint64_t> shape;
  const unsigned char* data = nullptr;
  uint64_t bytes = 0;

  uint64_t count() const;
};

std::string shape_text(const std::vector<uint64_t>& shape);  // "[3, 16]"
uint64_t element_bytes(std::string_view dtype);  // 0: not a type of the format

class SafeTensors {
 public:
  SafeTensors() = default;
  SafeTensors(const std::string& path, std::string_view what);

  const Tensor* find(const std::string& name) const;
  // The tensor, which must be there, of one of these types, and aligned for it.
  const Tensor& get(const std::string& name, std::initializer_list<std::string_view> dtypes) const;
  const Tensor& get(const std::string& name, std::string_view dtype) const {
    return get(name, std::initializer_list<std::string_view>{dtype});
  }
  uint64_t file_bytes() const { return file_.size(); }
  const std::string& what() const { return what_; }

 private:
  std::string what_;
  MappedFile file_;
  std::unordered_map<std::string, Tensor> tensors_;
};

}  // namespace fastmtr
#endif
