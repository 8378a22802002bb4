// The k best by exact scores where all candidates have coarse ones, and only some get an exact one.
//
// Taken for granted: no candidate's exact score is further from its coarse one than a width. Then the list is that of
// the exact scores, ties included, since a candidate is passed over only when its coarse score and the width together
// stay below the k-th exact score found. The width is a measured one, so it is watched: it is never less than `safety`
// times the largest error among the exact scores of the request, and where that enlarges it, more candidates get an
// exact score, all of them if need be. What remains unseen is an error of a candidate that was passed over.
#ifndef FASTMTR_CORE_CERTIFIED_H
#define FASTMTR_CORE_CERTIFIED_H

#include <cstdint>

#include "core/arena.h"
#include "core/top_k.h"

namespace fastmtr {

// How errors are measured: as differences, or as differences of logarithms for scores that are products.
double error_between(float coarse, float exact, bool of_logarithms);

struct Coarse {
  const float* scores;
  uint64_t n;
  const uint32_t* slots;  // NULL, or kNoSlot where a candidate is never ranked
  bool of_logarithms;
};

struct Width {
  double given;
  double safety;
};

class CertifiedTopK {
 public:
  void reserve(uint64_t most_candidates, uint64_t k);
  void start(const Coarse& coarse, uint64_t k, const Width& width);

  // The candidates whose exact scores are wanted next, `wanted` of them; none: the list is complete.
  const uint32_t* next(uint64_t* wanted);
  void receive(const float* exact);  // their scores, in that order

  // The list, best first; the index of a listed candidate among all that were asked for; and how many those were.
  const uint64_t* keys(uint64_t* count);
  uint32_t asked_as(uint32_t position) const { return asked_as_[position]; }
  uint64_t asked() const { return asked_; }

 private:
  double passed_below() const;  // candidates of lower coarse scores cannot be in the list

  Coarse coarse_{};
  uint64_t k_ = 0, asked_ = 0, received_ = 0;
  double width_ = 0, safety_ = 0, coarse_limit_ = 0;
  Best best_{nullptr, 0};
  Aligned<uint64_t> keys_;
  Aligned<uint32_t> positions_, asked_as_;
};

}  // namespace fastmtr
#endif
