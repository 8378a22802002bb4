// Kernels that use each thing of portable.h once, and what they must give: under nvcc and on the host alike.
#ifndef FASTMTR_TESTS_CUDA_KERNELS_CUH
#define FASTMTR_TESTS_CUDA_KERNELS_CUH

#include "cuda/portable.h"

namespace fastmtr::device::portable_tests {

struct Vectors {
  const float* in;
  float* out;
  unsigned n;
};

// out[block] = the sum of the block's part of `in`: a tree over shared memory.
FMTR_KERNEL(sum_by_tree, Vectors) {
  float* parts = reinterpret_cast<float*>(shared_memory());
  const unsigned t = thread_index(), i = block_index() * block_size() + t;
  parts[t] = i < args.n ? args.in[i] : 0.0f;
  block_barrier();
  for (unsigned half = block_size() / 2; half > 0; half /= 2) {
    if (t < half) parts[t] += parts[t + half];
    block_barrier();
  }
  if (t == 0) args.out[block_index()] = parts[0];
}

// The same by shuffles, the warps' sums through shared memory.
FMTR_KERNEL(sum_by_shuffles, Vectors) {
  float* of_warps = reinterpret_cast<float*>(shared_memory());
  const unsigned i = block_index() * block_size() + thread_index();
  float sum = i < args.n ? args.in[i] : 0.0f;
  for (unsigned mask = kWarp / 2; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
  if (lane_index() == 0) of_warps[warp_index()] = sum;
  block_barrier();
  if (warp_index() == 0) {
    sum = lane_index() < block_size() / kWarp ? of_warps[lane_index()] : 0.0f;
    for (unsigned distance = kWarp / 2; distance > 0; distance /= 2) sum += shuffle_down(sum, distance);
    if (lane_index() == 0) args.out[block_index()] = sum;
  }
}

struct Integers {
  const uint32_t* in;
  uint32_t* out;
  uint64_t* wide;
  unsigned n;
};

// Inclusive prefix sums of one block.
FMTR_KERNEL(scan, Integers) {
  uint32_t* of_warps = reinterpret_cast<uint32_t*>(shared_memory());
  const unsigned t = thread_index();
  uint32_t sum = args.in[t];
  for (unsigned distance = 1; distance < kWarp; distance *= 2) {
    const uint32_t before = shuffle_up(sum, distance);
    if (lane_index() >= distance) sum += before;
  }
  if (lane_index() == kWarp - 1) of_warps[warp_index()] = sum;
  block_barrier();
  for (unsigned w = 0; w < warp_index(); ++w) sum += of_warps[w];
  args.out[t] = sum;
}

// The numbers that are odd, in their order, at the front of out; out[n] counts them (one warp).
FMTR_KERNEL(keep_odd, Integers) {
  uint32_t kept = 0;
  for (unsigned first = 0; first < args.n; first += kWarp) {
    const unsigned i = first + lane_index();
    const bool keep = i < args.n && args.in[i] % 2 == 1;
    const uint32_t all = ballot(keep);
    if (keep) args.out[kept + bits_set(all & ((1u << lane_index()) - 1))] = args.in[i];
    kept += bits_set(all);
  }
  if (lane_index() == 0) args.out[args.n] = kept;
}

// Lane i reads lane (7 i + 3) % 32, in each type.
FMTR_KERNEL(permute_lanes, Integers) {
  const unsigned lane = lane_index(), from = (7 * lane + 3) % kWarp;
  args.out[lane] = shuffle(args.in[lane], from);
  args.out[kWarp + lane] = bits_of(shuffle(float_of(args.in[lane]), from));
  args.out[2 * kWarp + lane] = static_cast<uint32_t>(shuffle(static_cast<int32_t>(args.in[lane]), from));
  args.wide[lane] = shuffle(uint64_t{args.in[lane]} << 32 | lane, from);
  warp_barrier();
  args.out[3 * kWarp + lane] = shuffle_down(args.in[lane], 5);
  args.out[4 * kWarp + lane] = shuffle_up(args.in[lane], 5);
}

// A histogram of 16, the largest of `in`, and who came last: the last block sees what all have written.
FMTR_KERNEL(count, Integers) {
  const unsigned i = block_index() * block_size() + thread_index();
  if (i < args.n) {
    atomic_add(args.out + args.in[i] % 16, 1u);
    atomic_max(args.wide, uint64_t{args.in[i]});
    atomic_add(args.wide + 1, uint64_t{args.in[i]});
  }
  thread_fence();
  block_barrier();
  if (thread_index() == 0 && atomic_add(args.out + 16, 1u) == grid_size() - 1) {
    uint32_t all = 0;
    for (unsigned bin = 0; bin < 16; ++bin) all += load_fresh(args.out + bin);
    args.out[17] = all;
  }
}

struct Halves {
  const float* in;
  half_t* half;
  bf16_t* bf16;
  float *of_half, *of_bf16;
  unsigned n;
};
FMTR_KERNEL(convert, Halves) {
  for (unsigned i = block_index() * block_size() + thread_index(); i < args.n; i += grid_size() * block_size()) {
    args.half[i] = to_half(args.in[i]);
    args.bf16[i] = to_bf16(args.in[i]);
    args.of_half[i] = to_float(args.half[i]);
    args.of_bf16[i] = to_float(args.bf16[i]);
  }
}

// Chunks of 4 floats a thread come to shared memory two steps ahead of their use; each thread sums its neighbour's.
FMTR_KERNEL(sum_copied, Vectors) {
  const unsigned t = thread_index(), size = 4 * block_size(), steps = args.n / size;
  float* shared = reinterpret_cast<float*>(shared_memory());  // [3][size]
  const auto fetch = [&](unsigned step) {
    if (step < steps) copy_async16(shared + step % 3 * size + 4 * t, args.in + step * size + 4 * t);
    copy_async_commit();
  };
  fetch(0);
  fetch(1);
  const unsigned neighbour = (t + 1) % block_size();
  float sum = 0;
  for (unsigned step = 0; step < steps; ++step) {
    copy_async_wait<1>();
    block_barrier();
    fetch(step + 2);
    for (unsigned i = 0; i < 4; ++i) sum += shared[step % 3 * size + 4 * neighbour + i];
  }
  args.out[neighbour] = sum;
}

template <class T>
struct Matrices {
  const typename FragmentMemory<T>::Type *a, *b;
  const float* c;
  float* out;
  unsigned depth;  // a [16, depth], b [depth, 16]
};

// out = 2 (a b + c), with the operands in the layouts that are named.
template <class T, Layout layout_a, Layout layout_b>
FMTR_KERNEL(multiply, Matrices<T>) {
  constexpr unsigned k = kFragmentDepth<T>;
  Accumulator<T> sum;
  sum.load(args.c, 16);
  for (unsigned i = 0; i < args.depth; i += k) {
    MatrixA<T, layout_a> a;
    MatrixB<T, layout_b> b;
    a.load(args.a + (layout_a == Layout::row_major ? i : i * 16), layout_a == Layout::row_major ? args.depth : 16);
    b.load(args.b + (layout_b == Layout::row_major ? i * 16 : i), layout_b == Layout::row_major ? 16 : args.depth);
    multiply_add(sum, a, b);
  }
  for (int i = 0; i < sum.kElements; ++i) sum[i] *= 2;
  sum.store(args.out, 16);
}

}  // namespace fastmtr::device::portable_tests
#endif
