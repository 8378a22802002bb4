// What device code may use: the same names under nvcc, as intrinsics, and under the C++ compiler, emulated (host.h).
//
// A kernel takes one struct; grid and block have one dimension, and a block is whole warps of 32 threads. Warp
// operations are of the whole warp: all 32 lanes must come to them. Blocks may not wait for one another. Device code
// lies in namespace fastmtr::device: CUDA's headers have names like these in the global one.
#ifndef FASTMTR_CUDA_PORTABLE_H
#define FASTMTR_CUDA_PORTABLE_H

#include <stddef.h>
#include <stdint.h>

namespace fastmtr::device {

constexpr unsigned kWarp = 32;

enum class Layout { row_major, column_major };

// Names a precision of fragments; what they are made of is float.
struct tf32_t {};

// The third number of a fragment's product, m x n x k; m and n are 16.
template <class T>
constexpr int kFragmentDepth = 16;
template <>
constexpr int kFragmentDepth<tf32_t> = 8;

// What the memory holds that a fragment is loaded from.
template <class T>
struct FragmentMemory {
  using Type = T;
};
template <>
struct FragmentMemory<tf32_t> {
  using Type = float;
};

// A kernel and its name, for launch() and for errors: FMTR_KERNEL_OF(score<half_t>).
template <class Args>
struct Kernel {
  const char* name;
#if defined(__CUDACC__)
  void (*function)(const Args);
#else
  void (*function)(const Args&);
#endif
};

}  // namespace fastmtr::device

#define FMTR_KERNEL_OF(...) \
  ::fastmtr::device::Kernel { #__VA_ARGS__, __VA_ARGS__ }

#if !defined(__CUDACC__)
#include "cuda/host.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>

// As host.h does, a kernel takes its arguments without a copy of them a thread.
#define FMTR_KERNEL(name, Args) __global__ void name(const __grid_constant__ Args args)
#define FMTR_DEVICE __device__ inline
#define FMTR_HOST_DEVICE __host__ __device__ inline
// One copy that kernels call: for what is long and not often called, which would take the compiler long in each kernel.
#define FMTR_DEVICE_CALLED static __device__ __noinline__

namespace fastmtr::device {

template <class Args>
Kernel(const char*, void (*)(const Args)) -> Kernel<Args>;

// ---- threads -------------------------------------------------------------------------------------------------------

FMTR_DEVICE unsigned thread_index() { return threadIdx.x; }
FMTR_DEVICE unsigned block_index() { return blockIdx.x; }
FMTR_DEVICE unsigned block_size() { return blockDim.x; }
FMTR_DEVICE unsigned grid_size() { return gridDim.x; }
FMTR_DEVICE unsigned lane_index() { return threadIdx.x % kWarp; }
FMTR_DEVICE unsigned warp_index() { return threadIdx.x / kWarp; }

FMTR_DEVICE void block_barrier() { __syncthreads(); }
FMTR_DEVICE void warp_barrier() { __syncwarp(); }

// As many bytes as the launch asked for, 128-byte aligned; what is in them at first is not defined.
FMTR_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char fastmtr_shared_memory[];
  return fastmtr_shared_memory;
}

// ---- warps: T is float, int32_t, uint32_t or uint64_t
// ----------------------------------------------------------------

template <class T>
FMTR_DEVICE T shuffle(T value, unsigned lane) {
  return __shfl_sync(0xffffffffu, value, (int)lane);
}
template <class T>
FMTR_DEVICE T shuffle_xor(T value, unsigned mask) {
  return __shfl_xor_sync(0xffffffffu, value, (int)mask);
}
// The value of the lane `distance` after (before) this one; its own where there is none.
template <class T>
FMTR_DEVICE T shuffle_down(T value, unsigned distance) {
  return __shfl_down_sync(0xffffffffu, value, distance);
}
template <class T>
FMTR_DEVICE T shuffle_up(T value, unsigned distance) {
  return __shfl_up_sync(0xffffffffu, value, distance);
}
// Bit i: what lane i said.
FMTR_DEVICE uint32_t ballot(bool yes) { return __ballot_sync(0xffffffffu, yes); }

// ---- memory --------------------------------------------------------------------------------------------------------

// Each gives the value from before.
FMTR_DEVICE uint32_t atomic_add(uint32_t* to, uint32_t value) { return atomicAdd(to, value); }
FMTR_DEVICE uint64_t atomic_add(uint64_t* to, uint64_t value) {
  return atomicAdd((unsigned long long*)to, (unsigned long long)value);
}
FMTR_DEVICE float atomic_add(float* to, float value) { return atomicAdd(to, value); }
FMTR_DEVICE uint64_t atomic_max(uint64_t* to, uint64_t value) {
  return atomicMax((unsigned long long*)to, (unsigned long long)value);
}
// What this thread wrote before, others see before what it writes after.
FMTR_DEVICE void thread_fence() { __threadfence(); }
// Of global memory that another block wrote during this launch: never from a stale first-level cache.
template <class T>
FMTR_DEVICE T load_fresh(const T* from) {
  return __ldcg(from);
}

// 16 bytes from global to shared memory, both 16-byte aligned, on the way until wait() of this thread says that at
// most `Newest` groups of them, the last committed, are still on it. Other threads see them after a barrier.
FMTR_DEVICE void copy_async16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((unsigned)__cvta_generic_to_shared(shared)),
               "l"(__cvta_generic_to_global(global))
               : "memory");
}
FMTR_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Newest>
FMTR_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Newest) : "memory");
}

