// The feature program: published vectors of its hash, no allocation once warm, the same row from many threads.
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <thread>
#include <vector>

#include "check.h"
#include "core/feature_text.h"
#include "core/features.h"

namespace {
std::atomic<long> allocations{0};

void* allocate(size_t n) {
  ++allocations;
  void* at = std::malloc(n);
  if (at == nullptr) throw std::bad_alloc();
  return at;
}
}  // namespace

void* operator new(size_t n) { return allocate(n); }
void* operator new[](size_t n) { return allocate(n); }
void operator delete(void* at) noexcept { std::free(at); }
void operator delete[](void* at) noexcept { std::free(at); }
void operator delete(void* at, size_t) noexcept { std::free(at); }
void operator delete[](void* at, size_t) noexcept { std::free(at); }

namespace {

using namespace fastmtr;

uint64_t hash(std::string_view text, uint64_t seed = 0) {
  return kernels::hash_bytes(reinterpret_cast<const unsigned char*>(text.data()), text.size(), seed);
}

// XXH64 as its author's specification and xxhsum give it.
void check_hashes() {
  check(hash("") == 0xEF46DB3751D8E999u, "XXH64 of nothing");
  check(hash("a") == 0xD24EC4F1A98C6E5Bu, "XXH64 of a");
  check(hash("abc") == 0x44BC2CF5AD770999u, "XXH64 of abc");
  check(hash("Nobody inspects the spammish repetition") == 0xFBCEA83C8A378BF1u, "XXH64 of 39 bytes");
  const int64_t number = -123456789012345;
  char bytes[8];
  std::memcpy(bytes, &number, 8);
  check(kernels::hash_int(number, 7) == hash({bytes, 8}, 7), "a number is hashed as its eight bytes");
}

void check_numbers() {
  for (const double x : {0.0, 1e-300, 1e-9, 0.3, 1.0, 12345.678, 9e15, 1e308})
    check(std::abs(kernels::log1p(x) - std::log1p(x)) <= 4e-16 * std::log1p(x), say("log1p of ", x));
  for (int i = 0; i < 64; ++i) {
    double sine, cosine;
    kernels::sincos_of_turn(i / 64.0, &sine, &cosine);
    const double angle = 2 * 3.14159265358979323846 * i / 64.0;
    check(std::abs(sine - std::sin(angle)) < 1e-15 && std::abs(cosine - std::cos(angle)) < 1e-15, say("turn ", i));
  }
  check(kernels::within(-1, 1, 86'400, 0) == 86'399, "the second before 1970");
  check(kernels::within(INT64_MIN, 1000, 604'800, -86'400) >= 0, "the first tick of all");
  check(kernels::elapsed(INT64_MAX, INT64_MIN, 1) == 0x1p63, "a difference beyond int64");
  check(kernels::elapsed(INT64_MIN, INT64_MAX, 1) == 0.0, "a moment in the future");
}

void check_texts() {
  for (const char* good :
       {"", "plain text of more than eight", "\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x98\x80", "\xED\x9F\xBF"})
    check(is_utf8(good), say("UTF-8: ", good));
  for (const char* bad : {"\x80", "\xC0\x80", "\xC3", "\xE0\x80\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80",
                          "\xF8\x88\x80\x80\x80", "12345678\xFF", "\xE2\x82"})
    check(!is_utf8(bad), "not UTF-8");
  check(stripped(" \t\xC2\xA0 a b\xE3\x80\x80\n") == "a b", "white space of Unicode");
  Words words;
  words.read(
      "  Stra\xC3\x9F"
      "e, \xC3\x89T\xC3\x89_1! \xC4\xB0x");
  std::string all;
  words.for_each(2, [&](std::string_view gram) { all += std::string(gram) + "|"; });
  check(all ==
            "stra\xC3\x9F"
            "e|stra\xC3\x9F"
            "e \xC3\xA9t\xC3\xA9_1|\xC3\xA9t\xC3\xA9_1|\xC3\xA9t\xC3\xA9_1 ix|ix|",
        all);
}

// A program of a vocabulary, a hash, a number, a cross, a list and words.
struct Program {
  const std::string json = R"({"version": 2, "hash": "xxh64",
    "clock": {"column": "t", "ticks_per_second": 1, "offset_seconds": 0}, "keys": {"user": "u", "item": "i"},
    "statistics": {},
    "program": [
      {"name": "city", "op": "category", "state": "city", "domain": "request", "kind": "ids", "offset": 0, "width": 1, "columns": ["city"]},
      {"name": "code", "op": "category", "state": "code", "domain": "request", "kind": "ids", "offset": 1, "width": 2, "columns": ["code"]},
      {"name": "age", "op": "scale", "state": "age", "domain": "request", "kind": "dense", "offset": 0, "width": 2, "columns": ["age"]},
      {"name": "both", "op": "cross", "state": "both", "domain": "request", "kind": "ids", "offset": 3, "width": 1, "columns": ["city", "code"]},
      {"name": "tags", "op": "many", "state": "city", "domain": "request", "kind": "ids", "offset": 4, "width": 3, "columns": ["tags"], "keep": "last", "as_set": true, "separator": ","},
      {"name": "query", "op": "words", "state": "city", "domain": "request", "kind": "ids", "offset": 7, "width": 4, "columns": ["query"], "keep": "first", "as_set": false, "ngrams": 2},
      {"name": "hour", "op": "cyclic", "state": "hour", "domain": "request", "kind": "dense", "offset": 2, "width": 2, "columns": [], "derive": "hour"}],
    "features": {
      "city": {"type": "str", "hash_rows": null, "hashes": 1, "oov_rows": 2, "nulls": "fill", "unseen": "row"},
      "code": {"type": "int", "hash_rows": 50, "hashes": 2, "oov_rows": 1, "nulls": "fill", "unseen": "row"},
      "age": {"kind": "standard", "nulls": "fill", "out_of_range": "clip", "indicator": true, "mean": 30.0, "low": 10.0, "high": 50.0, "least": -3e38, "most": 3e38, "shift": 30.0, "factor": 10.0, "filler": 0.0},
      "both": {"type": "int", "hash_rows": 20, "hashes": 1, "oov_rows": 1, "nulls": "fill", "unseen": "row", "types": ["str", "int"]},
      "hour": {"part": "hour", "nulls": "fill"}}})";
  const std::string bytes = "romeoslothe city of rome is far away";
  const std::vector<int64_t> offsets{0, 4, 8, 36};
  std::map<std::string, Tensor> arrays;

