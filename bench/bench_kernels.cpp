// How close the kernels come to what one core can do: share of the measured FMA peak for products, GB/s for gathers.
//
//   g++ -std=c++20 -O3 -Icsrc bench/bench_kernels.cpp <the objects of csrc/cpu> -o bench_kernels && ./bench_kernels
//   [isa...]
//
// Or by CMake with -DFASTMTR_NATIVE_TESTS=ON: see bench/README.md. Every number is the best of several repetitions: it
// asks what the code can do, not what the machine's neighbours left over.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "backend.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

using fastmtr::Activation;
using fastmtr::AffineArgs;
using fastmtr::Kernels;
using fastmtr::Rows;

double seconds_of_best(const std::function<void()>& run) {
  using Clock = std::chrono::steady_clock;
  const auto time = [&](int n) {
    const auto start = Clock::now();
    for (int i = 0; i < n; ++i) run();
    return std::chrono::duration<double>(Clock::now() - start).count() / n;
  };
  run();
  const int n = static_cast<int>(std::clamp(2e-3 / (time(1) + 1e-9), 1.0, 1e6));
  double best = 1e9;
  for (int i = 0; i < 25; ++i) best = std::min(best, time(n));
  return best;
}

// ---- peak: as many independent multiply-adds as the registers hold ------------------------------------------------

constexpr int kPeakSteps = 4096;
volatile float sink;

#if defined(__x86_64__)
__attribute__((target("avx512f"))) void peak_avx512() {
  __m512 sums[16];
  for (auto& s : sums) s = _mm512_set1_ps(0.5f);
  const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f);
  for (int i = 0; i < kPeakSteps; ++i)
#pragma GCC unroll 16
    for (auto& s : sums) s = _mm512_fmadd_ps(s, a, b);
  __m512 total = sums[0];
  for (int i = 1; i < 16; ++i) total = _mm512_add_ps(total, sums[i]);
  sink = _mm512_cvtss_f32(total);
}
__attribute__((target("avx2,fma"))) void peak_avx2() {
  __m256 sums[12];
  for (auto& s : sums) s = _mm256_set1_ps(0.5f);
  const __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(0.001f);
  for (int i = 0; i < kPeakSteps; ++i)
#pragma GCC unroll 16
    for (auto& s : sums) s = _mm256_fmadd_ps(s, a, b);
  __m256 total = sums[0];
  for (int i = 1; i < 12; ++i) total = _mm256_add_ps(total, sums[i]);
  sink = _mm256_cvtss_f32(total);
}
#endif

void peak_plain() {
  typedef float V __attribute__((vector_size(16)));
  V sums[12];
  for (auto& s : sums) s = V{} + 0.5f;
  const V a = V{} + 0.999f, b = V{} + 0.001f;
  for (int i = 0; i < kPeakSteps; ++i)
#pragma GCC unroll 16
    for (auto& s : sums) s = s * a + b;  // fused where the processor always can (AArch64)
  V total = sums[0];
  for (int i = 1; i < 12; ++i) total += sums[i];
  sink = total[0];
}

struct Peak {
  void (*run)();
  double flops;
};

Peak peak_of(const std::string& isa) {
#if defined(__x86_64__)
  if (isa.starts_with("avx512")) return {peak_avx512, 2.0 * 16 * 16 * kPeakSteps};
  if (isa == "avx2") return {peak_avx2, 2.0 * 12 * 8 * kPeakSteps};
#endif
  (void)isa;
  return {peak_plain, 2.0 * 12 * 4 * kPeakSteps};
}

// ---- cases --------------------------------------------------------------------------------------------------------

struct Floats {  // 64-byte aligned
  explicit Floats(size_t n) : data(static_cast<float*>(std::aligned_alloc(64, (n * 4 + 63) / 64 * 64))) {
    if (!data) std::abort();
    static std::mt19937 random(1);
    for (size_t i = 0; i < n; ++i) data[i] = static_cast<float>(random() >> 8) / (1 << 23) - 1.0f;
  }
  ~Floats() { std::free(data); }
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;
  float* data;
};

