// What goes to the device once: everything is laid out first, then takes one piece of memory there.
#ifndef FASTMTR_CUDA_UPLOAD_H
#define FASTMTR_CUDA_UPLOAD_H

#include <cstdint>
#include <map>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "cuda/runtime.h"

namespace fastmtr::device {

class Upload {
 public:
  // Numbers that stay where they are until finish(). The same ones again are the same piece.
  const void* add(const void* from, size_t bytes) {
    if (from == nullptr) return nullptr;
    const auto [found, fresh] = known_.emplace(std::tuple(from, bytes, 0), pieces_.size());
    if (fresh) pieces_.push_back({from, reserve(bytes), bytes});
    return place(found->second);
  }

  // What `make(buffer)` writes: `bytes` made from `from` in the way of that number.
  template <class Make>
  const void* make(const void* from, size_t bytes, int way, const Make& make) {
    if (from == nullptr) return nullptr;
    const auto [found, fresh] = known_.emplace(std::tuple(from, bytes, way), pieces_.size());
    if (fresh) {
      made_.push_back(std::make_unique<unsigned char[]>(bytes));
      make(made_.back().get());
      pieces_.push_back({made_.back().get(), reserve(bytes), bytes});
    }
    return place(found->second);
  }

  // Until now, add() and make() gave places; with the memory allocated, this makes a pointer of one.
  template <class T>
  void resolve(const T*& pointer) const {
    if (pointer == nullptr) return;
    const auto at = reinterpret_cast<uintptr_t>(pointer) - 1;
    pointer = reinterpret_cast<const T*>(memory_.data() + at);
  }
  void allocate() { memory_ = Memory<unsigned char>(total_); }

  // The pieces go over; the memory is the caller's.
  Memory<unsigned char> finish(Stream& stream) {
    for (const Piece& piece : pieces_) stream.copy_in(memory_.data() + piece.at, piece.from, piece.bytes);
    stream.wait();
    return std::move(memory_);
  }

 private:
  struct Piece {
    const void* from;
    size_t at, bytes;
  };
  size_t reserve(size_t bytes) {
    const size_t at = total_;
    total_ += (bytes + 255) / 256 * 256;
    return at;
  }
  // No pointer yet, and never NULL.
  const void* place(size_t piece) const { return reinterpret_cast<const void*>(pieces_[piece].at + 1); }

  std::map<std::tuple<const void*, size_t, int>, size_t> known_;
  std::vector<Piece> pieces_;
  std::vector<std::unique_ptr<unsigned char[]>> made_;
  size_t total_ = 0;
  Memory<unsigned char> memory_;
};

}  // namespace fastmtr::device
#endif
