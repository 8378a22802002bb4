// The emulation finds what is wrong with a kernel: each kernel here has one fault, and the check that is for it fails.
// (That right kernels pass: test_cuda_portable.cpp.)
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "check.h"
#include "cuda/runtime.h"
#include "cuda_kernels.cuh"

namespace fastmtr::device::faults {

using portable_tests::Vectors;

// ---- order
// -----------------------------------------------------------------------------------------------------------

// Without the barrier between write and read.
FMTR_KERNEL(read_neighbour_at_once, Vectors) {
  float* shared = reinterpret_cast<float*>(shared_memory());
  const unsigned t = thread_index();
  shared[t] = args.in[t];
  args.out[t] = shared[(t + 1) % block_size()];
}

// As sum_by_tree, without the barrier at the end of the loop.
FMTR_KERNEL(sum_without_barrier, Vectors) {
  float* parts = reinterpret_cast<float*>(shared_memory());
  const unsigned t = thread_index();
  parts[t] = args.in[t];
  block_barrier();
  for (unsigned half = block_size() / 2; half > 0; half /= 2)
    if (t < half) parts[t] += parts[t + half];
  if (t == 0) args.out[0] = parts[0];
}

// As read_neighbour_at_once, within one warp, through global memory.
FMTR_KERNEL(read_lane_at_once, Vectors) {
  args.out[thread_index()] = args.in[thread_index()];
  args.out[kWarp + thread_index()] = args.out[thread_index() ^ 1];
}

// The barrier before the buffer's next use is missing: right but for what the next round writes too early.
FMTR_KERNEL(overwrite_early, Vectors) {
  float* shared = reinterpret_cast<float*>(shared_memory());
  const unsigned t = thread_index();
  float sum = 0;
  for (unsigned round = 0; round < 3; ++round) {
    shared[t] = args.in[t] + static_cast<float>(round);
    block_barrier();
    sum += shared[(t + 1) % block_size()];
  }
  args.out[t] = sum;
}

FMTR_KERNEL(sum_by_atomics, Vectors) { atomic_add(args.out, args.in[thread_index()]); }

// Blocks that believe the ones before them to be done.
FMTR_KERNEL(read_block_before, Vectors) {
  const unsigned b = block_index();
  if (thread_index() == 0) args.out[b] = args.in[b] + (b > 0 ? args.out[b - 1] : 0.0f);
}

// ---- what nobody wrote
// -----------------------------------------------------------------------------------------------

FMTR_KERNEL(read_unwritten_shared, Vectors) {
  args.out[thread_index()] = reinterpret_cast<float*>(shared_memory())[thread_index()];
}

FMTR_KERNEL(read_copy_at_once, Vectors) {
  float* shared = reinterpret_cast<float*>(shared_memory());
  const unsigned t = thread_index();
  copy_async16(shared + 4 * t, args.in + 4 * t);
  copy_async_commit();
  args.out[t] = shared[4 * t];
}

// Waits for all groups but the newest, which is the one that it reads.
FMTR_KERNEL(wait_for_too_few, Vectors) {
  float* shared = reinterpret_cast<float*>(shared_memory());
  const unsigned t = thread_index();
  copy_async16(shared + 4 * t, args.in + 4 * t);
  copy_async_commit();
  copy_async_wait<1>();
  args.out[t] = shared[4 * t];
}

FMTR_KERNEL(copy_unaligned, Vectors) { copy_async16(shared_memory() + 4, args.in); }

// ---- bounds
// ----------------------------------------------------------------------------------------------------------

FMTR_KERNEL(write_beyond_shared, Vectors) { reinterpret_cast<float*>(shared_memory())[thread_index() + 1] = 1; }
FMTR_KERNEL(write_before_shared, Vectors) {
  if (thread_index() == 0) reinterpret_cast<float*>(shared_memory())[-static_cast<int>(args.n)] = 1;
}
FMTR_KERNEL(write_beyond_memory, Vectors) { args.out[thread_index() + 1] = 1; }
FMTR_KERNEL(read_beyond_memory, Vectors) { args.out[thread_index()] = args.in[thread_index() + 1]; }

// ---- divergence
// ------------------------------------------------------------------------------------------------------

FMTR_KERNEL(barrier_of_some, Vectors) {
  if (thread_index() < args.n) block_barrier();
}
FMTR_KERNEL(two_barriers, Vectors) {
  if (thread_index() < args.n)
    block_barrier();
  else
    block_barrier();
}
FMTR_KERNEL(barrier_or_shuffle, Vectors) {
  if (thread_index() < kWarp)
    block_barrier();
  else
    args.out[0] = shuffle_xor(args.in[0], 1);
}
FMTR_KERNEL(shuffle_of_some, Vectors) {
  if (lane_index() < 16) args.out[lane_index()] = shuffle(args.in[lane_index()], 3);
}
FMTR_KERNEL(ballot_or_shuffle, Vectors) {
  if (lane_index() % 2 == 0)
    args.out[0] = static_cast<float>(ballot(true));
  else
    args.out[0] = shuffle(1.0f, 3);
}
FMTR_KERNEL(return_early, Vectors) {
  if (thread_index() >= args.n) return;
  args.out[thread_index()] = shuffle_down(args.in[thread_index()], 1);
}

// ---- fragments
// -------------------------------------------------------------------------------------------------------

struct Product {
  const half_t* a;
  const float* row_bias;
  float* out;
};

// Adds a bias to each row, by the layout that a lane's elements might have: `How` 0: 8 in a row one after another; 1:
// as the instruction mma.m16n8k16 documents it.
template <int How>
FMTR_KERNEL(bias_by_layout, Product) {
  MatrixA<half_t> a;
  MatrixB<half_t> b;
  Accumulator<half_t> sum;
  a.load(args.a, 16);
  b.load(args.a, 16);
  sum.fill(0);
  multiply_add(sum, a, b);
  for (unsigned i = 0; i < 8; ++i) {
    const unsigned lane = lane_index();
    sum[static_cast<int>(i)] += args.row_bias[How == 0 ? lane / 2 : lane / 4 + i / 2 % 2 * 8];
  }
  sum.store(args.out, 16);
}

FMTR_KERNEL(load_unaligned, Product) {
  MatrixA<half_t> a;
  a.load(args.a + 1, 16);
}
FMTR_KERNEL(load_with_odd_stride, Product) {
  MatrixA<half_t> a;
  a.load(args.a, 17);
}

}  // namespace fastmtr::device::faults

