// What a device can do at most, measured: the ceilings that bench/gpu_check.py holds results against. Prints JSON.
//
//   device_ceilings [--small]     --small: sizes for the emulation, whose numbers mean nothing
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <string>

#include "cuda/runtime.h"

namespace fastmtr::device::ceilings {

struct alignas(16) Quad {
  uint32_t x[4];
};

struct Copy {
  const Quad* from;
  Quad* to;
  uint64_t n;
};
FMTR_KERNEL(copy, Copy) {
  const uint64_t step = uint64_t{grid_size()} * block_size();
  for (uint64_t i = uint64_t{block_index()} * block_size() + thread_index(); i < args.n; i += step)
    args.to[i] = args.from[i];
}

// A warp reads a row at a place that nothing foretells, as candidates' stored rows are read.
struct Gather {
  const Quad* rows;
  uint32_t* out;  // [picks]
  uint64_t n_rows, picks;
  uint32_t quads;  // in a row
};
FMTR_KERNEL(gather, Gather) {
  const uint64_t warps = uint64_t{grid_size()} * block_size() / kWarp;
  for (uint64_t i = (uint64_t{block_index()} * block_size() + thread_index()) / kWarp; i < args.picks; i += warps) {
    uint64_t place = (i + 1) * 0x9e3779b97f4a7c15u;
    place = (place ^ place >> 30) * 0xbf58476d1ce4e5b9u;
    const Quad* row = args.rows + (place >> 20) % args.n_rows * args.quads;
    uint32_t sum = 0;
    for (uint32_t q = lane_index(); q < args.quads; q += kWarp)
      sum += row[q].x[0] ^ row[q].x[1] ^ row[q].x[2] ^ row[q].x[3];
    if (sum == 0x12345678u) args.out[i] = sum;  // so that the reads are not left out
  }
}

struct Products {
  float* out;
  uint32_t rounds;
};
constexpr int kChains = 16;
FMTR_KERNEL(multiply_adds, Products) {
  float x[kChains];
  for (int i = 0; i < kChains; ++i) x[i] = static_cast<float>(thread_index() + static_cast<unsigned>(i));
  for (uint32_t r = 0; r < args.rounds; ++r)
    for (int i = 0; i < kChains; ++i) x[i] = fused_multiply_add(x[i], 0.999f, 0.5f);
  float sum = 0;
  for (int i = 0; i < kChains; ++i) sum += x[i];
  if (sum == -1.0f) args.out[0] = sum;
}

constexpr int kFragments = 4;
template <class T>
FMTR_KERNEL(fragment_products, Products) {
  MatrixA<T> a;
  MatrixB<T, Layout::column_major> b[kFragments];
  Accumulator<T> sum[kFragments];
  const auto* zeros = reinterpret_cast<const typename FragmentMemory<T>::Type*>(args.out);
  a.load(zeros, 16);
  for (int i = 0; i < kFragments; ++i) {
    b[i].load(zeros, 16);
    sum[i].fill(0.0f);
  }
  for (uint32_t r = 0; r < args.rounds; ++r)
    for (int i = 0; i < kFragments; ++i) multiply_add(sum[i], a, b[i]);
  float total = 0;
  for (int i = 0; i < kFragments; ++i) total += sum[i][0];
  if (total == -1.0f) args.out[0] = total;
}

FMTR_KERNEL(nothing, Products) {}

}  // namespace fastmtr::device::ceilings

