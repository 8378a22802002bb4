// Raw rows of a table as values for the feature functions: what feature_rows.py wrote.
#ifndef FASTMTR_BENCH_FEATURE_ROWS_H
#define FASTMTR_BENCH_FEATURE_ROWS_H

#include <algorithm>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "fastmtr.hpp"

// The rows of a candidate in FOLDER/rows.tsv (names in its first line, nothing for null), and the features beside it.
struct FeatureRows {
  explicit FeatureRows(const std::string& folder) : features(folder) {
    std::ifstream file(folder + "/rows.tsv");
    std::string line;
    if (!std::getline(file, line)) throw std::runtime_error("there are no rows in " + folder);
    const auto n_columns = static_cast<size_t>(std::count(line.begin(), line.end(), '\t')) + 1;
    const std::vector<std::string> names = cells(line, n_columns);
    const std::string about = features.describe();
    std::vector<uint32_t> columns;
    std::vector<bool> are_numbers;
    for (const std::string& name : names) {
      columns.push_back(features.column(FMTR_CANDIDATE, name));
      are_numbers.push_back(about.find("{\"name\": \"" + name + "\", \"accepts\": [\"number\"]}") != std::string::npos);
    }
    while (std::getline(file, line)) texts_.push_back(cells(line, n_columns));
    rows.resize(texts_.size());
    for (size_t i = 0; i < rows.size(); ++i)
      for (size_t c = 0; c < n_columns; ++c) {
        if (texts_[i][c].empty())
          rows[i].add_null(columns[c]);
        else if (are_numbers[c])
          rows[i].add(columns[c], std::stod(texts_[i][c]));
        else
          rows[i].add(columns[c], std::string_view(texts_[i][c]));
      }
    ids.resize(features.width(FMTR_CANDIDATE, FMTR_IDS));
    dense.resize(features.width(FMTR_CANDIDATE, FMTR_DENSE));
  }

  void encode(const fastmtr::Values& row) {
    fastmtr::check(fmtr_features_encode(features.get(), FMTR_CANDIDATE, row.data(), row.size(), nullptr, nullptr,
                                        ids.data(), dense.data()));
  }

  const fastmtr::Features features;
  std::vector<fastmtr::Values> rows;
  std::vector<int32_t> ids;  // of the row that was encoded last
  std::vector<float> dense;

 private:
  static std::vector<std::string> cells(const std::string& line, size_t n) {
    std::vector<std::string> out(n);
    std::istringstream stream(line);
    for (std::string& cell : out) std::getline(stream, cell, '\t');
    return out;
  }

  std::vector<std::vector<std::string>> texts_;  // the values point into them
};

#endif
