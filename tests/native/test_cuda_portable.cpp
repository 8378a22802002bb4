// The names of cuda/portable.h and cuda/runtime.h do what they say: compiled by the C++ compiler on the emulation, in
// each order of threads and blocks, and by nvcc on a GPU.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <iterator>
#include <numeric>
#include <random>
#include <vector>

#include "check.h"
#include "cuda/runtime.h"
#include "cuda_kernels.cuh"

namespace {

using namespace fastmtr::device;
using namespace fastmtr::device::portable_tests;

std::mt19937 random_bits(11);
float uniform() { return static_cast<float>(random_bits() >> 8) / static_cast<float>(1 << 23) - 1.0f; }
std::vector<float> uniforms(size_t n) {
  std::vector<float> result(n);
  for (float& x : result) x = uniform();
  return result;
}
std::vector<uint32_t> integers(size_t n, uint32_t below) {
  std::vector<uint32_t> result(n);
  for (uint32_t& x : result) x = static_cast<uint32_t>(random_bits() % below);
  return result;
}

template <class T>
Memory<T> on_device(Stream& stream, const std::vector<T>& values) {
  Memory<T> result(values.size());
  stream.copy_in(result.data(), values.data(), values.size() * sizeof(T));
  return result;
}
template <class T>
std::vector<T> on_host(Stream& stream, const Memory<T>& memory) {
  std::vector<T> result(memory.size());
  stream.copy_out(result.data(), memory.data(), result.size() * sizeof(T));
  stream.wait();
  return result;
}

void test_sums() {
  Stream stream;
  constexpr unsigned n = 1000, block = 256, grid = 4;
  std::vector<float> x(n);
  for (float& v : x) v = static_cast<float>(static_cast<int>(random_bits() % 2001) - 1000);  // sums are exact
  const Memory<float> in = on_device(stream, x);
  Memory<float> tree(grid), shuffles(grid);
  launch(stream, FMTR_KERNEL_OF(sum_by_tree), grid, block, block * sizeof(float), Vectors{in.data(), tree.data(), n});
  launch(stream, FMTR_KERNEL_OF(sum_by_shuffles), grid, block, block / kWarp * sizeof(float),
         Vectors{in.data(), shuffles.data(), n});
  std::vector<float> want(grid);
  for (unsigned i = 0; i < n; ++i) want[i / block] += x[i];
  check(on_host(stream, tree) == want, "sums by a tree");
  check(on_host(stream, shuffles) == want, "sums by shuffles");
}

void test_integers() {
  Stream stream;
  {
    constexpr unsigned n = 512;
    const std::vector<uint32_t> x = integers(n, 1000);
    const Memory<uint32_t> in = on_device(stream, x);
    Memory<uint32_t> out(n);
    launch(stream, FMTR_KERNEL_OF(scan), 1, n, n / kWarp * sizeof(uint32_t),
           Integers{in.data(), out.data(), nullptr, n});
    std::vector<uint32_t> want(n);
    std::partial_sum(x.begin(), x.end(), want.begin());
    check(on_host(stream, out) == want, "prefix sums");
  }
  {
    constexpr unsigned n = 300;
    const std::vector<uint32_t> x = integers(n, 1000);
    const Memory<uint32_t> in = on_device(stream, x);
    Memory<uint32_t> out(n + 1);
    launch(stream, FMTR_KERNEL_OF(keep_odd), 1, kWarp, 0, Integers{in.data(), out.data(), nullptr, n});
    std::vector<uint32_t> want;
    std::copy_if(x.begin(), x.end(), std::back_inserter(want), [](uint32_t v) { return v % 2 == 1; });
    std::vector<uint32_t> got = on_host(stream, out);
    check(got[n] == want.size(), "how many are odd");
    got.resize(want.size());
    check(got == want, "those that are odd, in order");
  }
  {
    const std::vector<uint32_t> x = integers(kWarp, 1u << 30);
    const Memory<uint32_t> in = on_device(stream, x);
    Memory<uint32_t> out(5 * kWarp);
    Memory<uint64_t> wide(kWarp);
    launch(stream, FMTR_KERNEL_OF(permute_lanes), 1, kWarp, 0, Integers{in.data(), out.data(), wide.data(), kWarp});
    const std::vector<uint32_t> got = on_host(stream, out);
    const std::vector<uint64_t> got_wide = on_host(stream, wide);
    bool same = true;
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      const unsigned from = (7 * lane + 3) % kWarp;
      for (unsigned part = 0; part < 3; ++part) same = same && got[part * kWarp + lane] == x[from];
      same = same && got_wide[lane] == (uint64_t{x[from]} << 32 | from);
      same = same && got[3 * kWarp + lane] == x[lane + 5 < kWarp ? lane + 5 : lane];
      same = same && got[4 * kWarp + lane] == x[lane >= 5 ? lane - 5 : lane];
    }
    check(same, "shuffles of each type");
  }
  {
    constexpr unsigned n = 1000, block = 64, grid = (n + block - 1) / block;
    const std::vector<uint32_t> x = integers(n, 1u << 31);
    const Memory<uint32_t> in = on_device(stream, x);
    Memory<uint32_t> out(18);
    Memory<uint64_t> wide(2);
    stream.set(out.data(), 0, out.size() * sizeof(uint32_t));
    stream.set(wide.data(), 0, wide.size() * sizeof(uint64_t));
    launch(stream, FMTR_KERNEL_OF(count), grid, block, 0, Integers{in.data(), out.data(), wide.data(), n});
    std::vector<uint32_t> want(18);
    for (uint32_t v : x) ++want[v % 16];
    want[16] = grid;
    want[17] = n;
    check(on_host(stream, out) == want, "counts, and the last block saw all of them");
    check(on_host(stream, wide) == std::vector<uint64_t>{*std::max_element(x.begin(), x.end()),
                                                         std::accumulate(x.begin(), x.end(), uint64_t{0})},
          "largest and sum");
  }
}

