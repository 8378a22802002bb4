// One kernel call, or one request, for instructions.py to count the instructions of: only what runs inside measured()
// counts. Everything is the same in every run.
//
//   instructions                          the names of the kernel cases
//   instructions CASE                     one of them
//   instructions BUNDLE REQUEST           one request: as instructions.py writes it
//   instructions --rows FOLDER            raw rows become features: see feature_rows.h
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "backend.h"
#include "fastmtr.h"
#include "feature_rows.h"

extern "C" __attribute__((noinline)) void measured(const std::function<void()>& run) { run(); }

namespace {

using namespace fastmtr;

struct Floats {  // 64-byte aligned, between -1 and 1
  explicit Floats(size_t n, bool relu = false)
      : data(static_cast<float*>(std::aligned_alloc(64, (n * sizeof(float) + 127) / 64 * 64))) {
    if (data == nullptr) throw std::bad_alloc();
    std::mt19937 random(static_cast<uint32_t>(n));
    for (size_t i = 0; i < n; ++i) {
      data[i] = static_cast<float>(random() >> 8) / (1 << 23) - 1.0f;
      if (relu && data[i] < 0) data[i] = 0;
    }
  }
  ~Floats() { std::free(data); }
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;
  float* data;
};

enum class Weights { fp32, fp16, int8 };

void product(const Kernels& k, size_t rows, size_t groups, size_t n, size_t columns, bool relu, Weights weights) {
  const Floats x(rows * groups * columns, relu), w(groups * n * columns), bias(groups * n), out(rows * groups * n);
  const Floats packed(groups * (n + 64) * columns + 64);
  AffineArgs args = {};
  args.rows = rows, args.groups = groups, args.n = n, args.k = columns;
  args.x = {x.data, groups * columns, nullptr};
  args.packed = packed.data;
  args.bias = bias.data;
  args.activation = Activation::relu;
  args.out = {out.data, groups * n};
  if (weights == Weights::fp16) k.fp16.pack(w.data, groups, n, columns, packed.data);
  if (weights == Weights::int8) k.int8.pack(w.data, groups, n, columns, packed.data);
  if (weights == Weights::fp32) k.fp32.pack(w.data, groups, n, columns, packed.data);
  measured([&] {
    if (weights == Weights::fp16) k.fp16.affine(&args);
    if (weights == Weights::int8) k.int8.affine(&args, packed.data, nullptr);
    if (weights == Weights::fp32) k.fp32.affine(&args);
  });
}

void gather_and_add(const Kernels& k) {
  constexpr size_t rows = 64, width = 512, items = 200;
  const Floats table(items * width), request(width), out(rows * width);
  std::vector<uint32_t> picks(rows);
  for (size_t i = 0; i < rows; ++i) picks[i] = static_cast<uint32_t>(i * 37 % items);
  const Rows addends[2] = {{request.data, 0, nullptr}, {table.data, width, picks.data()}};
  AffineArgs args = {};
  args.rows = rows, args.groups = 1, args.n = width;
  args.addends = addends, args.n_addends = 2;
  args.activation = Activation::relu;
  args.out = {out.data, width};
  measured([&] { k.add(&args); });
}

void activation(const Kernels& k, Activation fn) {
  const Floats x(64 * 128), out(64 * 128);
  measured([&] { k.activation(64, 128, fn, 0.1f, nullptr, {x.data, 128, nullptr}, {out.data, 128}); });
}

void mixture(const Kernels& k) {
  const Floats gate(64 * 8), experts(64 * 8 * 128), out(64 * 128);
  std::vector<Rows> each;
  for (size_t e = 0; e < 8; ++e) each.push_back({experts.data + e * 128, 8 * 128, nullptr});
  measured([&] { k.mixture(64, 128, 8, {gate.data, 8, nullptr}, each.data(), {out.data, 128}); });
}

const std::map<std::string, std::function<void(const Kernels&)>> kCases = {
    {"product 64x8x128x256", [](const Kernels& k) { product(k, 64, 8, 128, 256, false, Weights::fp32); }},
    {"product 64x8x128x256 half zeros", [](const Kernels& k) { product(k, 64, 8, 128, 256, true, Weights::fp32); }},
    {"product 1x1x2048x216", [](const Kernels& k) { product(k, 1, 1, 2048, 216, false, Weights::fp32); }},
    {"product 1x1x2048x216 fp16", [](const Kernels& k) { product(k, 1, 1, 2048, 216, false, Weights::fp16); }},
    {"product 64x8x128x256 int8", [](const Kernels& k) { product(k, 64, 8, 128, 256, true, Weights::int8); }},
    {"product 64x3x1x64", [](const Kernels& k) { product(k, 64, 3, 1, 64, true, Weights::fp32); }},
    {"gather and add 64x512", gather_and_add},
    {"sigmoid 64x128", [](const Kernels& k) { activation(k, Activation::sigmoid); }},
    {"gelu 64x128", [](const Kernels& k) { activation(k, Activation::gelu); }},
    {"softmax 64x24 of 8",
     [](const Kernels& k) {
       const Floats x(64 * 24), out(64 * 24);
       measured([&] { k.softmax(64, 24, 8, {x.data, 24, nullptr}, {out.data, 24}); });
     }},
    {"mixture 64x8x128", mixture},
    {"layer norm 64x128",
     [](const Kernels& k) {
       const Floats x(64 * 128), out(64 * 128);
       measured([&] { k.layer_norm(64, 128, 128, 1e-5f, nullptr, nullptr, {x.data, 128, nullptr}, {out.data, 128}); });
     }},
    {"dot 64x64",
     [](const Kernels& k) {
       const Floats a(64 * 64), b(64 * 64), out(64);
       measured([&] { k.dot(64, 64, {a.data, 64, nullptr}, {b.data, 64, nullptr}, {out.data, 1}); });
     }},
};

template <class T>
std::vector<T> read(std::ifstream& file, size_t n) {
  std::vector<T> values(n);
  file.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(n * sizeof(T)));
  if (!file) throw std::runtime_error("the request is too short");
  return values;
}