void product(const Kernels& kernels, double peak, size_t rows, size_t groups, size_t n, size_t k, Activation fn,
             bool halves = false) {
  const fastmtr::ProductKernels& products = halves ? kernels.fp16 : kernels.fp32;
  const size_t width = groups * n;
  Floats x(rows * groups * k), w(width * k), bias(width), out(rows * width),
      packed(products.packed_bytes(groups, n, k) / sizeof(float));
  products.pack(w.data, groups, n, k, packed.data);
  AffineArgs args = {};
  args.rows = rows, args.groups = groups, args.n = n, args.k = k;
  args.x = {x.data, groups * k, nullptr};
  args.packed = packed.data;
  args.bias = bias.data;
  args.activation = fn;
  args.out = {out.data, width};
  const double seconds = seconds_of_best([&] { products.affine(&args); });
  const double flops = 2.0 * static_cast<double>(rows * width * k);
  std::printf(
      "  %-6s  M=%-4zu G=%zu N=%-5zu K=%-4zu %s %9.2f us  %6.1f GFLOP/s  %5.1f %% of peak  weights %5.1f GB/s\n",
      halves ? "fp16" : "affine", rows, groups, n, k,
      fn == Activation::relu   ? "relu   "
      : fn == Activation::none ? "none   "
                               : "sigmoid",
      seconds * 1e6, flops / seconds * 1e-9, 100 * flops / seconds * 1e-9 / peak,
      static_cast<double>(width * k) * (halves ? 2 : 4) / seconds * 1e-9);
}

// The same in 8 bits.
void product_int8(const Kernels& kernels, double peak, size_t rows, size_t groups, size_t n, size_t k) {
  const size_t width = groups * n;
  Floats x(rows * groups * k), w(width * k), bias(width), out(rows * width),
      packed(kernels.int8.packed_bytes(groups, n, k) / 4);
  kernels.int8.pack(w.data, groups, n, k, packed.data);
  AffineArgs args = {};
  args.rows = rows, args.groups = groups, args.n = n, args.k = k;
  args.x = {x.data, groups * k, nullptr};
  args.bias = bias.data;
  args.activation = Activation::relu;
  args.out = {out.data, width};
  const double seconds = seconds_of_best([&] { kernels.int8.affine(&args, packed.data, nullptr); });
  const double ops = 2.0 * static_cast<double>(rows * width * k);
  std::printf("  8 bits  M=%-4zu G=%zu N=%-5zu K=%-4zu relu    %9.2f us  %6.1f Gop/s  %6.2f of the multiply-add peak\n",
              rows, groups, n, k, seconds * 1e6, ops / seconds * 1e-9, ops / seconds * 1e-9 / peak);
}

// And with x = relu(request row + stored item row) made on the way.
void product_of_gathered(const Kernels& kernels, size_t rows, size_t groups, size_t n, size_t k, size_t table_bytes) {
  const size_t width = groups * k, items = table_bytes / 4 / width;
  Floats table(items * width), request(width), w(groups * n * k), out(rows * groups * n),
      packed(kernels.int8.packed_bytes(groups, n, k) / 4);
  kernels.int8.pack(w.data, groups, n, k, packed.data);
  std::mt19937 random(2);
  std::vector<uint32_t> picks(1 << 15);
  for (auto& p : picks) p = static_cast<uint32_t>(random() % items);
  size_t next = 0;
  const double seconds = seconds_of_best([&] {
    const Rows addends[2] = {{request.data, 0, nullptr}, {table.data, width, picks.data() + next}};
    next = next + 2 * rows <= picks.size() ? next + rows : 0;
    AffineArgs source = {}, args = {};
    source.rows = args.rows = rows;
    source.groups = 1, source.n = width, source.addends = addends, source.n_addends = 2;
    source.activation = args.activation = Activation::relu;
    args.groups = groups, args.n = n, args.k = k;
    args.out = {out.data, groups * n};
    kernels.int8.affine(&args, packed.data, &source);
  });
  const double ops = 2.0 * static_cast<double>(rows * groups * n * k);
  std::printf("  8 bits  M=%-4zu G=%zu N=%-5zu K=%-4zu of rows gathered out of %4zu MiB %9.2f us  %6.1f Gop/s\n", rows,
              groups, n, k, table_bytes >> 20, seconds * 1e6, ops / seconds * 1e-9);
}