// To `digits` significant bits, the nearest, ties to even; numbers below 2^least have the places of those above.
double rounded(double x, int digits, int least) {
  if (x == 0 || !std::isfinite(x)) return x;
  int exponent;
  std::frexp(x, &exponent);
  const double place = std::ldexp(1.0, std::max(exponent, least + 1) - digits);
  return std::nearbyint(x / place) * place;
}

void test_conversions() {
  std::vector<float> x = {0.0f,          -0.0f,          1.0f,          65504.0f, 65519.9f,  65520.0f,
                          -65520.0f,     1e6f,           6.1e-5f,       5.96e-8f, 2.98e-8f,  2.981e-8f,
                          1.0009765625f, 1.00048828125f, 3e38f,         -3.4e38f, 2049.0f,   2051.0f,
                          1e-40f,        -1e-42f,        std::nanf(""), INFINITY, -INFINITY, 3.3961775e38f};
  for (uint64_t b = 0; b < 0xffffffffull; b += 400009) {
    const auto pattern = static_cast<uint32_t>(b);
    float f;
    std::memcpy(&f, &pattern, sizeof f);
    x.push_back(f);
  }
  for (int i = 0; i < 2000; ++i) x.push_back(uniform() * 70000), x.push_back(uniform() * 1e-4f);
  Stream stream;
  const unsigned n = static_cast<unsigned>(x.size());
  const Memory<float> in = on_device(stream, x);
  Memory<half_t> half(n);
  Memory<bf16_t> bf16(n);
  Memory<float> of_half(n), of_bf16(n);
  launch(stream, FMTR_KERNEL_OF(convert), 2, 128, 0,
         Halves{in.data(), half.data(), bf16.data(), of_half.data(), of_bf16.data(), n});
  const std::vector<float> got_half = on_host(stream, of_half), got_bf16 = on_host(stream, of_bf16);
  const auto wrong = [](float got, double want, double most) {
    if (std::isnan(want)) return !std::isnan(got);
    if (std::abs(want) > most) return got != (want > 0 ? INFINITY : -INFINITY);
    return static_cast<double>(got) != want || std::signbit(got) != std::signbit(want);
  };
  for (unsigned i = 0; i < n; ++i) {
    if (wrong(got_half[i], rounded(x[i], 11, -14), 65504))
      return check(false, fastmtr::say("half of ", x[i], " is ", got_half[i]));
    if (wrong(got_bf16[i], rounded(x[i], 8, -126), 3.3895314e38))
      return check(false, fastmtr::say("bf16 of ", x[i], " is ", got_bf16[i]));
  }
  check(true, "conversions");
}

