// The list of exact scores, found from coarse ones: right wherever the errors stay within the width, watched and
// widened where they do not.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "core/certified.h"
#include "core/key_map.h"

namespace {

using namespace fastmtr;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
std::mt19937 random_bits(3);
double uniform(double low, double high) { return std::uniform_real_distribution<double>(low, high)(random_bits); }

struct Request {
  std::vector<float> exact, coarse;
  std::vector<uint32_t> rows;
};

struct Found {
  std::vector<uint32_t> list;
  std::vector<float> scores;
  uint64_t asked, rounds;
};

Found find(const Request& r, uint64_t k, const Width& width, bool of_logarithms) {
  static CertifiedTopK top;
  top.reserve(r.exact.size(), k);
  top.start({r.coarse.data(), r.exact.size(), r.rows.empty() ? nullptr : r.rows.data(), of_logarithms}, k, width);
  Found found{};
  std::vector<float> all;
  for (;; ++found.rounds) {
    uint64_t wanted = 0;
    const uint32_t* positions = top.next(&wanted);
    if (wanted == 0) break;
    std::vector<float> exact;
    for (uint64_t i = 0; i < wanted; ++i) exact.push_back(r.exact[positions[i]]);
    all.insert(all.end(), exact.begin(), exact.end());
    top.receive(exact.data());
  }
  uint64_t count = 0;
  const uint64_t* keys = top.keys(&count);
  for (uint64_t i = 0; i < count; ++i) {
    found.list.push_back(position_of(keys[i]));
    found.scores.push_back(all[top.asked_as(found.list.back())]);
  }
  found.asked = top.asked();
  return found;
}

std::vector<uint32_t> expected(const Request& r, uint64_t k) {
  std::vector<uint64_t> keys(std::min<uint64_t>(k, r.exact.size()));
  const uint64_t count =
      top_k(r.exact.data(), r.exact.size(), r.rows.empty() ? nullptr : r.rows.data(), keys.size(), keys.data());
  std::vector<uint32_t> list;
  for (uint64_t i = 0; i < count; ++i) list.push_back(position_of(keys[i]));
  return list;
}

// Scores with ties, coarse ones off by at most `width`.
Request random_request(size_t n, double width, bool of_logarithms) {
  Request r;
  for (size_t i = 0; i < n; ++i) {
    const double score = std::round(uniform(0.01, 1) * 500) / 500;
    const double error = width * 0.999 * (i % 5 == 0 ? (i % 2 ? 1 : -1) : uniform(-1, 1));
    r.exact.push_back(static_cast<float>(score));
    r.coarse.push_back(static_cast<float>(of_logarithms ? score * std::exp(error) : score + error));
  }
  return r;
}

void test_errors_within_the_width() {
  for (int i = 0; i < 600; ++i) {
    const bool of_logarithms = i % 2 == 0;
    const double width = uniform(0, 1) < 0.1 ? 1e-6 : uniform(0.001, 0.1);
    Request r = random_request(static_cast<size_t>(uniform(0, 300)), width, of_logarithms);
    if (i % 3 == 0)
      for (size_t j = 0; j < r.exact.size(); ++j)
        r.rows.push_back(uniform(0, 1) < 0.2 ? kNoSlot : static_cast<uint32_t>(j));
    const auto k = static_cast<uint64_t>(uniform(1, 40));
    // Rounding to float adds a little to the error.
    const Found found = find(r, k, {width + 1e-6, 1}, of_logarithms);
    check(found.list == expected(r, k), "the list is that of the exact scores");
    for (size_t j = 0; j < found.list.size(); ++j)
      check(found.scores[j] == r.exact[found.list[j]], "the scores of the list are exact");
    check(found.asked >= found.list.size() && found.asked <= r.exact.size(), "asked for");
  }
}

void test_only_near_the_cut() {
  Request r;
  for (int i = 0; i < 1000; ++i) r.exact.push_back(static_cast<float>(i) / 1000);
  r.coarse = r.exact;
  const Found found = find(r, 10, {0.0052, 1}, false);
  check(found.asked == 15, "ten, and five whose interval reaches the tenth: found " + std::to_string(found.asked));
  check(found.rounds == 1, "all are known at once");
}

// A width far too small: what is seen of the errors enlarges it.
void test_a_width_that_is_too_small() {
  uint64_t wrong_unwatched = 0, wrong = 0, all_asked = 0;
  for (int i = 0; i < 300; ++i) {
    const Request r = random_request(300, 0.05, false);
    const std::vector<uint32_t> want = expected(r, 10);
    std::vector<uint64_t> keys(10);
    top_k(r.coarse.data(), 300, nullptr, 10, keys.data());
    for (size_t j = 0; j < 10; ++j)
      if (position_of(keys[j]) != want[j]) {
        ++wrong_unwatched;
        break;
      }
    const Found found = find(r, 10, {1e-9, 2}, false);
    wrong += found.list != want;
    all_asked += found.asked;
    check(found.rounds > 1, "the width was enlarged");
  }
  check(wrong_unwatched > 250, "the coarse list alone is wrong");
  check(wrong == 0, "errors that were seen widen the search, lists wrong: " + std::to_string(wrong));
  check(all_asked < 300 * 150, "not everything is asked for: " + std::to_string(all_asked));

  // Errors without bound: everything is asked for.
  Request r = random_request(100, 0.01, true);
  const auto best = std::max_element(r.coarse.begin(), r.coarse.end()) - r.coarse.begin();
  r.exact[static_cast<size_t>(best)] = kNaN;
  const Found found = find(r, 5, {0.01, 1}, true);
  check(found.asked == 100 && found.list == expected(r, 5), "an exact NaN: everything is asked for");
}

void test_special_scores() {
  const float inf = std::numeric_limits<float>::infinity();
  for (const bool of_logarithms : {false, true}) {
    Request r = random_request(50, 0, of_logarithms);
    r.exact[7] = r.coarse[7] = kNaN;
    r.coarse[9] = kNaN;  // asked for, since nothing is known of it
    r.exact[11] = r.coarse[11] = inf;
    r.exact[12] = r.coarse[12] = 0;
    for (const uint64_t k : {1, 3, 49, 50, 60}) {
      const Found found = find(r, k, {0, 1}, of_logarithms);
      check(found.list == expected(r, k), "special scores, k = " + std::to_string(k));
    }
    Request low = random_request(20, 0, of_logarithms);
    for (size_t i = 3; i < 20; ++i) low.exact[i] = low.coarse[i] = of_logarithms ? 0 : -inf;
    check(find(low, 6, {0.1, 1}, of_logarithms).list == expected(low, 6), "many lowest scores");
  }
  check(error_between(0, 0, true) == 0 && error_between(inf, inf, false) == 0 && error_between(kNaN, kNaN, true) == 0,
        "equal scores have no error");
  check(std::isinf(error_between(0, 0.1f, true)) && std::isinf(error_between(0.1f, kNaN, false)), "no finite error");
  check(std::abs(error_between(0.2f, 0.1f, true) - std::log(2.0)) < 1e-6, "of logarithms");
  for (const float score : {0.0f, 1.5f, -2.5f, inf, -inf, 1e-40f})
    check(score_of(rank_key(score, 5)) == score, "score_of");
  check(std::isnan(score_of(rank_key(kNaN, 5))), "score_of NaN");
  check(find(random_request(10, 0, false), 0, {0, 1}, false).asked == 0, "k = 0");
}

}  // namespace

int main() {
  test_errors_within_the_width();
  test_only_near_the_cut();
  test_a_width_that_is_too_small();
  test_special_scores();
  return finish();
}