// relu(request row + stored item row): what the first layer of an expert is once it is split.
void gather(const Kernels& kernels, size_t rows, size_t width, size_t table_bytes) {
  const size_t items = table_bytes / 4 / width;
  Floats table(items * width), request(width), out(rows * width);
  std::mt19937 random(2);
  std::vector<uint32_t> picks(
      std::max<size_t>(rows, (size_t{256} << 20) / (width * 4)));  // of far more than the caches hold
  for (auto& p : picks) p = static_cast<uint32_t>(random() % items);
  size_t next = 0;
  AffineArgs args = {};
  const double seconds = seconds_of_best([&] {
    const Rows addends[2] = {{request.data, 0, nullptr}, {table.data, width, picks.data() + next}};
    next = next + 2 * rows <= picks.size() ? next + rows : 0;
    args.rows = rows, args.groups = 1, args.n = width;
    args.addends = addends, args.n_addends = 2;
    args.activation = Activation::relu;
    args.out = {out.data, width};
    kernels.add(&args);
  });
  const double bytes = static_cast<double>(rows * width) * 4;
  std::printf("  gather  M=%-4zu rows of %5zu bytes out of %4zu MiB %9.2f us  %5.2f GB/s read  %5.2f M rows/s\n", rows,
              width * 4, table_bytes >> 20, seconds * 1e6, bytes / seconds * 1e-9,
              static_cast<double>(rows) / seconds * 1e-6);
}

void embedding(const Kernels& kernels, size_t rows, size_t n_ids, size_t dim, size_t table_bytes) {
  const size_t items = table_bytes / 4 / dim;
  Floats table(items * dim), out(rows * n_ids * dim);
  std::mt19937 random(3);
  std::vector<int32_t> ids(1 << 20);
  for (auto& i : ids) i = static_cast<int32_t>(random() % items);
  const fastmtr::EmbeddingTable looked_up = {table.data, dim, fastmtr::TableEncoding::f32, nullptr, nullptr};
  size_t next = 0;
  const double seconds = seconds_of_best([&] {
    next = next + 2 * rows * n_ids <= ids.size() ? next + rows * n_ids : 0;
    kernels.embedding(rows, n_ids, {ids.data() + next, n_ids}, -1, &looked_up, {out.data, n_ids * dim});
  });
  const double lookups = static_cast<double>(rows * n_ids);
  std::printf("  lookup  M=%-4zu x %zu rows of %4zu bytes out of %4zu MiB %9.2f us  %5.1f M rows/s\n", rows, n_ids,
              dim * 4, table_bytes >> 20, seconds * 1e6, lookups / seconds * 1e-6);
}

void elementwise(const Kernels& kernels, const char* name, Activation fn) {
  const size_t n = 4096;
  Floats x(n), out(n);
  const double seconds = seconds_of_best([&] {
    kernels.activation(16, n / 16, fn, 0.1f, nullptr, {x.data, n / 16, nullptr}, {out.data, n / 16});
  });
  std::printf("  %-10s %6.2f ns an element\n", name, seconds / n * 1e9);
}

// ---- two threads at once --------------------------------------------------------------------------------------------

// Calls of work(thread) a second.
double calls_a_second(int threads, const std::function<void(int)>& work) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> rates(static_cast<size_t>(threads));
  std::vector<std::thread> running;
  for (int t = 0; t < threads; ++t)
    running.emplace_back([&rates, &work, t] {
      const auto start = Clock::now();
      double calls = 0, seconds = 0;
      while (seconds < 0.03) {
        work(t);
        ++calls;
        seconds = std::chrono::duration<double>(Clock::now() - start).count();
      }
      rates[static_cast<size_t>(t)] = calls / seconds;
    });
  double sum = 0;
  for (size_t t = 0; t < running.size(); ++t) {
    running[t].join();
    sum += rates[t];
  }
  return sum;
}

void by_two(const char* what, double giga, const char* unit, const std::function<void(int)>& work) {
  std::vector<double> one, ratios;
  for (int i = 0; i < 15; ++i) {
    one.push_back(calls_a_second(1, work));
    ratios.push_back(calls_a_second(2, work) / one.back());
  }
  std::sort(one.begin(), one.end());
  std::sort(ratios.begin(), ratios.end());
  std::printf("  %-34s %6.1f %s by one thread; by two %.2f times as much [%.2f, %.2f]\n", what,
              one[one.size() / 2] * giga, unit, ratios[ratios.size() / 2], ratios.front(), ratios.back());
}