void test_copies() {
  Stream stream;
  constexpr unsigned block = 64, n = 4 * block * 7;
  const std::vector<float> x = uniforms(n);
  const Memory<float> in = on_device(stream, x);
  Memory<float> out(block);
  launch(stream, FMTR_KERNEL_OF(sum_copied), 1, block, 3 * 4 * block * sizeof(float),
         Vectors{in.data(), out.data(), n});
  std::vector<float> want(block);
  for (unsigned i = 0; i < n; ++i) want[i / 4 % block] += x[i];
  check(on_host(stream, out) == want, "sums of what was copied asynchronously");
}

// ---- products ------------------------------------------------------------------------------------------------------

template <class T>
typename FragmentMemory<T>::Type stored(float x) {
  if constexpr (std::is_same_v<T, half_t>) return to_half(x);
  if constexpr (std::is_same_v<T, bf16_t>) return to_bf16(x);
  if constexpr (std::is_same_v<T, tf32_t>) return x;
}

// What the product takes for x.
template <class T>
float taken(float x) {
  if constexpr (std::is_same_v<T, tf32_t>) {  // 11 bits, ties away from zero
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x1000u) & ~0x1fffu;
    std::memcpy(&x, &bits, sizeof bits);
    return x;
  } else {
    return to_float(stored<T>(x));
  }
}

template <class T, Layout layout_a, Layout layout_b>
void test_product(const std::string& what, const std::function<float()>& value, double tolerance) {
  Stream stream;
  constexpr unsigned depth = 48;
  std::vector<float> a(16 * depth), b(depth * 16), c(16 * 16);
  std::vector<typename FragmentMemory<T>::Type> stored_a(a.size()), stored_b(b.size());
  for (float& x : c) x = value();
  for (unsigned i = 0; i < 16; ++i)
    for (unsigned k = 0; k < depth; ++k) {
      a[i * depth + k] = value();
      b[k * 16 + i] = value();
      stored_a[layout_a == Layout::row_major ? i * depth + k : k * 16 + i] = stored<T>(a[i * depth + k]);
      stored_b[layout_b == Layout::row_major ? k * 16 + i : i * depth + k] = stored<T>(b[k * 16 + i]);
    }
  const auto on_a = on_device(stream, stored_a), on_b = on_device(stream, stored_b);
  const Memory<float> on_c = on_device(stream, c);
  Memory<float> out(256);
  launch(stream, FMTR_KERNEL_OF(multiply<T, layout_a, layout_b>), 1, kWarp, 0,
         Matrices<T>{on_a.data(), on_b.data(), on_c.data(), out.data(), depth});
  const std::vector<float> got = on_host(stream, out);
  double worst = 0;
  for (unsigned i = 0; i < 16; ++i)
    for (unsigned j = 0; j < 16; ++j) {
      float sum = c[i * 16 + j];
      for (unsigned k = 0; k < depth; ++k) sum += taken<T>(a[i * depth + k]) * taken<T>(b[k * 16 + j]);
      worst = std::max(worst, static_cast<double>(std::abs(got[i * 16 + j] - 2 * sum)));
    }
  check(worst <= tolerance, fastmtr::say(what, ": largest error ", worst));
}

// One term a sum, so that only the rounding of what goes in counts: exact on any device.
template <class T>
void test_rounding(const std::string& what) {
  Stream stream;
  constexpr unsigned k = kFragmentDepth<T>;
  std::vector<float> a(16 * k);
  for (float& x : a) x = uniform();
  a[0] = 1 + 0x1p-11f;  // ties of 11 bits
  a[1] = 1 + 3 * 0x1p-11f;
  a[2] = -1 - 0x1p-11f;
  a[3] = 1 + 0x1p-11f + 0x1p-20f;
  const std::vector<float> c(256);
  std::vector<typename FragmentMemory<T>::Type> stored_a(a.size()), identity(k * 16, stored<T>(0));
  for (size_t i = 0; i < a.size(); ++i) stored_a[i] = stored<T>(a[i]);
  for (unsigned i = 0; i < k; ++i) identity[i * 16 + i] = stored<T>(1);
  const auto on_a = on_device(stream, stored_a), on_b = on_device(stream, identity);
  const Memory<float> zeros = on_device(stream, c);
  Memory<float> out(256);
  launch(stream, FMTR_KERNEL_OF(multiply<T, Layout::row_major, Layout::row_major>), 1, kWarp, 0,
         Matrices<T>{on_a.data(), on_b.data(), zeros.data(), out.data(), k});
  const std::vector<float> got = on_host(stream, out);
  bool same = true;
  for (unsigned i = 0; i < 16; ++i)
    for (unsigned j = 0; j < k; ++j) same = same && got[i * 16 + j] == 2 * taken<T>(a[i * k + j]);
  check(same, what + ": what goes into a product is rounded to its precision");
}

