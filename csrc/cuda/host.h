// CUDA on the host, for tests: a kernel's threads are fibers of the calling thread, a block after the other. The order
// of threads and blocks can be chosen: what depends on it lacks a barrier. What a GPU would leave undefined is an error
// that names the kernel (a barrier that not all threads come to, lanes of a warp at different operations) or shows
// (shared and device memory are filled with NaN first, an asynchronous copy arrives no earlier than it is waited for).
#ifndef FASTMTR_CUDA_HOST_H
#define FASTMTR_CUDA_HOST_H

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define FMTR_KERNEL(name, Args) void name([[maybe_unused]] const Args& args)
#define FMTR_DEVICE inline
#define FMTR_HOST_DEVICE inline
#define FMTR_DEVICE_CALLED inline

namespace fastmtr::device {

template <class Args>
Kernel(const char*, void (*)(const Args&)) -> Kernel<Args>;

namespace host {

// ---- how kernels are run -------------------------------------------------------------------------------------------

enum class Order { forward, reverse, random };

struct Options {
  Order order = Order::forward;  // of a block's threads, and of the blocks
  uint64_t seed = 1;             // random
  unsigned char poison = 0xff;   // each byte of shared memory at a block's beginning
};

// Those of the environment, FASTMTR_CUDA_HOST_ORDER = forward | reverse | random:SEED, unless `set_options` came
// before.
Options options();
void set_options(const Options& options);

// Runs all threads of all blocks. Throws Error(FMTR_ERROR_BACKEND) that names the kernel.
void run(const char* name, void (*call)(const void* kernel, const void* args), const void* kernel, const void* args,
         unsigned grid, unsigned block, size_t shared_bytes);

// ---- what device code calls ----------------------------------------------------------------------------------------

// Where in the source a thread waits.
struct Site {
  const char* file;
  int line;
};

// One operation's values of a warp.
struct Exchange {
  uint64_t values[kWarp];
  float a[16 * 16], b[16 * 16], sum[16 * 16];
};

// The thread that runs now.
struct Here {
  unsigned thread, block, block_size, grid_size;
  unsigned char* shared;
  Exchange* exchange;  // of the operation that its warp comes to next
};
inline thread_local constinit Here here{};

void wait_for_block(Site site);
// All lanes of the warp come to this operation; the last of them calls `complete` if there is one. Lanes then read the
// values of all from the exchange, until their next operation but one.
void wait_for_warp(const char* operation, Site site, void (*complete)(Exchange&) = nullptr);
void start_copy(void* shared, const void* global, Site site);
void commit_copies();
void wait_for_copies(unsigned newest);
[[noreturn]] void refuse(const char* what, Site site);  // ends the launch with an error

template <class T>
const T* exchange(T value, const char* operation, Site site) {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, int32_t> || std::is_same_v<T, uint32_t> ||
                std::is_same_v<T, uint64_t>);
  Exchange* all = here.exchange;
  T* values = reinterpret_cast<T*>(all->values);
  std::memcpy(values + here.thread % kWarp, &value, sizeof value);
  wait_for_warp(operation, site);
  return values;
}
template <class T>
T read(const T* values, unsigned lane) {
  T value;
  std::memcpy(&value, values + lane, sizeof value);
  return value;
}

}  // namespace host

#define FMTR_SITE host::Site site = {__builtin_FILE(), __builtin_LINE()}

// ---- threads -------------------------------------------------------------------------------------------------------

FMTR_DEVICE unsigned thread_index() { return host::here.thread; }
FMTR_DEVICE unsigned block_index() { return host::here.block; }
FMTR_DEVICE unsigned block_size() { return host::here.block_size; }
FMTR_DEVICE unsigned grid_size() { return host::here.grid_size; }
FMTR_DEVICE unsigned lane_index() { return host::here.thread % kWarp; }
FMTR_DEVICE unsigned warp_index() { return host::here.thread / kWarp; }

FMTR_DEVICE void block_barrier(FMTR_SITE) { host::wait_for_block(site); }
FMTR_DEVICE void warp_barrier(FMTR_SITE) { host::wait_for_warp("warp_barrier", site); }
FMTR_DEVICE unsigned char* shared_memory() { return host::here.shared; }

// ---- warps ---------------------------------------------------------------------------------------------------------

