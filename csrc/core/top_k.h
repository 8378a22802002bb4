// The k best of a request: highest score first, ties by lower position, NaN last.
#ifndef FASTMTR_CORE_TOP_K_H
#define FASTMTR_CORE_TOP_K_H

#include <cstdint>

namespace fastmtr {

constexpr uint64_t kMaxCandidates = UINT32_MAX;  // of one request

// One number that orders candidates: larger is better, and no two candidates of a request have the same.
uint64_t rank_key(float score, uint32_t position);
uint32_t position_of(uint64_t key);
float score_of(uint64_t key);

// The keys of the k best of those added.
class Best {
 public:
  Best(uint64_t* keys, uint64_t k) : keys_(keys), k_(k) {}  // room for k
  void add(float score, uint32_t position);
  bool full() const { return count_ == k_; }
  uint64_t worst() const { return keys_[0]; }  // of at least one
  uint64_t sort();                             // best first; returns how many there are; then nothing can be added

 private:
  uint64_t* keys_;
  uint64_t k_, count_ = 0;
};

// Writes the keys of the k best, best first, into best[k]; returns how many there are. Where `slots` is given,
// candidates with slots[i] == kNoSlot are left out.
uint64_t top_k(const float* scores, uint64_t n, const uint32_t* slots, uint64_t k, uint64_t* best);

}  // namespace fastmtr
#endif
