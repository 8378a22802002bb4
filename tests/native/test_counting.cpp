// Counting of a column's values against std::map, and their order. Buffers are as long as what they hold, so
// AddressSanitizer sees what is read beyond them.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "check.h"
#include "counting.h"

namespace {

using namespace fastmtr;

std::mt19937_64 random_bits(11);
size_t below(size_t n) { return random_bits() % n; }

constexpr int64_t kLeast = std::numeric_limits<int64_t>::min(), kMost = std::numeric_limits<int64_t>::max();

template <class Value>
using Counted = std::vector<std::pair<Value, int64_t>>;  // in the order of the first occurrences

template <class Value>
Counted<Value> expected(const std::vector<Value>& values, const uint8_t* valid, const int64_t* weights) {
  std::map<Value, int64_t> counts;
  std::vector<Value> firsts;
  for (size_t i = 0; i < values.size(); ++i) {
    const int64_t weight = valid && !valid[i] ? 0 : weights ? weights[i] : 1;
    if (weight == 0) continue;
    const auto [at, is_new] = counts.try_emplace(values[i], 0);
    if (is_new) firsts.push_back(values[i]);
    at->second += weight;
  }
  Counted<Value> result;
  for (const Value& value : firsts) result.emplace_back(value, counts[value]);
  return result;
}

template <class Offset>
struct Packed {
  std::vector<uint8_t> data;
  std::vector<Offset> offsets;

  explicit Packed(const std::vector<std::string>& texts) : offsets(texts.size() + 1) {
    size_t size = 0;
    for (const std::string& text : texts) size += text.size();
    data.resize(size);
    size_t at = 0;
    for (size_t i = 0; i < texts.size(); ++i) {
      std::copy(texts[i].begin(), texts[i].end(), data.begin() + static_cast<int64_t>(at));
      offsets[i + 1] = static_cast<Offset>(at += texts[i].size());
    }
  }
  Texts<Offset> texts() const { return {data.data(), static_cast<int64_t>(data.size()), offsets.data()}; }
};

Counted<int64_t> counted(const std::vector<int64_t>& values, const uint8_t* valid, const int64_t* weights) {
  const IntCounts found = count_ints(values.data(), static_cast<int64_t>(values.size()), valid, weights);
  Counted<int64_t> result;
  for (size_t i = 0; i < found.values.size(); ++i) result.emplace_back(found.values[i], found.counts.at(i));
  return result;
}

template <class Offset = int64_t>
Counted<std::string> counted(const std::vector<std::string>& values, const uint8_t* valid, const int64_t* weights) {
  const Packed<Offset> packed(values);
  const TextCounts found = count_texts(packed.texts(), static_cast<int64_t>(values.size()), valid, weights);
  Counted<std::string> result;
  for (size_t i = 0; i < found.texts.size(); ++i) result.emplace_back(found.texts[i].view(), found.counts.at(i));
  return result;
}

// Counted in parts whose counts are merged, as fitting does.
template <class Value>
Counted<Value> merged(const std::vector<Value>& values, size_t part) {
  std::vector<Value> waiting;
  std::vector<int64_t> weights;
  for (size_t start = 0; start < values.size(); start += part) {
    const auto begin = values.begin() + static_cast<int64_t>(start);
    const auto end = begin + static_cast<int64_t>(std::min(part, values.size() - start));
    for (const auto& [value, count] : counted(std::vector<Value>(begin, end), nullptr, nullptr)) {
      waiting.push_back(value);
      weights.push_back(count);
    }
  }
  return counted(waiting, nullptr, weights.data());
}

void check_order(const std::string& what, const Counted<std::string>& counts) {
  std::vector<std::string> texts;
  std::vector<int64_t> times;
  for (const auto& [text, count] : counts) {
    texts.push_back(text);
    times.push_back(count);
  }
  const Packed<int64_t> packed(texts);
  Counted<std::string> ordered, sorted = counts;
  for (const int64_t row : order_texts(packed.texts(), static_cast<int64_t>(texts.size()), times.data()))
    ordered.push_back(counts.at(static_cast<size_t>(row)));
  std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) {
    return a.second != b.second ? a.second > b.second : a.first < b.first;
  });
  check(ordered == sorted, what + ": order");
}