template <class T>
FMTR_DEVICE T shuffle(T value, unsigned lane, FMTR_SITE) {
  return host::read(host::exchange(value, "shuffle", site), lane % kWarp);
}
template <class T>
FMTR_DEVICE T shuffle_xor(T value, unsigned mask, FMTR_SITE) {
  return host::read(host::exchange(value, "shuffle_xor", site), (lane_index() ^ mask) % kWarp);
}
template <class T>
FMTR_DEVICE T shuffle_down(T value, unsigned distance, FMTR_SITE) {
  const unsigned lane = lane_index();
  return host::read(host::exchange(value, "shuffle_down", site), distance < kWarp - lane ? lane + distance : lane);
}
template <class T>
FMTR_DEVICE T shuffle_up(T value, unsigned distance, FMTR_SITE) {
  const unsigned lane = lane_index();
  return host::read(host::exchange(value, "shuffle_up", site), distance <= lane ? lane - distance : lane);
}
FMTR_DEVICE uint32_t ballot(bool yes, FMTR_SITE) {
  const uint32_t* said = host::exchange(uint32_t{yes}, "ballot", site);
  uint32_t bits = 0;
  for (unsigned lane = 0; lane < kWarp; ++lane) bits |= host::read(said, lane) << lane;
  return bits;
}

// ---- memory --------------------------------------------------------------------------------------------------------

FMTR_DEVICE uint32_t atomic_add(uint32_t* to, uint32_t value) {
  return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}
FMTR_DEVICE uint64_t atomic_add(uint64_t* to, uint64_t value) {
  return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}