void must(fmtr_status status) {
  if (status != FMTR_OK) throw std::runtime_error(fmtr_last_error());
}

void request(const char* bundle, const char* path) {
  fmtr_model* model = nullptr;
  fmtr_session* session = nullptr;
  fmtr_load_options load{};
  load.struct_size = sizeof load;
  load.isa = "avx2";
  must(fmtr_model_load(bundle, &load, &model));
  const fmtr_session_options options{sizeof options, 1, 32};  // not the tile that this machine's cache asks for
  must(fmtr_session_create(model, &options, &session));
  std::ifstream file(path, std::ios::binary);
  const uint64_t n = read<uint64_t>(file, 1)[0];
  const auto items = read<int64_t>(file, n);
  const auto ids = read<int32_t>(file, fmtr_model_width(model, FMTR_REQUEST, FMTR_IDS));
  const auto dense = read<float>(file, fmtr_model_width(model, FMTR_REQUEST, FMTR_DENSE));
  const uint64_t offsets[2] = {0, n};
  std::vector<float> scores(n * fmtr_model_n_tasks(model)), fused(n);
  fmtr_batch batch{};
  batch.struct_size = sizeof batch;
  batch.n_requests = 1;
  batch.request_ids = ids.data();
  batch.request_dense = dense.data();
  batch.offsets = offsets;
  batch.items = items.data();
  const auto score = [&] { must(fmtr_score(session, &batch, scores.data(), fused.data())); };
  score();  // makes room
  measured(score);
  fmtr_session_free(session);
  fmtr_model_free(model);
}

void rows(const char* folder) {
  FeatureRows given(folder);
  const auto encode = [&] {
    for (const fastmtr::Values& row : given.rows) given.encode(row);
  };
  encode();  // makes room
  measured(encode);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 1) {
    for (const auto& [name, run] : kCases) std::puts(name.c_str());
    return 0;
  }
  try {
    if (argc == 3) {
      if (argv[1] == std::string_view("--rows"))
        rows(argv[2]);
      else
        request(argv[1], argv[2]);
      return 0;
    }
    const char* why = nullptr;
    const Kernels* kernels = avx2_kernels(&why);
    if (kernels == nullptr) throw std::runtime_error(why);
    kCases.at(argv[1])(*kernels);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