namespace {

using namespace fastmtr::device;
using namespace fastmtr::device::faults;
using host::Options;
using host::Order;

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kAddressSanitizer = true;
#else
constexpr bool kAddressSanitizer = false;
#endif

const Options kForward, kReverse = {Order::reverse, 1, 0xff}, kRandom = {Order::random, 1, 0xff},
                        kOtherRandom = {Order::random, 2, 0xff};

constexpr unsigned kThreads = 128;

// What the kernel writes, from in[i] = 1 / (i + 1).
std::vector<float> outcome(Kernel<Vectors> kernel, const Options& options, unsigned grid = 1,
                           unsigned threads = kThreads, unsigned n = kThreads) {
  host::set_options(options);
  constexpr size_t kOut = 2 * kThreads;
  Stream stream;
  std::vector<float> x(4 * kThreads), got(kOut);
  for (size_t i = 0; i < x.size(); ++i) x[i] = 1 / static_cast<float>(i + 1);
  Memory<float> in(x.size()), out(kOut);
  stream.copy_in(in.data(), x.data(), x.size() * sizeof(float));
  stream.set(out.data(), 0, kOut * sizeof(float));
  launch(stream, kernel, grid, threads, 4 * kThreads * sizeof(float), Vectors{in.data(), out.data(), n});
  stream.copy_out(got.data(), out.data(), kOut * sizeof(float));
  stream.wait();
  return got;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// How many of the other orders give other bits than forward does.
int differing(Kernel<Vectors> kernel, unsigned grid = 1, unsigned threads = kThreads) {
  const std::vector<float> forward = outcome(kernel, kForward, grid, threads);
  int result = 0;
  for (const Options& options : {kReverse, kRandom, kOtherRandom})
    result += !same_bits(forward, outcome(kernel, options, grid, threads));
  return result;
}

void test_order() {
  using namespace portable_tests;
  check(differing(FMTR_KERNEL_OF(sum_by_tree)) == 0, "a right kernel has the same bits in each order");
  check(differing(FMTR_KERNEL_OF(sum_by_shuffles)) == 0, "a right kernel of warps has the same bits in each order");
  check(differing(FMTR_KERNEL_OF(read_neighbour_at_once)) > 0, "no barrier between write and read");
  check(differing(FMTR_KERNEL_OF(sum_without_barrier)) > 0, "no barrier in a loop");
  check(differing(FMTR_KERNEL_OF(read_lane_at_once), 1, kWarp) > 0, "no barrier of a warp");
  check(differing(FMTR_KERNEL_OF(overwrite_early)) > 0, "no barrier before the next write");
  check(differing(FMTR_KERNEL_OF(sum_by_atomics)) > 0, "a sum in no fixed order");
  check(differing(FMTR_KERNEL_OF(read_block_before), 8) > 0, "a block that reads what another one writes");
}

void test_unwritten() {
  const auto all_nan = [](Kernel<Vectors> kernel) {
    const std::vector<float> got = outcome(kernel, kForward);
    for (unsigned i = 0; i < kThreads; ++i)
      if (!std::isnan(got[i])) return false;
    return true;
  };
  check(all_nan(FMTR_KERNEL_OF(read_unwritten_shared)), "shared memory that nobody wrote");
  check(all_nan(FMTR_KERNEL_OF(read_copy_at_once)), "a copy that is not waited for");
  check(all_nan(FMTR_KERNEL_OF(wait_for_too_few)), "a copy whose group is not waited for");

  Stream stream;
  Memory<float> memory(1);
  float got = 0;
  stream.copy_out(&got, memory.data(), sizeof got);
  check(got == 0, "a result is not there before it is waited for");
  stream.wait();
  check(std::isnan(got), "device memory that nobody wrote");
}

// ---- errors with the kernel's name
// -----------------------------------------------------------------------------------

void refused(const std::string& text, Kernel<Vectors> kernel, unsigned n = kThreads) {
  for (const Options& options : {kForward, kReverse, kRandom})
    refuses(FMTR_ERROR_BACKEND, text, [&] { outcome(kernel, options, 1, kThreads, n); });
  try {
    outcome(kernel, kForward, 1, kThreads, n);
  } catch (const fastmtr::Error& error) {
    check(std::string(error.what()).find(std::string("'") + kernel.name + "'") != std::string::npos,
          "the error names the kernel: " + std::string(error.what()));
  }
}

void test_divergence() {
  refused("divergent barrier: thread 0 waits at block_barrier (test_cuda_host.cpp:", FMTR_KERNEL_OF(barrier_of_some),
          40);
  refused("but thread 40 has ended", FMTR_KERNEL_OF(barrier_of_some), 40);
  refused("divergent barrier", FMTR_KERNEL_OF(two_barriers), 64);
  refused("comes to another", FMTR_KERNEL_OF(two_barriers), 64);
  refused("divergent barrier: thread 0 waits at block_barrier", FMTR_KERNEL_OF(barrier_or_shuffle));
  refused("lanes missing: thread 0 waits at shuffle (test_cuda_host.cpp:", FMTR_KERNEL_OF(shuffle_of_some));
  refused("but thread 16 has ended", FMTR_KERNEL_OF(shuffle_of_some));
  refused("lanes of a warp diverge", FMTR_KERNEL_OF(ballot_or_shuffle));
  refused("lanes missing", FMTR_KERNEL_OF(return_early), 100);
  refused("copy_async16 of memory that is not 16-byte aligned (test_cuda_host.cpp:", FMTR_KERNEL_OF(copy_unaligned));
  // The stacks that a failed launch leaves are used again.
  check(outcome(FMTR_KERNEL_OF(portable_tests::sum_by_tree), kForward)[0] > 5, "a launch after those that failed");
}

void test_launches() {
  using portable_tests::sum_by_tree;
  const auto refuse_launch = [](const std::string& text, unsigned grid, unsigned block, size_t shared) {
    refuses(FMTR_ERROR_BACKEND, text, [&] {
      Stream stream;
      launch(stream, FMTR_KERNEL_OF(sum_by_tree), grid, block, shared, Vectors{});
      stream.wait();
    });
  };
  refuse_launch("'sum_by_tree': a block of 33 threads, expected a multiple of 32 up to 1024", 1, 33, 0);
  refuse_launch("a block of 0 threads", 1, 0, 0);
  refuse_launch("a block of 2048 threads", 1, 2048, 0);
  refuse_launch("a grid of 0 blocks", 0, 32, 0);
  refuse_launch("1000000 bytes of shared memory, expected at most", 1, 32, 1000000);
  refuses(FMTR_ERROR_BACKEND, "device 0 alone, found 1", [] { use_device(1); });
  refuses(FMTR_ERROR_BACKEND, "event that was not waited for", [] {
    Stream stream;
    Event start, end;
    start.record(stream);
    end.record(stream);
    end.milliseconds_since(start);
  });
}

// What CUDA refuses while a graph is recorded.
void test_recording() {
  Stream stream;
  const auto refuse_recording = [&](const std::string& text, const std::function<void()>& body) {
    refuses(FMTR_ERROR_BACKEND, text, [&] { const Graph graph(stream, body); });
  };
  Memory<float> memory(4);
  Pinned<float> pinned(4);
  float pageable[4] = {};
  refuse_recording("a graph is recorded while a graph is recorded", [&] { const Graph inner(stream, [] {}); });
  refuse_recording("a stream is waited for while a graph is recorded", [&] { stream.wait(); });
  refuse_recording("memory is allocated while a graph is recorded", [] { const Memory<float> more(1); });
  refuse_recording("memory is released while a graph is recorded", [&] { memory = Memory<float>(); });
  memory = Memory<float>(4);
  const char* not_pinned = "a graph copies to or from memory that is not pinned";
  refuse_recording(not_pinned, [&] { stream.copy_in(memory.data(), pageable, sizeof pageable); });
  refuse_recording(not_pinned, [&] { stream.copy_out(pageable, memory.data(), sizeof pageable); });
  refuse_recording(not_pinned, [&] { stream.copy_in(memory.data(), pinned.data() + 1, sizeof pageable); });
  // The stream works on after each of them.
  pinned.data()[3] = 7;
  const Graph graph(stream, [&] { stream.copy_in(memory.data(), pinned.data(), sizeof pageable); });
  graph.launch(stream);
  stream.copy_out(pageable, memory.data(), sizeof pageable);
  stream.wait();
  check(pageable[3] == 7, "a graph after those that were refused");
}

void test_fragments() {
  host::set_options(kForward);
  Stream stream;
  std::vector<half_t> a(256, to_half(0));
  for (unsigned i = 0; i < 16; ++i) a[i * 17] = to_half(1);
  std::vector<float> bias(16), got(256);
  for (unsigned i = 0; i < 16; ++i) bias[i] = static_cast<float>(i);
  Memory<half_t> on_a(257);
  Memory<float> on_bias(16), out(256);
  stream.copy_in(on_a.data(), a.data(), a.size() * sizeof(half_t));
  stream.copy_in(on_bias.data(), bias.data(), bias.size() * sizeof(float));
  const Product args = {on_a.data(), on_bias.data(), out.data()};
  for (const auto kernel : {FMTR_KERNEL_OF(bias_by_layout<0>), FMTR_KERNEL_OF(bias_by_layout<1>)}) {
    launch(stream, kernel, 1, kWarp, 0, args);
    stream.copy_out(got.data(), out.data(), got.size() * sizeof(float));
    stream.wait();
    unsigned right = 0;
    for (unsigned i = 0; i < 256; ++i) right += got[i] == bias[i / 16] + (i / 16 == i % 16 ? 1.0f : 0.0f);
    check(right < 64, std::string(kernel.name) + ": an assumed layout is wrong for most elements");
  }
  const auto refuse_load = [&](const std::string& text, Kernel<Product> kernel) {
    refuses(FMTR_ERROR_BACKEND, text, [&] {
      launch(stream, kernel, 1, kWarp, 0, args);
      stream.wait();
    });
  };
  refuse_load("a fragment's memory is not 32-byte aligned", FMTR_KERNEL_OF(load_unaligned));
  refuse_load("a fragment's stride is not a multiple of 16 bytes", FMTR_KERNEL_OF(load_with_odd_stride));
}

// ---- what ends the process
// -------------------------------------------------------------------------------------------

// What a child process that runs the body says before it dies, or "" where it lives.
std::string last_words(const std::function<void()>& body) {
  int ends[2];
  if (pipe(ends) != 0) return "";
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    body();
    _exit(0);
  }
  close(ends[1]);
  std::string words;
  char part[4096];
  for (ssize_t n; (n = read(ends[0], part, sizeof part)) > 0;) words.append(part, static_cast<size_t>(n));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  return status == 0 ? "" : words.empty() ? "died" : words;
}

void dies(const std::string& what, const std::string& text, const std::function<void()>& body) {
  const std::string words = last_words(body);
  check(words.find(text) != std::string::npos, what + ": expected '" + text + "', got '" + words.substr(0, 300) + "'");
}

void test_bounds() {
  // All but the last float of shared memory are the threads' own.
  const auto run = [](Kernel<Vectors> kernel, unsigned n) {
    host::set_options(kForward);
    Stream stream;
    Memory<float> in(kThreads), out(kThreads);
    stream.set(in.data(), 0, kThreads * sizeof(float));
    launch(stream, kernel, 1, kThreads, kThreads * sizeof(float), Vectors{in.data(), out.data(), n});
    stream.wait();
  };
  check(last_words([] {}).empty(), "a child that does nothing lives");
  if (kAddressSanitizer) {
    dies("a write beyond shared memory", "use-after-poison", [&] { run(FMTR_KERNEL_OF(write_beyond_shared), 0); });
    dies("a write before shared memory", "use-after-poison", [&] { run(FMTR_KERNEL_OF(write_before_shared), 1); });
    dies("a write beyond device memory", "heap-buffer-overflow", [&] { run(FMTR_KERNEL_OF(write_beyond_memory), 0); });
    dies("a read beyond device memory", "heap-buffer-overflow", [&] { run(FMTR_KERNEL_OF(read_beyond_memory), 0); });
    dies("the host reads device memory", "use-after-poison", [] {
      const Memory<float> memory(1);
      std::printf("%g\n", static_cast<double>(memory.data()[0]));
    });
    dies("memory that went before the stream used it", "heap-use-after-free", [] {
      Stream stream;
      Memory<float> memory(1);
      stream.set(memory.data(), 0, sizeof(float));
      memory = Memory<float>();
      stream.wait();
    });
  } else {
    refuses(FMTR_ERROR_BACKEND, "'write_beyond_shared', block 0: wrote outside of its 512 bytes of shared memory",
            [&] { run(FMTR_KERNEL_OF(write_beyond_shared), 0); });
    refuses(FMTR_ERROR_BACKEND, "'write_before_shared', block 0: wrote outside of its 512 bytes of shared memory",
            [&] { run(FMTR_KERNEL_OF(write_before_shared), 5); });
  }
}

// ---- the environment, threads
// ----------------------------------------------------------------------------------------

// Before any set_options.
void test_environment() {
  const auto with = [](const char* text) {
    setenv("FASTMTR_CUDA_HOST_ORDER", text, 1);
    return host::options();
  };
  check(with("").order == Order::forward && with("forward").order == Order::forward, "order forward");
  check(with("reverse").order == Order::reverse, "order reverse");
  check(with("random:17").order == Order::random && with("random:17").seed == 17, "order random with a seed");
  for (const char* text : {"backward", "random", "random:", "random:1x", "random:99999999999999999999"})
    refuses(FMTR_ERROR_BACKEND, std::string("FASTMTR_CUDA_HOST_ORDER is '") + text + "', expected forward, reverse or",
            [&] { with(text); });
  unsetenv("FASTMTR_CUDA_HOST_ORDER");
}

void test_threads() {
  const auto kernel = FMTR_KERNEL_OF(portable_tests::sum_by_shuffles);
  const std::vector<float> want = outcome(kernel, kForward, 4);
  bool same[2] = {true, true};
  std::thread threads[2];
  for (int i = 0; i < 2; ++i)
    threads[i] = std::thread([&, i] {
      for (int round = 0; round < 5; ++round) same[i] = same[i] && same_bits(outcome(kernel, kForward, 4), want);
    });
  for (std::thread& thread : threads) thread.join();
  check(same[0] && same[1], "two threads run kernels at once");
}

}  // namespace

int main() {
  test_environment();
  test_order();
  test_unwritten();
  test_divergence();
  test_launches();
  test_recording();
  test_fragments();
  test_bounds();
  test_threads();
  return finish();
}
