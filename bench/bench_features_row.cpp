// How long one row of raw values takes: 13 numbers and 26 texts, as in Criteo's log, through the C ABI.
//
// bench_features_row [VOCABULARY] [ROWS]: nanoseconds of a row, median and 99th percentile, with rows that come one
// after another (warm) and with the processor's caches swept before each (cold).
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "fastmtr.h"

namespace {

constexpr int kNumbers = 13, kTexts = 26;

void need(fmtr_status status) {
  if (status == FMTR_OK) return;
  std::fprintf(stderr, "%s\n", fmtr_last_error());
  std::exit(1);
}

std::string category(uint64_t number) {
  char text[16];
  std::snprintf(text, sizeof text, "%08llx", static_cast<unsigned long long>(number * 2654435761u % 4294967296u));
  return text;
}

std::string program() {
  std::string entries, states;
  const auto put = [](std::string& to, const std::string& text) { to += (to.empty() ? "" : ", ") + text; };
  for (int i = 0; i < kNumbers; ++i) {
    const std::string name = "\"I" + std::to_string(i + 1) + "\"";
    put(entries, "{\"name\": " + name + ", \"op\": \"scale\", \"state\": " + name +
                     ", \"domain\": \"request\", \"kind\": \"dense\", \"offset\": " + std::to_string(i) +
                     ", \"width\": 1, \"columns\": [" + name + "]}");
    put(states, name +
                    ": {\"kind\": \"log1p\", \"nulls\": \"fill\", \"out_of_range\": \"keep\", \"indicator\": false, "
                    "\"mean\": 3.0, \"low\": 0.0, \"high\": 1e6, \"least\": -3e38, \"most\": 3e38, \"shift\": 1.5, "
                    "\"factor\": 2.0, \"filler\": 0.0}");
  }
  for (int i = 0; i < kTexts; ++i) {
    const std::string name = "\"C" + std::to_string(i + 1) + "\"";
    put(entries, "{\"name\": " + name + ", \"op\": \"category\", \"state\": " + name +
                     ", \"domain\": \"request\", \"kind\": \"ids\", \"offset\": " + std::to_string(i) +
                     ", \"width\": 1, \"columns\": [" + name + "]}");
    put(states, name +
                    ": {\"type\": \"str\", \"hash_rows\": null, \"hashes\": 1, \"oov_rows\": 1, \"nulls\": \"fill\", "
                    "\"unseen\": \"row\"}");
  }
  return "{\"version\": 2, \"hash\": \"xxh64\", \"clock\": {\"column\": null, \"ticks_per_second\": 1, "
         "\"offset_seconds\": 0}, "
         "\"keys\": {\"user\": \"user\", \"item\": \"item\"}, \"statistics\": {}, \"program\": [" +
         entries + "], \"features\": {" + states + "}}";
}

struct Row {
  std::vector<std::string> texts;
  std::vector<fmtr_value> values;
};

void report(const char* name, std::vector<double>& times) {
  std::sort(times.begin(), times.end());
  std::printf("%-5s median %6.0f ns, 99th percentile %6.0f ns\n", name, times[times.size() / 2],
              times[times.size() * 99 / 100]);
}

}  // namespace

int main(int argc, char** argv) {
  const uint64_t vocabulary = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 10'000;
  const size_t n_rows = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 20'000;
  std::string bytes;
  std::vector<int64_t> offsets{0};
  for (uint64_t i = 0; i < vocabulary; ++i) {
    bytes += category(i);
    offsets.push_back(static_cast<int64_t>(bytes.size()));
  }
  const uint64_t bytes_shape = bytes.size(), offsets_shape = offsets.size();
  std::vector<std::string> names;
  for (int i = 0; i < kTexts; ++i)
    for (const char* part : {"/bytes", "/offsets"}) names.push_back("C" + std::to_string(i + 1) + part);
  std::vector<fmtr_array> arrays;
  for (size_t i = 0; i < names.size(); ++i)
    arrays.push_back(i % 2 == 0 ? fmtr_array{names[i].c_str(), "U8", 1, &bytes_shape, bytes.data()}
                                : fmtr_array{names[i].c_str(), "I64", 1, &offsets_shape, offsets.data()});
  const std::string json = program();
  fmtr_features* features = nullptr;
  need(fmtr_features_create(json.data(), json.size(), arrays.data(), arrays.size(), &features));

  std::mt19937_64 random(1);
  std::vector<Row> rows(n_rows);
  for (Row& row : rows) {
    for (int i = 0; i < kTexts; ++i)  // skewed towards frequent ones; a few are unseen
      row.texts.push_back(category(static_cast<uint64_t>(std::pow(static_cast<double>(random() % 1'000'000) / 1e6, 3) *
                                                         static_cast<double>(vocabulary) * 1.02)));
    for (int i = 0; i < kNumbers + kTexts; ++i) {
      fmtr_value value{};
      const bool is_text = i >= kNumbers;
      const std::string name = (is_text ? "C" : "I") + std::to_string(is_text ? i - kNumbers + 1 : i + 1);
      need(fmtr_features_column(features, FMTR_REQUEST, name.c_str(), &value.column));
      if (is_text) {
        const std::string& text = row.texts[static_cast<size_t>(i - kNumbers)];
        value.type = FMTR_TEXT;
        value.count = text.size();
        value.of.text = text.data();
      } else if (random() % 5 != 0) {
        value.type = FMTR_INT;
        value.of.whole = static_cast<int64_t>(random() % 10'000);
      }
      row.values.push_back(value);
    }
  }

  std::vector<int32_t> ids(kTexts);
  std::vector<float> dense(kNumbers);
  std::vector<unsigned char> sweep(size_t{64} << 20);
  const auto run = [&](size_t n, bool cold) {
    std::vector<double> times;
    for (size_t i = 0; i < n; ++i) {
      const Row& row = rows[i % rows.size()];
      if (cold)
        for (size_t at = 0; at < sweep.size(); at += 64) ++sweep[at];
      const auto begin = std::chrono::steady_clock::now();
      need(fmtr_features_encode(features, FMTR_REQUEST, row.values.data(), row.values.size(), nullptr, nullptr,
                                ids.data(), dense.data()));
      const auto end = std::chrono::steady_clock::now();
      times.push_back(std::chrono::duration<double, std::nano>(end - begin).count());
    }
    return times;
  };
  run(n_rows, false);
  std::vector<double> warm = run(5 * n_rows, false), cold = run(200, true);
  std::printf("%d numbers, %d texts, %llu categories each\n", kNumbers, kTexts,
              static_cast<unsigned long long>(vocabulary));
  report("warm", warm);
  report("cold", cold);
  fmtr_features_free(features);
}
