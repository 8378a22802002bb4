// Memory that begins at a cache line; large pieces in large pages.
#ifndef FASTMTR_CORE_ARENA_H
#define FASTMTR_CORE_ARENA_H

#include <sys/mman.h>

#include <cstddef>
#include <limits>
#include <new>
#include <utility>

namespace fastmtr {

constexpr size_t kAlign = 64;
constexpr size_t kLargePage = size_t{2} << 20;
constexpr size_t kLine = kAlign / sizeof(float);  // floats a cache line

inline size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// n elements, 64-byte aligned, zeroed: lanes beyond a row's end are read by vector loads, and must not be signalling
// noise.
template <class T>
class Aligned {
 public:
  Aligned() = default;
  explicit Aligned(size_t n) : size_(n) {
    if (n == 0) return;
    if (n > (std::numeric_limits<size_t>::max() - kAlign) / sizeof(T)) throw std::bad_alloc();
    data_ = static_cast<T*>(::operator new(n * sizeof(T), alignment()));
#ifdef MADV_HUGEPAGE
    // Rows read here and there out of a large table wait for address translation more than for memory. Advice only.
    if (bytes() >= kLargePage) ::madvise(data_, bytes() / kLargePage * kLargePage, MADV_HUGEPAGE);
#endif
    for (size_t i = 0; i < n; ++i) data_[i] = T{};
  }
  Aligned(Aligned&& other) noexcept { swap(other); }
  Aligned& operator=(Aligned&& other) noexcept {
    swap(other);
    return *this;
  }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  ~Aligned() { ::operator delete(data_, alignment()); }

  // At least n elements; what was in it is lost when it grows.
  void reserve(size_t n) {
    if (n > size_) *this = Aligned(n);
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t size() const { return size_; }
  size_t bytes() const { return size_ * sizeof(T); }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }

 private:
  std::align_val_t alignment() const { return std::align_val_t{bytes() >= kLargePage ? kLargePage : kAlign}; }

  void swap(Aligned& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }

  T* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace fastmtr
#endif