  Program() {
    arrays["city/bytes"] = {"U8", {bytes.size()}, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size()};
    arrays["city/offsets"] = {
        "I64", {offsets.size()}, reinterpret_cast<const unsigned char*>(offsets.data()), offsets.size() * 8};
  }
  Features read(std::string_view text) const {
    return Features(text, [&](const std::string& name) {
      const auto found = arrays.find(name);
      return found == arrays.end() ? nullptr : &found->second;
    });
  }
};

struct Packed {
  std::vector<int32_t> ids = std::vector<int32_t>(11, -1);
  std::vector<float> dense = std::vector<float>(4, -1);
  bool operator==(const Packed&) const = default;
};

fmtr_value value(uint32_t column, uint32_t type, uint64_t count = 0) {
  fmtr_value out{};
  out.column = column;
  out.type = type;
  out.count = count;
  return out;
}

void check_rows() {
  const Program program;
  const Features features = program.read(program.json);
  const auto& columns = features.domain(FMTR_REQUEST).column_of;
  const fmtr_text tags[] = {{"oslo", 4}, {"rome", 4}, {"", 0},
                            {"oslo", 4}, {"rome", 4}, {"the city of rome is far away", 28}};
  const uint8_t valid[] = {1, 1, 0, 1, 1, 1};
  std::vector<fmtr_value> row{value(columns.at("city"), FMTR_TEXT, 4),  value(columns.at("code"), FMTR_INT),
                              value(columns.at("age"), FMTR_FLOAT),     value(columns.at("tags"), FMTR_TEXTS, 6),
                              value(columns.at("query"), FMTR_TEXT, 9), value(columns.at("t"), FMTR_INT)};
  row[0].of.text = "oslo";
  row[1].of.whole = 77;
  row[2].of.number = 99;
  row[3].of.texts = tags;
  row[3].valid = valid;
  row[4].of.text = "Rome, NEW";
  row[5].of.whole = 6 * 3600;
  Packed first;
  const auto encode = [&](Packed& out) {
    features.encode(FMTR_REQUEST, row.data(), row.size(), nullptr, nullptr, out.ids.data(), out.dense.data());
  };
  encode(first);
  const auto unseen = [&](std::string_view text) { return 1 + static_cast<int32_t>(hash(text) % 2); };
  const uint64_t parts[] = {hash("oslo"), kernels::hash_int(77, 0)};
  const Packed expected{{4, static_cast<int32_t>(2 + kernels::hash_int(77, 0) % 50),
                         static_cast<int32_t>(2 + kernels::hash_int(77, 1) % 50),
                         static_cast<int32_t>(2 + hash({reinterpret_cast<const char*>(parts), 16}) % 20), 4, 3, 5, 3,
                         unseen("rome new"), unseen("new"), 0},
                        {2.0f, 0.0f, 1.0f, first.dense[3]}};
  check(first == expected, "a row of each kind");
  check(std::abs(first.dense[3]) < 1e-15, "the cosine of a quarter of a day");

  Packed again;
  encode(again);
  const long before = allocations;
  for (int i = 0; i < 100; ++i) encode(again);
  const long made = allocations - before;
  check(made == 0, say("no allocation once warm: ", made));
  check(again == first, "the same row again");

  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      Packed mine;
      for (int i = 0; i < 500; ++i) {
        encode(mine);
        wrong += !(mine == first);
      }
    });
  for (std::thread& thread : threads) thread.join();
  check(wrong == 0, "the same row in every thread");
  check(features.counts().find("\"age\": {\"rows\": 2102, \"nulls\": 0, \"values\": 2102, \"beyond\": 2102}") !=
            std::string::npos,
        features.counts());

  // A base keeps what is not given; only the clock is.
  Packed from_base;
  features.encode(FMTR_REQUEST, &row[5], 1, expected.ids.data(), expected.dense.data(), from_base.ids.data(),
                  from_base.dense.data());
  check(from_base == first, "a base row");
  Packed nothing;
  features.encode(FMTR_REQUEST, nullptr, 0, nullptr, nullptr, nothing.ids.data(), nothing.dense.data());
  check(nothing == Packed{std::vector<int32_t>(11, 0), {0, 1, 0, 0}}, "a row of nulls");

  row[4].of.text = "Rome\xFF NEW";
  refuses(FMTR_ERROR_SCHEMA, "column 'query' holds text that is not valid UTF-8", [&] { encode(again); });
  row[4].type = 99;
  refuses(FMTR_ERROR_ARGUMENT, "values[4].type is 99", [&] { encode(again); });
  row[4].type = FMTR_INTS;
  refuses(FMTR_ERROR_SCHEMA, "column 'query' should hold text, found a list", [&] { encode(again); });
  row[4].column = 1000;
  refuses(FMTR_ERROR_ARGUMENT, "values[4].column is 1000", [&] { encode(again); });
}

// Whatever byte of the program is lost, it is read or refused, never trusted.
void check_damage() {
  const Program program;
  int refused = 0;
  for (size_t at = 0; at < program.json.size(); ++at) {
    std::string text = program.json;
    text[at] = text[at] == '1' ? '9' : '1';
    try {
      const Features features = program.read(text);
      Packed out;
      const FeatureDomain& request = features.domain(FMTR_REQUEST);
      if (request.ids == out.ids.size() && request.dense == out.dense.size())
        features.encode(FMTR_REQUEST, nullptr, 0, nullptr, nullptr, out.ids.data(), out.dense.data());
    } catch (const Error& error) {
      check(error.status() == FMTR_ERROR_BUNDLE || error.status() == FMTR_ERROR_SCHEMA, error.what());
      ++refused;
    }
  }
  check(refused > 1000, say("damaged programs refused: ", refused));
}

}  // namespace

int main() {
  check_hashes();
  check_numbers();
  check_texts();
  check_rows();
  check_damage();
  return finish();
}