template <class T>
void test_products(const std::string& name, double tolerance) {
  const auto whole = [] { return static_cast<float>(static_cast<int>(random_bits() % 17) - 8); };
  constexpr Layout rows = Layout::row_major, columns = Layout::column_major;
  test_product<T, rows, rows>(name + " of whole numbers", whole, 0);
  test_product<T, rows, columns>(name + " of whole numbers, B by columns", whole, 0);
  test_product<T, columns, rows>(name + " of whole numbers, A by columns", whole, 0);
  test_product<T, columns, columns>(name + " of whole numbers, both by columns", whole, 0);
  test_product<T, rows, rows>(name, uniform, tolerance);
  test_rounding<T>(name);
}

// ---- the runtime
// -----------------------------------------------------------------------------------------------------

void test_runtime() {
  const Properties properties = fastmtr::device::properties(0);
  check(!properties.name.empty() && properties.multiprocessors > 0 && properties.shared_bytes >= 48 * 1024,
        "properties");
  check(blocks_per_multiprocessor(FMTR_KERNEL_OF(sum_by_tree), 256, 1024) >= 1, "occupancy");
  check(blocks_per_multiprocessor(FMTR_KERNEL_OF(sum_by_tree), 256, size_t{1} << 30) == 0,
        "occupancy: too much asked for");

  Stream stream, other;
  constexpr unsigned n = 64;
  Pinned<float> x(n), got(1);
  std::fill_n(x.data(), n, 1.0f);
  Memory<float> in(n), out(1), copied(1);
  const Graph graph(stream, [&] {
    stream.copy_in(in.data(), x.data(), n * sizeof(float));
    launch(stream, FMTR_KERNEL_OF(sum_by_tree), 1, n, n * sizeof(float), Vectors{in.data(), out.data(), n});
    stream.copy_out(got.data(), out.data(), sizeof(float));
  });
  got.data()[0] = -1;
  stream.wait();
  check(got.data()[0] == -1, "recording does nothing yet");
  for (float value : {2.0f, 3.0f}) {
    std::fill_n(x.data(), n, value);
    graph.launch(stream);
    stream.wait();
    check(got.data()[0] == n * value, "a graph launched again reads its memory again");
  }

  // The other stream waits for the event, and so for all that was before it.
  Event start, end;
  start.record(stream);
  std::fill_n(x.data(), n, 5.0f);
  graph.launch(stream);
  end.record(stream);
  other.wait_for(end);
  other.copy(copied.data(), out.data(), sizeof(float));
  check(on_host(other, copied)[0] == n * 5.0f, "a stream waits for another's event");
  end.wait();
  check(end.milliseconds_since(start) >= 0, "time between events");
}

}  // namespace

int main() {
  std::string why;
  if (fastmtr::device::device_count(why) == 0) {
    std::printf("no device: %s\n", why.c_str());
    return 77;
  }
  const auto all = [] {
    test_sums();
    test_integers();
    test_conversions();
    test_copies();
    test_products<half_t>("half", 2e-5);
    test_products<bf16_t>("bf16", 2e-5);
    test_products<tf32_t>("tf32", 2e-5);
    test_runtime();
  };
#if defined(__CUDACC__)
  all();
#else
  using namespace fastmtr::device::host;
  for (const Options& options : {Options{}, Options{Order::reverse, 1, 0xff}, Options{Order::random, 1, 0xff},
                                 Options{Order::random, 2, 0x7f}}) {
    set_options(options);
    all();
  }
#endif
  return finish();
}