template <class Value>
void check_counts(const std::string& what, const std::vector<Value>& values) {
  const Counted<Value> all = expected(values, nullptr, nullptr);
  check(counted(values, nullptr, nullptr) == all, what + ": counts");
  for (const size_t part : {size_t{1}, size_t{7}, values.size() / 2 + 1})
    check(merged(values, part) == all, what + ": counts merged of parts of " + std::to_string(part));
  std::vector<uint8_t> valid(values.size());
  std::vector<int64_t> weights(values.size());
  for (uint8_t& flag : valid) flag = static_cast<uint8_t>(below(3));
  for (int64_t& weight : weights) weight = static_cast<int64_t>(below(4));
  check(counted(values, valid.data(), nullptr) == expected(values, valid.data(), nullptr), what + ": valid");
  check(counted(values, nullptr, weights.data()) == expected(values, nullptr, weights.data()), what + ": weights");
  check(counted(values, valid.data(), weights.data()) == expected(values, valid.data(), weights.data()),
        what + ": valid, with weights");
  if constexpr (std::is_same_v<Value, std::string>) {
    check(counted<int32_t>(values, nullptr, nullptr) == all, what + ": counts, with offsets of 32 bits");
    check_order(what, all);
    Counted<std::string> ties = all;
    for (auto& [text, count] : ties) count = 1;
    check_order(what + ", all as frequent", ties);
  }
}

std::string random_text(size_t length, size_t letters) {
  std::string text(length, '\0');
  for (char& letter : text) letter = static_cast<char>(below(letters));
  return text;
}

