#include "core/certified.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/key_map.h"

namespace fastmtr {

namespace {

constexpr uint32_t kNotAsked = UINT32_MAX;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

double lowered(float score, double width, bool of_logarithms) {
  return of_logarithms ? double{score} * std::exp(-width) : double{score} - width;
}

}  // namespace

double error_between(float coarse, float exact, bool of_logarithms) {
  if (coarse == exact || (std::isnan(coarse) && std::isnan(exact))) return 0;
  const double error = of_logarithms ? std::abs(std::log(double{coarse}) - std::log(double{exact}))
                                     : std::abs(double{coarse} - double{exact});
  return std::isnan(error) ? kInfinity : error;
}

void CertifiedTopK::reserve(uint64_t most_candidates, uint64_t k) {
  keys_.reserve(std::min(k, most_candidates));
  positions_.reserve(most_candidates);
  asked_as_.reserve(most_candidates);
}

void CertifiedTopK::start(const Coarse& coarse, uint64_t k, const Width& width) {
  coarse_ = coarse;
  k_ = std::min(k, coarse.n);
  width_ = width.given;
  safety_ = width.safety;
  asked_ = received_ = 0;
  std::fill_n(asked_as_.data(), coarse.n, kNotAsked);
  // To begin with, the coarse list and what is within the width of its end.
  const uint64_t count = top_k(coarse.scores, coarse.n, coarse.slots, k_, keys_.data());
  coarse_limit_ = count < k_ || k_ == 0 ? -kInfinity : lowered(score_of(keys_[k_ - 1]), width_, coarse.of_logarithms);
  best_ = Best(keys_.data(), k_);
}

double CertifiedTopK::passed_below() const {
  if (received_ == 0) return coarse_limit_;
  return best_.full() ? lowered(score_of(best_.worst()), width_, coarse_.of_logarithms) : -kInfinity;
}

const uint32_t* CertifiedTopK::next(uint64_t* wanted) {
  const uint64_t first = asked_;
  const double limit = passed_below();
  for (uint64_t i = 0; k_ > 0 && i < coarse_.n; ++i) {
    // A NaN, on either side, is not below anything.
    if (asked_as_[i] != kNotAsked || double{coarse_.scores[i]} < limit) continue;
    if (coarse_.slots != nullptr && coarse_.slots[i] == kNoSlot) continue;
    asked_as_[i] = static_cast<uint32_t>(asked_);
    positions_[asked_++] = static_cast<uint32_t>(i);
  }
  *wanted = asked_ - first;
  return positions_.data() + first;
}

void CertifiedTopK::receive(const float* exact) {
  double largest = 0;
  for (; received_ < asked_; ++received_, ++exact) {
    const uint32_t position = positions_[received_];
    const float coarse = coarse_.scores[position];
    best_.add(*exact, position);
    if (!std::isnan(coarse)) largest = std::max(largest, error_between(coarse, *exact, coarse_.of_logarithms));
  }
  width_ = std::max(width_, safety_ * largest);
}

const uint64_t* CertifiedTopK::keys(uint64_t* count) {
  *count = best_.sort();
  return keys_.data();
}

}  // namespace fastmtr
