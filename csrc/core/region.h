// Rows that grow where they are: readers of earlier rows go on while rows are added. Address space for all rows that
// may come is reserved at once; memory is taken as they come.
#ifndef FASTMTR_CORE_REGION_H
#define FASTMTR_CORE_REGION_H

#include <cstddef>
#include <utility>

namespace fastmtr {

class Region {
 public:
  Region() = default;
  Region(size_t row_bytes, size_t capacity);  // in rows; std::bad_alloc without address space for them
  Region(Region&& other) noexcept { swap(other); }
  Region& operator=(Region&& other) noexcept {
    swap(other);
    return *this;
  }
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;
  ~Region();

  // The first `rows` rows, at most the capacity, can be read and written; new ones are zeros. std::bad_alloc without
  // memory.
  void grow(size_t rows);

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }
  size_t row_bytes() const { return row_bytes_; }
  unsigned char* row(size_t i) const { return data_ + i * row_bytes_; }
  size_t bytes() const { return grown_; }

 private:
  void swap(Region& other) noexcept {
    std::swap(reserved_, other.reserved_);
    std::swap(reserved_bytes_, other.reserved_bytes_);
    std::swap(data_, other.data_);
    std::swap(row_bytes_, other.row_bytes_);
    std::swap(grown_, other.grown_);
  }

  void* reserved_ = nullptr;
  size_t reserved_bytes_ = 0;
  unsigned char* data_ = nullptr;  // in what is reserved, at a page's beginning
  size_t row_bytes_ = 0;
  size_t grown_ = 0;  // bytes of data_ that can be used
};

}  // namespace fastmtr
#endif