void test_ints() {
  check_counts<int64_t>("no number", {});
  check_counts<int64_t>("one number", {5});
  check_counts<int64_t>("one number again and again", std::vector<int64_t>(1000, -3));
  check_counts<int64_t>("extremes", {kLeast, kMost, 0, -1, kMost, kLeast + 1, kLeast, kMost - 1, 1, kLeast});
  std::vector<int64_t> few(5000), many(200'000);
  for (int64_t& value : few) value = static_cast<int64_t>(below(900)) - 450;
  for (int64_t& value : many) value = static_cast<int64_t>(random_bits() >> 46 << 46);
  check_counts("few numbers", few);
  check_counts("many numbers", many);
  const std::vector<int64_t> weights = {kMost - 1, kLeast, 1};
  check(counted({4, 5, 4}, nullptr, weights.data()) == Counted<int64_t>{{4, kMost}, {5, kLeast}}, "extreme weights");
}

void test_texts() {
  check_counts<std::string>("no text", {});
  check_counts<std::string>("empty texts alone", std::vector<std::string>(50));
  check_counts<std::string>("one text", {"a"});
  check_counts("one text again and again", std::vector<std::string>(1000, "more than eight bytes"));
  check_counts<std::string>("bytes of either sign", {"a", "\xff", "\x7f", "\x80", "", "a", "\x80\x01", "\xc3\xa9"});

  std::vector<std::string> zeros, prefixes, few, many;
  for (size_t length = 0; length <= 40; ++length)
    for (const char* end : {"", "\1", "a"}) zeros.push_back(std::string(length, '\0') + end);
  std::shuffle(zeros.begin(), zeros.end(), random_bits);
  check_counts("zero bytes", zeros);
  for (const size_t length : {7, 8, 9, 16, 17, 24, 33})
    for (int i = 0; i < 200; ++i) prefixes.push_back(std::string(length, 'p') + random_text(below(4), 3));
  std::shuffle(prefixes.begin(), prefixes.end(), random_bits);
  check_counts("long common prefixes", prefixes);
  for (int i = 0; i < 5000; ++i) few.push_back(random_text(below(12), 2));
  check_counts("few texts", few);
  for (int i = 0; i < 100'000; ++i) many.push_back(random_text(1 + below(20), 256));
  for (int i = 0; i < 20'000; ++i) many.push_back(many[below(many.size())]);
  check_counts("many texts", many);
}

// Long texts are hashed eight bytes at a time: these differ, and have one hash.
void test_equal_hashes() {
  constexpr uint64_t kFactor = 0x9FB21C651E98DF25u, kSum = 0x0123456789ABCDEFu;
  std::vector<std::string> texts;
  for (uint64_t first = 0; first < 300; ++first) {
    const uint64_t word = first * kFactor, last = kSum - (word ^ (word >> 29));
    std::string text(16, '\0');
    std::memcpy(text.data(), &first, 8);
    std::memcpy(text.data() + 8, &last, 8);
    texts.insert(texts.end(), 1 + first % 3, text);
  }
  std::shuffle(texts.begin(), texts.end(), random_bits);
  check_counts("texts of one hash", texts);
}

// A text that ends where its memory ends, alone and behind others: nothing beyond it, nor before it, is of account.
void test_ends() {
  for (size_t length = 0; length <= 40; ++length) {
    const std::string what = std::to_string(length) + " bytes at the end", text = random_text(length, 256);
    check_counts<std::string>(what, {text});
    for (size_t before = 0; before <= 9; ++before)
      check_counts<std::string>(what + ", behind " + std::to_string(before),
                                {random_text(before, 256), text.substr(0, length / 2), text, text});
  }
}

void test_large_counts() {
  check_order("counts in every byte", [] {
    Counted<std::string> counts;
    for (int shift = 0; shift < 63; ++shift)
      for (const char* text : {"b", "a", "common prefix", "common prefiy"})
        counts.emplace_back(text + std::to_string(shift % 5), int64_t{1} << shift);
    counts.emplace_back("most", kMost);
    counts.emplace_back("none", 0);
    std::shuffle(counts.begin(), counts.end(), random_bits);
    return counts;
  }());
}

// Part of a column: offsets that start within the data, and texts that are left out behind them.
void test_slices() {
  const Packed<int32_t> packed({"left out", "a", "bb", "a", "behind"});
  Texts<int32_t> slice = packed.texts();
  ++slice.offsets;
  const TextCounts found = count_texts(slice, 3, nullptr, nullptr);
  check(found.texts.size() == 2 && found.texts[0].view() == "a" && found.texts[1].view() == "bb" &&
            found.counts == std::vector<int64_t>{2, 1},
        "a slice");
}

void test_wrong_offsets() {
  const std::vector<uint8_t> data(10);
  const auto refused = [&](const std::vector<int64_t>& offsets) {
    const Texts<int64_t> texts{data.data(), 10, offsets.data()};
    const auto n = static_cast<int64_t>(offsets.size() - 1);
    const std::vector<int64_t> counts(offsets.size() - 1, 1);
    int times = 0;
    try {
      count_texts(texts, n, nullptr, nullptr);
    } catch (const std::invalid_argument&) {
      ++times;
    }
    try {
      order_texts(texts, n, counts.data());
    } catch (const std::invalid_argument&) {
      ++times;
    }
    return times == 2;
  };
  check(!refused({0, 10, 10}), "offsets up to the end are taken");
  for (const std::vector<int64_t>& wrong : {std::vector<int64_t>{0, 11},
                                            {-1, 3},
                                            {0, 5, 4},
                                            {11, 11},
                                            {0, kMost},
                                            {kLeast, kMost},
                                            {kMost, kLeast},
                                            {3, -1}})
    check(refused(wrong), "offsets from " + std::to_string(wrong.front()) + " to " + std::to_string(wrong.back()));
}

}  // namespace

int main() {
  test_ints();
  test_texts();
  test_equal_hashes();
  test_ends();
  test_large_counts();
  test_slices();
  test_wrong_offsets();
  return finish();
}
