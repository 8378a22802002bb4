// The k best of each request, as core/top_k.h orders them: highest score first, ties by lower position, NaN last.
#ifndef FASTMTR_CUDA_TOP_K_CUH
#define FASTMTR_CUDA_TOP_K_CUH

#include "cuda/device_math.h"
#include "cuda/frame.cuh"

namespace fastmtr::device {

constexpr uint32_t kFewCandidates = 1024;  // are all sorted; beyond, the k-th best is found first
constexpr uint32_t kDigits = 256;
constexpr uint32_t kSharedKeys = 1024;  // of a list that is sorted in shared memory

// One number that orders candidates: larger is better; 0 is below all.
FMTR_DEVICE uint64_t rank_key(float score, uint32_t position) {
  uint32_t order = 0;
  if (score == score) {
    const uint32_t bits = bits_of(score + 0.0f);  // -0 and 0 are one score
    order = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  }
  return (uint64_t)order << 32 | (0xffffffffu - position);
}
FMTR_DEVICE uint32_t position_of(uint64_t key) { return 0xffffffffu - (uint32_t)key; }

struct ListArgs {
  const Batch* batch;
  uint32_t n_tasks;
};

// A request's candidates; key 0: not to be listed.
struct Candidates {
  const float* fused;
  const uint32_t* slots;  // NULL: all are known
  uint64_t n;
  FMTR_DEVICE uint64_t key(uint64_t i) const {
    return slots != nullptr && slots[i] == kNoRow ? 0 : rank_key(fused[i], (uint32_t)i);
  }
};

struct ListShared {
  uint64_t keys[kSharedKeys];
  uint32_t digits[kDigits];
  uint64_t prefix;
  uint32_t count, left, found;
  int32_t done;
};
static_assert(kFewCandidates <= kSharedKeys, "keys of few candidates lie where those of a list do");

// By one warp: the digit with the `left`-th best key, digits from the highest down.
FMTR_DEVICE void choose_digit(ListShared& shared, unsigned shift) {
  constexpr uint32_t each = kDigits / kWarp;
  const uint32_t lane = lane_index(), last = kDigits - 1 - lane * each;
  uint32_t own = 0;
  for (uint32_t i = 0; i < each; ++i) own += shared.digits[last - i];
  uint32_t sum = own;  // of this lane and those before it
  for (unsigned distance = 1; distance < kWarp; distance *= 2) {
    const uint32_t before = shuffle_up(sum, distance);
    if (lane >= distance) sum += before;
  }
  const uint32_t left = shared.left;
  const uint32_t reached = ballot(sum >= left);
  warp_barrier();
  if (lane != first_bit_set(reached)) return;
  uint32_t above = sum - own, digit = last;
  while (above + shared.digits[digit] < left) above += shared.digits[digit--];
  shared.left = left - above;
  shared.prefix |= (uint64_t)digit << shift;
  shared.done = shared.digits[digit] == left - above;
}

FMTR_DEVICE void sort_descending(uint64_t* keys, uint32_t n) {
  for (uint32_t size = 2; size <= n; size *= 2)
    for (uint32_t distance = size / 2; distance > 0; distance /= 2) {
      for_each(n / 2, [&](uint32_t i) {
        const uint32_t low = i / distance * 2 * distance + i % distance, high = low + distance;
        const uint64_t a = keys[low], b = keys[high];
        if ((a < b) == ((low & size) == 0)) keys[low] = b, keys[high] = a;
      });
      block_barrier();
    }
}

// All keys are sorted, in shared memory.
template <class Write>
FMTR_DEVICE uint64_t list_few(const Candidates& all, uint64_t k, ListShared& shared, const Write& write) {
  uint32_t size = 1;
  while (size < all.n) size *= 2;
  if (thread_index() == 0) shared.count = 0;
  block_barrier();
  uint32_t known = 0;
  for_each(size, [&](uint32_t i) {
    const uint64_t key = i < all.n ? all.key(i) : 0;
    shared.keys[i] = key;
    known += key != 0;
  });
  if (known > 0) atomic_add(&shared.count, known);
  block_barrier();
  sort_descending(shared.keys, size);
  const uint32_t listed = shared.count < k ? shared.count : (uint32_t)k;
  for_each(listed, [&](uint32_t i) { write(i, position_of(shared.keys[i])); });
  return listed;
}

// The k-th best key is found digit by digit; those from there on are collected and sorted.
template <class Write>
FMTR_DEVICE uint64_t list_many(const Candidates& all, uint64_t k, uint64_t* keys, ListShared& shared,
                               const Write& write) {
  if (thread_index() == 0) shared.prefix = 0, shared.count = shared.found = 0, shared.done = 0;
  block_barrier();
  uint32_t known = 0;
  for (uint64_t i = thread_index(); i < all.n; i += block_size()) known += all.key(i) != 0;
  if (known > 0) atomic_add(&shared.count, known);
  block_barrier();
  const uint64_t listed = shared.count < k ? shared.count : k;
  if (listed == 0) return 0;
  if (thread_index() == 0) shared.left = (uint32_t)listed;
  for (unsigned shift = 64; shift > 0;) {
    shift -= 8;
    for_each(kDigits, [&](uint32_t i) { shared.digits[i] = 0; });
    block_barrier();
    const uint64_t prefix = shared.prefix, higher = shift == 56 ? 0 : ~(uint64_t)0 << (shift + 8);
    for (uint64_t i = thread_index(); i < all.n; i += block_size()) {
      const uint64_t key = all.key(i);
      if (key != 0 && (key & higher) == prefix) atomic_add(&shared.digits[key >> shift & 0xffu], 1u);
    }
    block_barrier();
    if (warp_index() == 0) choose_digit(shared, shift);
    block_barrier();
    if (shared.done) break;
  }
  const uint64_t least = shared.prefix;
  uint32_t size = 1;
  while (size < listed) size *= 2;
  if (size <= kSharedKeys) keys = shared.keys;
  for_each(size, [&](uint32_t i) { keys[i] = 0; });
  block_barrier();
  for (uint64_t i = thread_index(); i < all.n; i += block_size()) {
    const uint64_t key = all.key(i);
    if (key != 0 && key >= least) keys[atomic_add(&shared.found, 1u)] = key;
  }
  block_barrier();
  sort_descending(keys, size);
  for_each((uint32_t)listed, [&](uint32_t i) { write(i, position_of(keys[i])); });
  return listed;
}

FMTR_KERNEL(list_best, ListArgs) {
  const Batch& batch = *args.batch;
  ListShared& shared = *(ListShared*)shared_memory();
  for (uint64_t r = block_index(); r < batch.n_requests; r += grid_size()) {
    const uint64_t begin = batch.offsets != nullptr ? batch.offsets[r] : r * batch.n_items;
    const uint64_t n = batch.offsets != nullptr ? batch.offsets[r + 1] - begin : batch.n_items;
    const Candidates all{batch.fused + begin, batch.slots != nullptr ? batch.slots + begin : nullptr, n};
    const auto write = [&](uint64_t i, uint32_t position) {
      const uint64_t to = r * batch.k + i, from = begin + position;
      batch.positions[to] = position;
      if (batch.list_fused != nullptr) batch.list_fused[to] = batch.fused[from];
      if (batch.list_items != nullptr) batch.list_items[to] = batch.items[from];
      if (batch.scores != nullptr)
        for (uint32_t t = 0; t < args.n_tasks; ++t)
          batch.list_scores[to * args.n_tasks + t] = batch.scores[from * args.n_tasks + t];
    };
    const uint64_t listed = n <= kFewCandidates
                                ? list_few(all, batch.k, shared, write)
                                : list_many(all, batch.k, batch.keys + r * batch.list_room, shared, write);
    for (uint64_t i = listed + thread_index(); i < batch.k; i += block_size()) {  // places without a candidate
      const uint64_t to = r * batch.k + i;
      batch.positions[to] = ~(uint64_t)0;
      if (batch.list_fused != nullptr) batch.list_fused[to] = math::nan();
      if (batch.list_items != nullptr) batch.list_items[to] = -1;
      if (batch.scores != nullptr)
        for (uint32_t t = 0; t < args.n_tasks; ++t) batch.list_scores[to * args.n_tasks + t] = math::nan();
    }
    if (thread_index() == 0) batch.counts[r] = listed;
    block_barrier();
  }
}

}  // namespace fastmtr::device
#endif