// The machine's own limits. Two processors of a virtual machine may at times be the two threads of one core: then
// multiply-adds, which touch no memory, tell.
void two_threads(const Kernels& kernels) {
  const Peak peak = peak_of(kernels.isa);
  by_two("multiply-adds in registers", peak.flops * 1e-9, "GFLOP/s", [&](int) { peak.run(); });
  for (const size_t mib : {3, 24}) {
    const size_t n = (mib << 20) / sizeof(float) / 2;
    const Floats a(n), b(n);
    float out[2];
    const std::string what = "reading the same " + std::to_string(mib) + " MiB";
    by_two(what.c_str(), static_cast<double>(2 * n * sizeof(float)) * 1e-9, "GB/s", [&](int t) {
      kernels.dot(1, n, {a.data, n, nullptr}, {b.data, n, nullptr}, {&out[t], 1});
    });
  }
}

void run(const Kernels& kernels) {
  const double peak = peak_of(kernels.isa).flops / seconds_of_best(peak_of(kernels.isa).run) * 1e-9;
  std::printf("%s: multiply-add peak %.1f GFLOP/s\n", kernels.isa, peak);
  for (size_t rows : {1, 2, 3, 5, 8, 16, 64, 256}) product(kernels, peak, rows, 8, 128, 256, Activation::relu);
  for (size_t rows : {1, 4, 64, 256}) product(kernels, peak, rows, 1, 2048, 352, Activation::relu);
  product(kernels, peak, 1, 1, 2072, 152, Activation::none);
  product(kernels, peak, 1, 1, 2072, 152, Activation::none, true);
  for (size_t rows : {1, 64}) product(kernels, peak, rows, 3, 64, 128, Activation::relu);
  for (size_t rows : {1, 64}) product(kernels, peak, rows, 3, 8, 136, Activation::none);
  for (size_t rows : {1, 64}) product(kernels, peak, rows, 3, 1, 64, Activation::sigmoid);
  for (size_t rows : {1, 64}) product(kernels, peak, rows, 1, 128, 1024, Activation::none);
  for (size_t rows : {1, 14, 64, 256}) product_int8(kernels, peak, rows, 8, 128, 256);
  for (size_t rows : {1, 64}) product_int8(kernels, peak, rows, 3, 64, 128);
  for (size_t rows : {1, 64}) product_int8(kernels, peak, rows, 1, 256, 512);
  for (size_t rows : {64, 256}) product_of_gathered(kernels, rows, 8, 128, 256, size_t{1} << 30);
  product_of_gathered(kernels, 256, 1, 256, 512, size_t{256} << 20);
  for (size_t width : {16, 512, 2048}) gather(kernels, 64, width, size_t{1} << 30);
  gather(kernels, 64, 2048, size_t{8} << 20);
  embedding(kernels, 64, 8, 16, size_t{512} << 20);
  elementwise(kernels, "relu", Activation::relu);
  elementwise(kernels, "sigmoid", Activation::sigmoid);
  elementwise(kernels, "tanh", Activation::tanh);
  elementwise(kernels, "gelu", Activation::gelu);
  elementwise(kernels, "exp", Activation::exp);
  two_threads(kernels);
}

}  // namespace

int main(int argc, char** argv) {
  const Kernels* (*const tables[])(const char**) = {fastmtr::baseline_kernels, fastmtr::avx2_kernels,
                                                    fastmtr::avx512_kernels, fastmtr::avx512_vnni_kernels,
                                                    fastmtr::neon_kernels};
  for (const auto table : tables) {
    const char* why = nullptr;
    const Kernels* kernels = table(&why);
    if (!kernels) {
      std::printf("not run: %s\n", why);
      continue;
    }
    if (argc > 1 && std::none_of(argv + 1, argv + argc, [&](const char* a) { return std::string(a) == kernels->isa; }))
      continue;
    run(*kernels);
  }
  return 0;
}
