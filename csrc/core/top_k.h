// The k best of a request: highest score first, ties by lower position, NaN last.
#ifndef FASTMTR_CORE_TOP_K_H
#define FASTMTR_CORE_TOP_K_H

#include <cstdint>

namespace fastmtr {

constexpr uint64_t kMaxCandidates = UINT32_MAX;  // of one request

// One number that orders candidates: larger is better, and no two candidates of a request have the same.
uint64_t rank_key(float score, uint32_t position);
uint32_t position_of(uint64_t key);

// Writes the keys of the k best, best first, into best[k]; returns how many there are. Where `rows` is given,
// candidates with rows[i] == kNoRow are left out.
uint64_t top_k(const float* scores, uint64_t n, const uint32_t* rows, uint64_t k, uint64_t* best);

}  // namespace fastmtr
#endif
