#include "core/region.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <limits>
#include <new>

#include "core/arena.h"

namespace fastmtr {

namespace {

size_t page() {
  static const size_t bytes = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  return bytes;
}

}  // namespace

Region::Region(size_t row_bytes, size_t capacity) : row_bytes_(row_bytes) {
  if (row_bytes == 0 || capacity == 0) return;
  if (capacity > (std::numeric_limits<size_t>::max() - 2 * kLargePage) / row_bytes) throw std::bad_alloc();
  // Whole large pages, and as much more as it takes to begin at one.
  const size_t bytes = round_up(row_bytes * capacity, kLargePage) + kLargePage;
  // Memory that cannot be touched is not counted by systems that refuse to promise more than they have.
  void* at = ::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) throw std::bad_alloc();
  reserved_ = at;
  reserved_bytes_ = bytes;
  data_ = reinterpret_cast<unsigned char*>(round_up(reinterpret_cast<uintptr_t>(at), kLargePage));
}

Region::~Region() {
  if (reserved_ != nullptr) ::munmap(reserved_, reserved_bytes_);
}

void Region::grow(size_t rows) {
  size_t needed = rows * row_bytes_;
  if (needed <= grown_) return;
  needed = round_up(needed, needed < kLargePage ? page() : kLargePage);
  if (::mprotect(data_ + grown_, needed - grown_, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  // As in Aligned: rows read here and there wait for address translation more than for memory.
  if (needed >= kLargePage) ::madvise(data_, needed, MADV_HUGEPAGE);
#endif
  grown_ = needed;
}

}  // namespace fastmtr
