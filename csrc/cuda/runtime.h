// The device runtime, the same with a GPU (runtime_cuda.cu) and emulated (runtime_host.cpp). Every call throws
// Error(FMTR_ERROR_BACKEND), or FMTR_ERROR_MEMORY, with the runtime's own words.
//
// Work goes to a stream and is done in its order, at the latest when the stream, or an event that was recorded on it,
// is waited for. The emulation does it no sooner than then: a result that is read without waiting is not there. Built
// with AddressSanitizer, it also ends the process where the host itself touches device memory.
#ifndef FASTMTR_CUDA_RUNTIME_H
#define FASTMTR_CUDA_RUNTIME_H

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include "cuda/portable.h"

namespace fastmtr::device {

// ---- devices -------------------------------------------------------------------------------------------------------

// With 0, `why` says why there is none.
int device_count(std::string& why);

struct Properties {
  std::string name;
  int compute_major, compute_minor;
  unsigned multiprocessors;
  size_t shared_bytes;                 // a block can ask for at most
  size_t shared_bytes_multiprocessor;  // for all blocks of one
  size_t memory_bytes, level_two_bytes;
};
Properties properties(int device);

// The device of this thread's further calls.
void use_device(int device);

// ---- memory --------------------------------------------------------------------------------------------------------

enum class Place { device, pinned };  // pinned: the host's, which a device copies from and to without staging

// Owns memory, 256-byte aligned, whose content is not defined at first.
template <class T, Place place = Place::device>
class Memory;

void* allocate(size_t bytes, Place place);
void release(void* memory, Place place) noexcept;

template <class T, Place place>
class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t size) : data_(static_cast<T*>(allocate(size * sizeof(T), place))), size_(size) {}
  Memory(Memory&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Memory& operator=(Memory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Memory() { release(data_, place); }
  T* data() const noexcept { return data_; }
  size_t size() const noexcept { return size_; }

 private:
  T* data_ = nullptr;
  size_t size_ = 0;
};
template <class T>
using Pinned = Memory<T, Place::pinned>;

// ---- streams -------------------------------------------------------------------------------------------------------

class Event;
class Graph;

class Stream {
 public:
  Stream();
  ~Stream();
  Stream(Stream&&) noexcept;
  Stream& operator=(Stream&&) noexcept;

  // Sizes in bytes. The memory must be there until the stream was waited for.
  void copy_in(void* device, const void* host, size_t bytes);
  void copy_out(void* host, const void* device, size_t bytes);
  void copy(void* to, const void* from, size_t bytes);  // on the device
  void set(void* device, unsigned char value, size_t bytes);
  void wait_for(const Event& event);
  // What was sent until now to a stream of the device that is not ours: its handle, NULL for the default one. (The
  // emulation knows no others: what they do is done at once.)
  void wait_for_foreign(void* stream);

  // Everything done; throws what went wrong in any of it.
  void wait();

  struct State;
  State& state() const { return *state_; }

 private:
  std::unique_ptr<State> state_;
};

namespace detail {
void launch(Stream& stream, const char* name, const void* kernel, void (*call)(const void* kernel, const void* args),
            const void* args, size_t args_bytes, unsigned grid, unsigned block, size_t shared_bytes);
unsigned blocks_per_multiprocessor(const char* name, const void* kernel, unsigned block, size_t shared_bytes);
}  // namespace detail

template <class Args>
void launch(Stream& stream, Kernel<Args> kernel, unsigned grid, unsigned block, size_t shared_bytes, const Args& args) {
  static_assert(std::is_trivially_copyable_v<Args> && sizeof(Args) <= 4096);
#if defined(__CUDACC__)
  const auto call = nullptr;
#else
  const auto call = [](const void* function, const void* arguments) {
    reinterpret_cast<void (*)(const Args&)>(function)(*static_cast<const Args*>(arguments));
  };
#endif
  detail::launch(stream, kernel.name, reinterpret_cast<const void*>(kernel.function), call, &args, sizeof args, grid,
                 block, shared_bytes);
}

// How many blocks of such a launch a multiprocessor runs at once. 0: none, they need more than it has.
template <class Args>
unsigned blocks_per_multiprocessor(Kernel<Args> kernel, unsigned block, size_t shared_bytes) {
  return detail::blocks_per_multiprocessor(kernel.name, reinterpret_cast<const void*>(kernel.function), block,
                                           shared_bytes);
}

// A point of a stream.
class Event {
 public:
  Event();
  ~Event();
  Event(Event&&) noexcept;
  Event& operator=(Event&&) noexcept;

  void record(Stream& stream);
  void wait();
  // Of both as they were recorded last, and waited for.
  double milliseconds_since(const Event& start) const;

  struct State;
  State& state() const { return *state_; }

 private:
  std::unique_ptr<State> state_;
};

// What `body` sends to the stream (kernels, copies, sets), recorded instead of done: memory and arguments are those of
// then, what the memory holds is that of each launch.
class Graph {
 public:
  Graph(Stream& stream, const std::function<void()>& body);
  ~Graph();
  Graph(Graph&&) noexcept;
  Graph& operator=(Graph&&) noexcept;

  void launch(Stream& stream) const;

  struct State;

 private:
  std::unique_ptr<State> state_;
};

}  // namespace fastmtr::device
#endif