// ---- numbers -------------------------------------------------------------------------------------------------------

using half_t = __half;
using bf16_t = __nv_bfloat16;

// To the nearest, ties to even; beyond the largest: infinity.
FMTR_HOST_DEVICE half_t to_half(float x) { return __float2half_rn(x); }
FMTR_HOST_DEVICE bf16_t to_bf16(float x) { return __float2bfloat16_rn(x); }
FMTR_HOST_DEVICE float to_float(half_t x) { return __half2float(x); }
FMTR_HOST_DEVICE float to_float(bf16_t x) { return __bfloat162float(x); }

FMTR_DEVICE float fused_multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
FMTR_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
FMTR_DEVICE float float_of(uint32_t x) { return __uint_as_float(x); }
FMTR_DEVICE unsigned bits_set(uint32_t x) { return (unsigned)__popc(x); }
FMTR_DEVICE unsigned first_bit_set(uint32_t x) { return (unsigned)__ffs((int)x) - 1; }  // x is not 0

// ---- products of a warp
// ----------------------------------------------------------------------------------------------
//
// A [16, k] times B [k, 16] added to an accumulator [16, 16] of float, k = kFragmentDepth<T>; T is half_t, bf16_t or
// tf32_t. Which lane holds which element is nobody's business. A pointer is 32-byte aligned, `stride` elements lie
// between rows (column_major: columns), a multiple of 16 bytes.

namespace detail {
template <class T>
struct Wmma {
  using Type = T;
};
template <>
struct Wmma<tf32_t> {
  using Type = nvcuda::wmma::precision::tf32;
};
template <Layout layout>
struct WmmaLayout {
  using Type = nvcuda::wmma::row_major;
};
template <>
struct WmmaLayout<Layout::column_major> {
  using Type = nvcuda::wmma::col_major;
};
template <class Use, class T, Layout layout>
struct Operand {
  nvcuda::wmma::fragment<Use, 16, 16, kFragmentDepth<T>, typename Wmma<T>::Type, typename WmmaLayout<layout>::Type>
      fragment;

  // tf32: elements are rounded to its 11 bits here, ties away from zero.
  __device__ void load(const typename FragmentMemory<T>::Type* from, unsigned stride) {
    nvcuda::wmma::load_matrix_sync(fragment, from, stride);
    if constexpr (kFragmentDepth<T> == 8)
      for (int i = 0; i < fragment.num_elements; ++i) fragment.x[i] = nvcuda::wmma::__float_to_tf32(fragment.x[i]);
  }
};
}  // namespace detail

template <class T, Layout layout = Layout::row_major>
using MatrixA = detail::Operand<nvcuda::wmma::matrix_a, T, layout>;
template <class T, Layout layout = Layout::row_major>
using MatrixB = detail::Operand<nvcuda::wmma::matrix_b, T, layout>;

template <class T>
struct Accumulator {
  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, kFragmentDepth<T>, float> fragment;

  static constexpr int kElements = 8;  // those of this lane
  __device__ float& operator[](int i) { return fragment.x[i]; }
  __device__ void fill(float value) { nvcuda::wmma::fill_fragment(fragment, value); }
  template <Layout layout = Layout::row_major>
  __device__ void load(const float* from, unsigned stride) {
    nvcuda::wmma::load_matrix_sync(fragment, from, stride, memory(layout));
  }
  template <Layout layout = Layout::row_major>
  __device__ void store(float* to, unsigned stride) const {
    nvcuda::wmma::store_matrix_sync(to, fragment, stride, memory(layout));
  }

 private:
  static constexpr __device__ nvcuda::wmma::layout_t memory(Layout layout) {
    return layout == Layout::row_major ? nvcuda::wmma::mem_row_major : nvcuda::wmma::mem_col_major;
  }
};

// sum += a b
template <class T, Layout layout_a, Layout layout_b>
FMTR_DEVICE void multiply_add(Accumulator<T>& sum, const MatrixA<T, layout_a>& a, const MatrixB<T, layout_b>& b) {
  nvcuda::wmma::mma_sync(sum.fragment, a.fragment, b.fragment, sum.fragment);
}

}  // namespace fastmtr::device
#endif
#endif