FMTR_DEVICE float atomic_add(float* to, float value) {
  float before, after;
  __atomic_load(to, &before, __ATOMIC_RELAXED);
  do after = before + value;
  while (!__atomic_compare_exchange(to, &before, &after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return before;
}
FMTR_DEVICE uint64_t atomic_max(uint64_t* to, uint64_t value) {
  uint64_t before = __atomic_load_n(to, __ATOMIC_RELAXED);
  while (before < value &&
         !__atomic_compare_exchange_n(to, &before, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return before;
}
FMTR_DEVICE void thread_fence() {}  // one thread of the host runs them all
template <class T>
FMTR_DEVICE T load_fresh(const T* from) {
  return *from;
}

FMTR_DEVICE void copy_async16(void* shared, const void* global, FMTR_SITE) { host::start_copy(shared, global, site); }
FMTR_DEVICE void copy_async_commit() { host::commit_copies(); }
template <int Newest>
FMTR_DEVICE void copy_async_wait() {
  host::wait_for_copies(Newest);
}

// ---- numbers -------------------------------------------------------------------------------------------------------

struct half_t {
  uint16_t bits;
};
struct bf16_t {
  uint16_t bits;
};

FMTR_DEVICE uint32_t bits_of(float x) { return std::bit_cast<uint32_t>(x); }
FMTR_DEVICE float float_of(uint32_t x) { return std::bit_cast<float>(x); }
FMTR_DEVICE float fused_multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
FMTR_DEVICE unsigned bits_set(uint32_t x) { return static_cast<unsigned>(std::popcount(x)); }
FMTR_DEVICE unsigned first_bit_set(uint32_t x) { return static_cast<unsigned>(std::countr_zero(x)); }

FMTR_HOST_DEVICE half_t to_half(float x) {
  const uint32_t sign = bits_of(x) >> 16 & 0x8000u, size = bits_of(x) & 0x7fffffffu;
  if (size > 0x7f800000u) return {0x7fff};  // NaN, as the GPU writes it
  uint32_t half;
  if (size >= 0x477ff000u)  // 65520, half way to what would be 65536
    half = 0x7c00u;
  else if (size < 0x38800000u)  // below 2^-14: added to 0.5, the last place is that of the smallest half
    half = bits_of(float_of(size) + 0.5f) - bits_of(0.5f);
  else  // 13 bits less, and 112 less in the exponent; a carry goes into it
    half = (size - 0x38000000u + 0xfffu + (size >> 13 & 1u)) >> 13;
  return {static_cast<uint16_t>(sign | half)};
}
FMTR_HOST_DEVICE float to_float(half_t x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, size = (x.bits & 0x7fffu) << 13;
  if (size >= 0x7c00u << 13) return float_of(sign | (size + (224u << 23)));  // infinity, NaN
  if (size < 0x0400u << 13) return float_of(sign | bits_of(float_of(size + (113u << 23)) - float_of(113u << 23)));
  return float_of(sign | (size + (112u << 23)));
}
FMTR_HOST_DEVICE bf16_t to_bf16(float x) {
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
FMTR_HOST_DEVICE float to_float(bf16_t x) { return float_of(uint32_t{x.bits} << 16); }

// ---- products of a warp
// ----------------------------------------------------------------------------------------------

namespace host {

inline float element(half_t x) { return to_float(x); }
inline float element(bf16_t x) { return to_float(x); }
inline float element(float x) {  // to tf32: the nearest of 11 bits, ties away from zero
  const uint32_t bits = bits_of(x);
  return (bits & 0x7f800000u) == 0x7f800000u ? x : float_of((bits + 0x1000u) & ~0x1fffu);
}

// Which element of a matrix of `size` the i-th of this lane is: scattered, for an odd factor and a power of two give a
// permutation, so that code which believes to know where an element lies is wrong here.
inline unsigned place(unsigned i, unsigned size, unsigned factor) {
  return (here.thread % kWarp * (size / kWarp) + i) * factor % size;
}

template <class T>
void check_matrix(const T* memory, unsigned stride, Site site) {
  if (reinterpret_cast<uintptr_t>(memory) % 32 != 0) refuse("a fragment's memory is not 32-byte aligned", site);
  if (stride * sizeof(T) % 16 != 0) refuse("a fragment's stride is not a multiple of 16 bytes", site);
}

// Rows x columns elements, of which each lane holds its share.
template <class T, unsigned Rows, unsigned Columns, Layout layout, unsigned Factor>
struct Operand {
  static constexpr unsigned kSize = Rows * Columns, kShare = kSize / kWarp;
  float elements[kShare];

  void load(const typename FragmentMemory<T>::Type* from, unsigned stride, FMTR_SITE) {
    check_matrix(from, stride, site);
    wait_for_warp("load of a fragment", site);
    for (unsigned i = 0; i < kShare; ++i) {
      const unsigned at = place(i, kSize, Factor), row = at / Columns, column = at % Columns;
      elements[i] = element(from[layout == Layout::row_major ? row * stride + column : column * stride + row]);
    }
  }
  void give(float* matrix) const {
    for (unsigned i = 0; i < kShare; ++i) matrix[place(i, kSize, Factor)] = elements[i];
  }
};

// Terms ascending in k, each exact, each sum rounded.
template <int Depth>
void multiply(Exchange& all) {
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < Depth; ++k)
      for (int j = 0; j < 16; ++j) all.sum[i * 16 + j] += all.a[i * Depth + k] * all.b[k * 16 + j];
}

}  // namespace host

template <class T, Layout layout = Layout::row_major>
using MatrixA = host::Operand<T, 16, kFragmentDepth<T>, layout, 37>;
template <class T, Layout layout = Layout::row_major>
using MatrixB = host::Operand<T, kFragmentDepth<T>, 16, layout, 101>;

template <class T>
struct Accumulator {
  static constexpr int kElements = 8;
  float elements[kElements];

  float& operator[](int i) { return elements[i]; }
  void fill(float value) {
    for (float& element : elements) element = value;
  }
  template <Layout layout = Layout::row_major>
  void load(const float* from, unsigned stride, FMTR_SITE) {
    host::check_matrix(from, stride, site);
    host::wait_for_warp("load of an accumulator", site);
    for (unsigned i = 0; i < kElements; ++i) elements[i] = from[offset<layout>(i, stride)];
  }
  template <Layout layout = Layout::row_major>
  void store(float* to, unsigned stride, FMTR_SITE) const {
    host::check_matrix(to, stride, site);
    host::wait_for_warp("store of an accumulator", site);
    for (unsigned i = 0; i < kElements; ++i) to[offset<layout>(i, stride)] = elements[i];
  }

  static unsigned place(unsigned i) { return host::place(i, 256, 171); }

 private:
  template <Layout layout>
  static size_t offset(unsigned i, unsigned stride) {
    const unsigned row = place(i) / 16, column = place(i) % 16;
    return layout == Layout::row_major ? size_t{row} * stride + column : size_t{column} * stride + row;
  }
};

template <class T, Layout layout_a, Layout layout_b>
FMTR_DEVICE void multiply_add(Accumulator<T>& sum, const MatrixA<T, layout_a>& a, const MatrixB<T, layout_b>& b,
                              FMTR_SITE) {
  host::Exchange& all = *host::here.exchange;
  a.give(all.a);
  b.give(all.b);
  for (unsigned i = 0; i < Accumulator<T>::kElements; ++i) all.sum[sum.place(i)] = sum.elements[i];
  host::wait_for_warp("multiply_add", site, host::multiply<kFragmentDepth<T>>);
  for (unsigned i = 0; i < Accumulator<T>::kElements; ++i) sum.elements[i] = all.sum[sum.place(i)];
}

#undef FMTR_SITE

}  // namespace fastmtr::device
#endif