namespace {

using namespace fastmtr::device;
using namespace fastmtr::device::ceilings;

constexpr unsigned kBlock = 256;

// Seconds of one launch: the best of five, each of `times` launches.
double seconds(Stream& stream, int times, const std::function<void()>& body) {
  double best = 0;
  for (int round = -1; round < 5; ++round) {  // the first is to warm up
    Event start, end;
    start.record(stream);
    for (int i = 0; i < times; ++i) body();
    end.record(stream);
    end.wait();
    const double took = end.milliseconds_since(start) / 1e3 / times;
    if (round == 0 || (round > 0 && took < best)) best = took;
  }
  return best;
}

template <class Args>
unsigned whole_grid(const Properties& device, Kernel<Args> kernel) {
  return device.multiprocessors * blocks_per_multiprocessor(kernel, kBlock, 0);
}

double of_copy(Stream& stream, const Properties& device, size_t bytes) {
  Memory<unsigned char> from(bytes), to(bytes);
  stream.set(from.data(), 0, bytes);
  const Copy args = {reinterpret_cast<const Quad*>(from.data()), reinterpret_cast<Quad*>(to.data()),
                     bytes / sizeof(Quad)};
  const auto kernel = FMTR_KERNEL_OF(copy);
  const unsigned grid = whole_grid(device, kernel);
  return 2 * static_cast<double>(bytes) / seconds(stream, 3, [&] { launch(stream, kernel, grid, kBlock, 0, args); });
}

double of_gather(Stream& stream, const Properties& device, size_t bytes, uint32_t row_bytes) {
  Memory<unsigned char> rows(bytes);
  stream.set(rows.data(), 0, bytes);
  const uint64_t n_rows = bytes / row_bytes, picks = n_rows / 2;
  Memory<uint32_t> out(picks);
  const Gather args = {reinterpret_cast<const Quad*>(rows.data()), out.data(), n_rows, picks,
                       static_cast<uint32_t>(row_bytes / sizeof(Quad))};
  const auto kernel = FMTR_KERNEL_OF(gather);
  const unsigned grid = whole_grid(device, kernel);
  return static_cast<double>(picks) * row_bytes /
         seconds(stream, 3, [&] { launch(stream, kernel, grid, kBlock, 0, args); });
}

double of_products(Stream& stream, const Properties& device, Kernel<Products> kernel, uint32_t rounds,
                   double flops_of_thread_round) {
  Memory<float> out(256);
  stream.set(out.data(), 0, out.size() * sizeof(float));
  const unsigned grid = whole_grid(device, kernel);
  const double flops = flops_of_thread_round * rounds * grid * kBlock;
  return flops / seconds(stream, 3, [&] { launch(stream, kernel, grid, kBlock, 0, Products{out.data(), rounds}); });
}

template <class T>
double of_fragments(Stream& stream, const Properties& device, uint32_t rounds) {
  const double flops = 2.0 * 16 * 16 * kFragmentDepth<T> * kFragments / kWarp;
  return of_products(stream, device, FMTR_KERNEL_OF(fragment_products<T>), rounds, flops);
}

double of_graph_launch(Stream& stream, bool small) {
  const Graph graph(stream, [&] { launch(stream, FMTR_KERNEL_OF(nothing), 1, kWarp, 0, Products{nullptr, 0}); });
  return seconds(stream, small ? 2 : 1000, [&] { graph.launch(stream); });
}

}  // namespace

int main(int argc, char** argv) try {
  const bool small = argc == 2 && std::strcmp(argv[1], "--small") == 0;
  if (argc > 1 && !small) {
    std::fprintf(stderr, "usage: device_ceilings [--small]\n");
    return 2;
  }
  std::string why;
  if (device_count(why) == 0) {
    std::fprintf(stderr, "no device: %s\n", why.c_str());
    return 77;
  }
  const Properties device = properties(0);
  const size_t bytes = small ? size_t{1} << 14 : size_t{1} << 30;
  const uint32_t rounds = small ? 2 : 20000;
  Stream stream;
  std::string name = device.name;
  std::replace(name.begin(), name.end(), '"', '\'');
  std::printf("{\n \"device\": \"%s\",\n \"compute_capability\": \"%d.%d\",\n \"multiprocessors\": %u,\n", name.c_str(),
              device.compute_major, device.compute_minor, device.multiprocessors);
  std::printf(" \"copy_bytes_per_second\": %.4g,\n", of_copy(stream, device, bytes));
  std::printf(" \"gather_bytes_per_second\": %.4g,\n", of_gather(stream, device, bytes, 1024));
  std::printf(" \"fp32_flops_per_second\": %.4g,\n",
              of_products(stream, device, FMTR_KERNEL_OF(multiply_adds), rounds, 2.0 * kChains));
  std::printf(" \"tf32_flops_per_second\": %.4g,\n", of_fragments<tf32_t>(stream, device, rounds));
  std::printf(" \"fp16_flops_per_second\": %.4g,\n", of_fragments<half_t>(stream, device, rounds));
  std::printf(" \"bf16_flops_per_second\": %.4g,\n", of_fragments<bf16_t>(stream, device, rounds));
  std::printf(" \"graph_launch_seconds\": %.4g\n}\n", of_graph_launch(stream, small));
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "device_ceilings: %s\n", error.what());
  return 1;
}
