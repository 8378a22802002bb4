// How long one row of raw values takes, through the C ABI.
//
// bench_features_row BUNDLE ROWS.tsv: encodes the rows of a table (names in its first line, nothing for null) as
// candidate features, one by one; prints the nanoseconds of a row, median and 99th percentile. bench_features.py makes
// both.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "fastmtr.hpp"

namespace {

std::vector<std::string> cells(const std::string& line, size_t n) {
  std::vector<std::string> out(n);
  std::istringstream stream(line);
  for (std::string& cell : out) std::getline(stream, cell, '\t');
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const fastmtr::Features features(argv[1]);
  std::ifstream file(argv[2]);
  std::string line;
  if (!std::getline(file, line)) return 3;
  const auto n_columns = static_cast<size_t>(std::count(line.begin(), line.end(), '\t')) + 1;
  const std::vector<std::string> names = cells(line, n_columns);
  const std::string about = features.describe();
  std::vector<uint32_t> columns;
  std::vector<bool> are_numbers;
  for (const std::string& name : names) {
    columns.push_back(features.column(FMTR_CANDIDATE, name));
    are_numbers.push_back(about.find("{\"name\": \"" + name + "\", \"accepts\": [\"number\"]}") != std::string::npos);
  }
  std::vector<std::vector<std::string>> texts;  // the values point into them
  while (std::getline(file, line)) texts.push_back(cells(line, n_columns));
  std::vector<fastmtr::Values> rows(texts.size());
  for (size_t i = 0; i < rows.size(); ++i)
    for (size_t c = 0; c < n_columns; ++c) {
      if (texts[i][c].empty())
        rows[i].add_null(columns[c]);
      else if (are_numbers[c])
        rows[i].add(columns[c], std::stod(texts[i][c]));
      else
        rows[i].add(columns[c], std::string_view(texts[i][c]));
    }

  std::vector<int32_t> ids(features.width(FMTR_CANDIDATE, FMTR_IDS));
  std::vector<float> dense(features.width(FMTR_CANDIDATE, FMTR_DENSE));
  std::vector<double> times;
  constexpr int kRounds = 20;  // and one before, that is not counted
  for (int round = 0; round <= kRounds; ++round)
    for (const fastmtr::Values& row : rows) {
      const auto begin = std::chrono::steady_clock::now();
      fastmtr::check(fmtr_features_encode(features.get(), FMTR_CANDIDATE, row.data(), row.size(), nullptr, nullptr,
                                          ids.data(), dense.data()));
      const auto end = std::chrono::steady_clock::now();
      if (round > 0) times.push_back(std::chrono::duration<double, std::nano>(end - begin).count());
    }
  if (times.empty()) return 3;
  std::sort(times.begin(), times.end());
  std::printf("%.0f %.0f\n", times[times.size() / 2], times[times.size() * 99 / 100]);
}
