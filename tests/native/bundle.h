// A bundle of one small model, written by hand: 4 experts and a gate, the first layer split over request, item and
// candidate.
#ifndef FASTMTR_TESTS_BUNDLE_H
#define FASTMTR_TESTS_BUNDLE_H

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

struct TensorFile {
  std::string header, data;

  template <class T>
  void add(const std::string& name, const std::string& dtype, const std::string& shape, const std::vector<T>& values) {
    const size_t begin = data.size();
    data.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
    header += (header.empty() ? "{" : ",") +
              ("\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":[") +
              std::to_string(begin) + "," + std::to_string(data.size()) + "]}";
  }

  std::string bytes() const {
    std::string text = header + "}";
    text.append((8 - text.size() % 8) % 8, ' ');
    const uint64_t n = text.size();
    std::string out(8, '\0');
    std::memcpy(out.data(), &n, 8);
    return out + text + data;
  }
};

class TemporaryBundle {
 public:
  static constexpr size_t kItems = 6000, kItemWidth = 20, kRequestWidth = 30, kHistory = 8, kRows = 50;

  TemporaryBundle() {
    path_ = std::filesystem::temp_directory_path() / ("fastmtr-test-" + std::to_string(std::random_device{}()));
    std::filesystem::create_directory(path_);
    TensorFile weights;
    weights.add("table", "F32", "[50,16]", floats(50 * 16));
    weights.add("first.request", "F32", "[132,46]", floats(132 * 46));
    weights.add("first.b", "F32", "[132]", floats(132));
    weights.add("first.item", "F32", "[132,20]", floats(132 * 20));
    weights.add("first.candidate", "F32", "[132,3]", floats(132 * 3));
    weights.add("second.w", "F32", "[4,16,32]", floats(4 * 16 * 32));
    weights.add("tower.w", "F32", "[2,16]", floats(2 * 16));
    TensorFile catalogue;
    for (size_t i = 0; i < kItems; ++i) keys.push_back(static_cast<int64_t>(i) * 7919 - 5);
    catalogue.add("keys", "I64", "[6000]", keys);
    catalogue.add("dense", "F32", "[6000,20]", floats(kItems * kItemWidth));
    catalogue.add("ids", "I32", "[6000,0]", std::vector<int32_t>{});
    write("weights.safetensors", weights.bytes());
    write("catalogue.safetensors", catalogue.bytes());
    write("plan.json", kPlan);
    std::string files;
    for (const char* name : {"weights.safetensors", "catalogue.safetensors", "plan.json"})
      files += (files.empty() ? "\"" : ",\"") + std::string(name) +
               "\":{\"sha256\":\"\",\"bytes\":" + std::to_string(std::filesystem::file_size(path_ / name)) + "}";
    write("manifest.json", "{\"format_version\":1,\"files\":{" + files + "}}");
  }
  ~TemporaryBundle() { std::filesystem::remove_all(path_); }
  TemporaryBundle(const TemporaryBundle&) = delete;
  TemporaryBundle& operator=(const TemporaryBundle&) = delete;

  std::string path() const { return path_.string(); }
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(path_ / name, std::ios::binary) << text;
  }

  std::vector<float> floats(size_t n) {
    std::vector<float> out(n);
    for (float& x : out) x = std::uniform_real_distribution<float>(-0.3f, 0.3f)(random);
    return out;
  }
  std::vector<int32_t> ids(size_t n) {
    std::vector<int32_t> out(n);
    for (int32_t& x : out) x = std::uniform_int_distribution<int32_t>(0, kRows - 1)(random);
    return out;
  }

  std::mt19937 random{5};
  std::vector<int64_t> keys;

 private:
  static constexpr const char* kPlan = R"({"plan_version": 1,
    "inputs": [
      {"name": "history", "domain": "request", "kind": "ids", "offset": 0, "width": 8, "rows": 50, "padding": 0, "buffer": 0},
      {"name": "profile", "domain": "request", "kind": "dense", "offset": 0, "width": 30, "rows": null, "padding": null, "buffer": 1},
      {"name": "item", "domain": "item", "kind": "dense", "offset": 0, "width": 20, "buffer": 2},
      {"name": "place", "domain": "candidate", "kind": "dense", "offset": 0, "width": 3, "buffer": 3}],
    "buffers": [
      {"name": "history", "domain": "request", "dtype": "i32", "width": 8, "stored": true},
      {"name": "profile", "domain": "request", "dtype": "f32", "width": 30, "stored": true},
      {"name": "item", "domain": "item", "dtype": "f32", "width": 20, "stored": true},
      {"name": "place", "domain": "candidate", "dtype": "f32", "width": 3, "stored": true},
      {"name": "x", "domain": "request", "dtype": "f32", "width": 46, "stored": false},
      {"name": "first.request", "domain": "request", "dtype": "f32", "width": 132, "stored": false},
      {"name": "first.item", "domain": "item", "dtype": "f32", "width": 132, "stored": true},
      {"name": "first", "domain": "candidate", "dtype": "f32", "width": 132, "stored": false},
      {"name": "experts", "domain": "candidate", "dtype": "f32", "width": 64, "stored": false},
      {"name": "gate", "domain": "candidate", "dtype": "f32", "width": 4, "stored": false},
      {"name": "mixed", "domain": "candidate", "dtype": "f32", "width": 16, "stored": false},
      {"name": "tasks", "domain": "candidate", "dtype": "f32", "width": 2, "stored": false},
      {"name": "hidden", "domain": "candidate", "dtype": "f32", "width": 128, "stored": false}],
    "steps": [
      {"op": "embedding_bag", "domain": "request", "name": "history", "inputs": [[0, 0, 8]], "output": [4, 0, 16],
       "weights": {"table": "table"}, "attrs": {"mode": "mean", "padding": 0}},
      {"op": "copy", "domain": "request", "name": "profile", "inputs": [[1, 0, 30]], "output": [4, 16, 30]},
      {"op": "affine", "domain": "request", "name": "first.request", "inputs": [[4, 0, 46]], "output": [5, 0, 132],
       "weights": {"w": "first.request", "b": "first.b"}},
      {"op": "affine", "domain": "item", "name": "first.item", "inputs": [[2, 0, 20]], "output": [6, 0, 132],
       "weights": {"w": "first.item"}},
      {"op": "affine", "domain": "candidate", "name": "first", "inputs": [[3, 0, 3], [5, 0, 132], [6, 0, 132]], "output": [7, 0, 132],
       "weights": {"w": "first.candidate"}},
      {"op": "activation", "domain": "candidate", "name": "hidden", "inputs": [[7, 0, 128]], "output": [12, 0, 128],
       "attrs": {"activation": "relu"}},
      {"op": "affine", "domain": "candidate", "name": "second", "inputs": [[12, 0, 128]], "output": [8, 0, 64],
       "weights": {"w": "second.w"}, "attrs": {"groups": 4, "activation": "silu"}},
      {"op": "softmax", "domain": "candidate", "name": "gate", "inputs": [[7, 128, 4]], "output": [9, 0, 4], "attrs": {"size": 4}},
      {"op": "mixture", "domain": "candidate", "name": "mixed", "inputs": [[9, 0, 4], [8, 0, 16], [8, 16, 16], [8, 32, 16], [8, 48, 16]],
       "output": [10, 0, 16]},
      {"op": "affine", "domain": "candidate", "name": "tower", "inputs": [[10, 0, 16]], "output": [11, 0, 2],
       "weights": {"w": "tower.w"}, "attrs": {"activation": "sigmoid"}}],
    "outputs": [
      {"name": "click", "role": "task", "operand": [11, 0, 1]}, {"name": "buy", "role": "task", "operand": [11, 1, 1]},
      {"name": "user", "role": "request", "operand": [4, 0, 16]}, {"name": "part", "role": "item", "operand": [6, 0, 132]}],
    "fusion": {"kind": "product", "tasks": ["click", "buy"], "weights": [1.0, 2.0], "offsets": [0.0, 0.1]}})";

  std::filesystem::path path_;
};

#endif
