// The engine's small parts: JSON, safetensors, intervals, the key map, the k best, the thread pool.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>
#include <vector>

#include "bundle.h"
#include "check.h"
#include "core/intervals.h"
#include "core/json.h"
#include "core/key_map.h"
#include "core/safetensors.h"
#include "core/thread_pool.h"
#include "core/top_k.h"

namespace {

using namespace fastmtr;

std::mt19937_64 random_bits(3);

void test_json() {
  const Json json = parse_json(
      R"( {"a": [1, -2.5e3, true, null, "x\n\u00e9\ud83d\ude00 ü"], "b": {}, "big": 9223372036854775807, "tiny": 1e-400} )",
      "t");
  check(json.find("a")->array[0].integer && json.find("a")->array[0].whole == 1, "1 is a whole number");
  check(!json.find("a")->array[1].integer && json.find("a")->array[1].number == -2500, "-2.5e3 is a number");
  check(json.find("a")->array[2].boolean, "true");
  check(json.find("a")->array[3].kind == Json::Kind::null, "null");
  check(json.find("a")->array[4].string == "x\n\xc3\xa9\xf0\x9f\x98\x80 ü", "text with escapes");
  check(json.find("big")->whole == std::numeric_limits<int64_t>::max(), "the largest int64");
  check(json.find("tiny")->number == 0, "1e-400 is 0");
  check(json.find("c") == nullptr && json.find("a")->find("x") == nullptr, "what is not there");
  check(!parse_json("9223372036854775808", "t").integer, "2^63 is no int64");
  check(parse_json("-0", "t").integer && parse_json("0.0", "t").number == 0, "zeros");
  check(json_quote("a\"\\\n\x01") == "\"a\\\"\\\\\\u000a\\u0001\"", "quoting");
  check(parse_json(json_quote("a\"\\\n\x01é"), "t").string == "a\"\\\n\x01é", "quoting is undone by reading");
  check(quote(std::string(199, 'a') + "éb") == "'" + std::string(199, 'a') + "...'",
        "long names are cut between characters");
  refuses(FMTR_ERROR_BUNDLE, "plan.json: line 2, column 5: expected ':'",
          [] { parse_json("{\n\"a\" 1}", "plan.json"); });
  refuses(FMTR_ERROR_BUNDLE, "nested deeper than 3", [] { parse_json("[[[[1]]]]", "t", {3, 100}); });
  refuses(FMTR_ERROR_BUNDLE, "more than 5 values", [] { parse_json("[1,2,3,4,5,6]", "t", {3, 5}); });

  // Whatever is cut off or changed is refused or read, but nothing else happens.
  const std::string sound = R"({"a": [1, -2.5e3, true, null, "x\n\u00e9\ud83d\ude00 ü"], "b": {"c": false}})";
  int refused = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string text = sound.substr(0, random_bits() % (sound.size() + 1));
    for (uint64_t n = random_bits() % 4; n > 0 && !text.empty(); --n)
      text[random_bits() % text.size()] = static_cast<char>(random_bits());
    try {
      parse_json(text, "t");
    } catch (const Error& error) {
      ++refused;
    }
  }
  check(refused > 15000, say("only ", refused, " of 20000 damaged texts were refused"));
}

void test_safetensors() {
  const auto path = std::filesystem::temp_directory_path() / ("fastmtr-test-" + std::to_string(std::random_device{}()));
  const auto write = [&](const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; };
  TensorFile sound;
  sound.add("a", "F32", "[2,3]", std::vector<float>{1, 2, 3, 4, 5, 6});
  sound.add("empty", "I64", "[0]", std::vector<int64_t>{});
  sound.add("b", "I32", "[2]", std::vector<int32_t>{7, 8});
  const std::string bytes = sound.bytes();
  write(bytes);
  {
    const SafeTensors file(path.string(), "t");
    check(reinterpret_cast<const float*>(file.get("a", "F32").data)[5] == 6, "a[1, 2]");
    check(file.get("a", "F32").shape == std::vector<uint64_t>{2, 3} && file.get("a", "F32").count() == 6, "shape of a");
    check(reinterpret_cast<const int32_t*>(file.get("b", "I32").data)[1] == 8, "b[1]");
    check(file.get("empty", "I64").count() == 0 && file.find("c") == nullptr, "empty, and none");
    refuses(FMTR_ERROR_BUNDLE, "t: there is no tensor 'c'", [&] { file.get("c", "F32"); });
    refuses(FMTR_ERROR_BUNDLE, "tensor 'a' is F32, expected I32", [&] { file.get("a", "I32"); });
  }
  int refused = 0;
  for (int i = 0; i < 2000; ++i) {
    std::string damaged = bytes.substr(0, random_bits() % 3 == 0 ? random_bits() % bytes.size() : bytes.size());
    for (uint64_t n = 1 + random_bits() % 3; n > 0 && !damaged.empty(); --n)
      damaged[random_bits() % std::min<size_t>(damaged.size(), 150)] =
          "0123456789{}[],:\"eF\xff\x00"[random_bits() % 21];
    write(damaged);
    try {
      const SafeTensors file(path.string(), "t");
      if (const Tensor* a = file.find("a"); a != nullptr && a->bytes > 0)
        check(a->data[0] + a->data[a->bytes - 1] >= 0, "a tensor lies within its file");
    } catch (const Error& error) {
      ++refused;
    }
  }
  check(refused > 1500, say("only ", refused, " of 2000 damaged files were refused"));
  std::filesystem::remove(path);
}

