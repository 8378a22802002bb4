// How long one row of raw values takes, through the C ABI.
//
// bench_features_row FOLDER: encodes the rows of feature_rows.h one by one; prints the nanoseconds of a row, median and
// 99th percentile. bench_features.py makes the folder.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "feature_rows.h"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  FeatureRows given(argv[1]);
  std::vector<double> times;
  constexpr int kRounds = 20;  // and one before, that is not counted
  for (int round = 0; round <= kRounds; ++round)
    for (const fastmtr::Values& row : given.rows) {
      const auto begin = std::chrono::steady_clock::now();
      given.encode(row);
      const auto end = std::chrono::steady_clock::now();
      if (round > 0) times.push_back(std::chrono::duration<double, std::nano>(end - begin).count());
    }
  if (times.empty()) return 3;
  std::sort(times.begin(), times.end());
  std::printf("%.0f %.0f\n", times[times.size() / 2], times[times.size() * 99 / 100]);
}