void test_intervals() {
  for (int round = 0; round < 300; ++round) {
    Intervals intervals;
    std::vector<bool> plain(64, false);
    for (int i = 0; i < 12; ++i) {
      const uint64_t begin = random_bits() % 64, end = begin + random_bits() % (65 - begin);
      bool overlaps = false, all = true;
      uint64_t missing = end;
      for (uint64_t c = end; c-- > begin;) {
        overlaps = overlaps || plain[c];
        all = all && plain[c];
        if (!plain[c]) missing = c;
      }
      check(intervals.overlaps(begin, end) == overlaps, say("overlap of ", begin, " .. ", end));
      check(intervals.first_missing(begin, end) == missing, say("missing of ", begin, " .. ", end));
      intervals.add(begin, end);
      for (uint64_t c = begin; c < end; ++c) plain[c] = true;
    }
  }
}

void test_key_map() {
  std::vector<int64_t> keys;
  for (int64_t i = 0; i < 3000; ++i) keys.push_back(i % 3 == 0 ? i : i % 3 == 1 ? -i * 65536 : i << 40);
  keys.push_back(std::numeric_limits<int64_t>::min());
  keys.push_back(std::numeric_limits<int64_t>::max());
  KeyMap map;
  check(map.find(0) == kNoSlot, "an empty map has nothing");
  check(map.build(keys.data(), static_cast<uint32_t>(keys.size())).first == kNoSlot, "no key stands twice");
  check(map.count() == keys.size(), "as many keys as were given");
  const KeyIndex index(std::move(map));
  std::vector<uint32_t> slots(keys.size() + 1);
  std::vector<int64_t> asked(keys.rbegin(), keys.rend());
  asked.push_back(123457);
  check(index.find(asked.data(), asked.size(), slots.data()) == 1, "one is not there");
  for (size_t i = 0; i < keys.size(); ++i) check(slots[i] == keys.size() - 1 - i, "the slot of a key");
  check(slots.back() == kNoSlot, "the one that is not there");

  const int64_t changed_keys[] = {keys[1], keys[2], 123457};
  const uint32_t changed_slots[] = {9000, kNoSlot, 9001};
  const KeyIndex changed = index.with(changed_keys, changed_slots, 3);
  check(changed.find(asked.data(), asked.size(), slots.data()) == 1, "one is gone, one has come");
  for (int i = 0; i < 3; ++i) check(changed.find(changed_keys[i]) == changed_slots[i], "the changed slot of a key");
  check(changed.find(keys[3]) == 3 && index.find(keys[1]) == 1 && index.find(123457) == kNoSlot,
        "the index before is as it was");
  const uint32_t again[] = {kNoSlot, 9002};
  const KeyIndex twice = changed.with(changed_keys + 1, again + 1, 1).with(changed_keys, again, 1);
  check(twice.find(keys[1]) == kNoSlot && twice.find(keys[2]) == 9002 && twice.find(123457) == 9001,
        "changed once more");
  check(KeyIndex().with(keys.data(), changed_slots, 1).find(keys[0]) == 9000, "an index of changes alone");

  keys.push_back(keys[5]);
  const auto repeat = map.build(keys.data(), static_cast<uint32_t>(keys.size()));
  check(repeat.first == 5 && repeat.second == keys.size() - 1, "the key that stands twice");
  check(map.build(nullptr, 0).first == kNoSlot && map.find(5) == kNoSlot, "a map of nothing");
}

void test_top_k() {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const float special[] = {0.0f, -0.0f, inf, -inf, nan, -nan, 1.0f, -1.0f, 1e-45f};
  for (int round = 0; round < 2000; ++round) {
    const size_t n = random_bits() % 60, k = random_bits() % 70;
    std::vector<float> scores(n);
    std::vector<uint32_t> rows(n);
    for (size_t i = 0; i < n; ++i) {
      scores[i] = random_bits() % 2 ? special[random_bits() % 9]
                                    : static_cast<float>(static_cast<int64_t>(random_bits() % 9)) - 4;
      rows[i] = random_bits() % 5 == 0 ? kNoSlot : 1;
    }
    std::vector<uint32_t> expected;
    for (uint32_t i = 0; i < n; ++i)
      if (rows[i] != kNoSlot) expected.push_back(i);
    std::stable_sort(expected.begin(), expected.end(), [&](uint32_t a, uint32_t b) {
      if (std::isnan(scores[a]) || std::isnan(scores[b])) return !std::isnan(scores[a]);
      return scores[a] > scores[b];
    });
    expected.resize(std::min(k, expected.size()));
    std::vector<uint64_t> best(std::min(n, k));
    const uint64_t count = top_k(scores.data(), n, rows.data(), best.size(), best.data());
    bool same = count == expected.size();
    for (size_t i = 0; same && i < count; ++i) same = position_of(best[i]) == expected[i];
    check(same, say("the ", k, " best of ", n));
  }
}

void test_thread_pool() {
  ThreadPool pool(3);
  for (int round = 0; round < 500; ++round) {
    const size_t parts = random_bits() % 40;
    std::vector<std::atomic<int>> done(parts);
    std::atomic<bool> foreign{false};
    pool.run(parts, [&](size_t part, size_t worker) {
      ++done[part];
      if (worker >= 4) foreign = true;
    });
    check(std::all_of(done.begin(), done.end(), [](const auto& n) { return n == 1; }) && !foreign,
          "each part is done once");
  }
}

}  // namespace

int main() {
  test_json();
  test_safetensors();
  test_intervals();
  test_key_map();
  test_top_k();
  test_thread_pool();
  return finish();
}
