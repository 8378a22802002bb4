#include <algorithm>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "core/status.h"
#include "cuda/fiber.h"
#include "cuda/portable.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(memory, size) ((void)(memory), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(memory, size) ((void)(memory), (void)(size))
#endif

namespace fastmtr::device::host {
namespace {

constexpr unsigned kMostThreads = 1024;

// ---- options -------------------------------------------------------------------------------------------------------

std::mutex options_mutex;
std::optional<Options> chosen;

Options options_of_environment() {
  Options result;
  const char* text = std::getenv("FASTMTR_CUDA_HOST_ORDER");
  if (!text || !*text) return result;
  const std::string order = text;
  if (order == "forward") return result;
  if (order == "reverse") {
    result.order = Order::reverse;
  } else if (order.rfind("random:", 0) == 0 && order.size() > 7 &&
             order.find_first_not_of("0123456789", 7) == std::string::npos && order.size() < 26) {
    result.order = Order::random;
    result.seed = std::stoull(order.substr(7));
  } else {
    fail(FMTR_ERROR_BACKEND, "FASTMTR_CUDA_HOST_ORDER is '", order, "', expected forward, reverse or random:SEED");
  }
  return result;
}

class Random {  // splitmix64
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  size_t below(size_t n) {
    uint64_t x = state_ += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return static_cast<size_t>((x ^ x >> 31) % n);
  }

 private:
  uint64_t state_;
};

class Sequence {  // the order in which threads, or blocks, have their turn
 public:
  Sequence(unsigned n, const Options& options, uint64_t salt)
      : order_(options.order), random_(options.seed * 0x9e3779b97f4a7c15u + salt), turns_(n) {
    std::iota(turns_.begin(), turns_.end(), 0u);
    if (order_ == Order::reverse) std::reverse(turns_.begin(), turns_.end());
  }
  const std::vector<unsigned>& next() {
    if (order_ == Order::random)
      for (size_t i = turns_.size(); i > 1; --i) std::swap(turns_[i - 1], turns_[random_.below(i)]);
    return turns_;
  }

 private:
  Order order_;
  Random random_;
  std::vector<unsigned> turns_;
};

// ---- shared memory -------------------------------------------------------------------------------------------------

class SharedMemory {
 public:
  SharedMemory(size_t size, unsigned char poison)
      : size_(size),
        poison_(poison),
        memory_(static_cast<unsigned char*>(::operator new(size + 2 * kGuard, std::align_val_t{128}))) {
    std::memset(memory_, kGuardByte, kGuard);
    std::memset(memory_ + kGuard + size, kGuardByte, kGuard);
    ASAN_POISON_MEMORY_REGION(memory_, kGuard);
    ASAN_POISON_MEMORY_REGION(memory_ + kGuard + size, kGuard);
  }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  ~SharedMemory() {
    ASAN_UNPOISON_MEMORY_REGION(memory_, size_ + 2 * kGuard);
    ::operator delete(memory_, std::align_val_t{128});
  }
  unsigned char* begin() {  // of a block
    std::memset(memory_ + kGuard, poison_, size_);
    return memory_ + kGuard;
  }
  bool guards_hold() const {
#if defined(__SANITIZE_ADDRESS__)
    return true;  // who touches them ends the process
#else
    const auto holds = [](const unsigned char* guard) {
      return std::all_of(guard, guard + kGuard, [](unsigned char byte) { return byte == kGuardByte; });
    };
    return holds(memory_) && holds(memory_ + kGuard + size_);
#endif
  }

 private:
  static constexpr size_t kGuard = 128;
  static constexpr unsigned char kGuardByte = 0xab;
  size_t size_;
  unsigned char poison_;
  unsigned char* memory_;
};

// ---- a block -------------------------------------------------------------------------------------------------------

enum class State { ready, at_block_barrier, at_warp_operation, ended };

struct Copy {
  void* to;
  const void* from;
  unsigned group;
};

struct Thread {
  State state;
  const char* operation;
  Site site;
  unsigned step;   // operations of its warp that it came to
  unsigned group;  // of copies, the one that the next commit ends
  std::vector<Copy> copies;
};

struct Warp {
  unsigned arrived, first;  // at the operation that it comes to, and the thread that was there first
  Exchange exchange[2];
};

struct Launch {
  const char* name;
  void (*call)(const void*, const void*);
  const void *kernel, *args;
  unsigned block_size;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  unsigned arrived, first;  // at the block's barrier, likewise
  unsigned ended;
  std::string error;  // of the running block: ends it
};

thread_local Launch* launch = nullptr;

// Stacks are kept for the thread's next launches.
Fiber& fiber(unsigned i) {
  thread_local std::vector<std::unique_ptr<Fiber>> fibers;
  while (fibers.size() <= i) fibers.push_back(std::make_unique<Fiber>());
  return *fibers[i];
}

std::string at(Site site) {
  const char* name = std::strrchr(site.file, '/');
  return say(" (", name ? name + 1 : site.file, ":", site.line, ")");
}

std::string doing(unsigned i) {
  const Thread& thread = launch->threads[i];
  const std::string who = say("thread ", i);
  if (thread.state == State::ended) return who + " has ended";
  if (thread.state == State::ready) return who + " runs";
  return say(who, " waits at ", thread.operation, at(thread.site));
}

// The running thread has set the launch's error. It is never resumed, so it may own nothing here.
[[noreturn]] void stop() {
  Fiber::suspend();
  std::abort();
}

unsigned first_in(State state) {
  const auto& threads = launch->threads;
  const auto found = std::find_if(threads.begin(), threads.end(), [&](const Thread& t) { return t.state == state; });
  return static_cast<unsigned>(found - threads.begin());
}

// Why no thread can go on.
std::string stuck() {
  const auto has = [](State state) { return first_in(state) < launch->block_size; };
  const State other = has(State::ended) ? State::ended : State::at_block_barrier;
  if (!has(State::at_warp_operation))
    return say("divergent barrier: ", doing(first_in(State::at_block_barrier)), ", but ", doing(first_in(other)));
  const unsigned waits = first_in(State::at_warp_operation), first = waits / kWarp * kWarp;
  for (unsigned i = first; i < first + kWarp; ++i)
    if (launch->threads[i].state != State::at_warp_operation)
      return say("lanes missing: ", doing(waits), " for all lanes of its warp, but ", doing(i));
  return "no thread can go on";
}

bool same(Site a, Site b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }

Exchange* exchange_of(unsigned i) { return &launch->warps[i / kWarp].exchange[launch->threads[i].step % 2]; }

void run_thread(void*) {
  launch->call(launch->kernel, launch->args);
  launch->threads[here.thread].state = State::ended;
  ++launch->ended;
}

void run_block(Sequence& sequence) {
  launch->arrived = launch->ended = 0;
  launch->error.clear();
  for (Warp& warp : launch->warps) {
    warp.arrived = 0;
    std::memset(warp.exchange, 0xff, sizeof warp.exchange);
  }
  for (unsigned i = 0; i < launch->block_size; ++i) {
    launch->threads[i] = {State::ready, "", {"", 0}, 0, 0, {}};
    fiber(i).start(run_thread, nullptr);
  }
  while (launch->ended < launch->block_size) {
    bool went_on = false;
    for (const unsigned i : sequence.next()) {
      if (launch->threads[i].state != State::ready) continue;
      went_on = true;
      here.thread = i;
      here.exchange = exchange_of(i);
      fiber(i).resume();
      if (!launch->error.empty()) return;
    }
    if (!went_on) {
      launch->error = stuck();
      return;
    }
  }
}

}  // namespace

Options options() {
  const std::lock_guard lock(options_mutex);
  return chosen ? *chosen : options_of_environment();
}

void set_options(const Options& options) {
  const std::lock_guard lock(options_mutex);
  chosen = options;
}

void run(const char* name, void (*call)(const void*, const void*), const void* kernel, const void* args, unsigned grid,
         unsigned block, size_t shared_bytes) {
  if (launch) fail(FMTR_ERROR_BACKEND, "kernel '", name, "': launched by a kernel");
  if (block == 0 || block > kMostThreads || block % kWarp != 0)
    fail(FMTR_ERROR_BACKEND, "kernel '", name, "': a block of ", block, " threads, expected a multiple of ", kWarp,
         " up to ", kMostThreads);
  if (grid == 0) fail(FMTR_ERROR_BACKEND, "kernel '", name, "': a grid of 0 blocks, expected at least one");

  const Options how = options();
  Launch state = {name, call, kernel, args, block, std::vector<Thread>(block), std::vector<Warp>(block / kWarp),
                  0,    0,    0,      ""};
  SharedMemory shared(shared_bytes, how.poison);
  Sequence blocks(grid, how, 1), threads(block, how, 2);
  const Here before = here;
  launch = &state;
  for (const unsigned b : blocks.next()) {
    here = {0, b, block, grid, shared.begin(), nullptr};
    run_block(threads);
    if (state.error.empty() && !shared.guards_hold())
      state.error = say("wrote outside of its ", shared_bytes, " bytes of shared memory");
    if (!state.error.empty()) break;
  }
  const unsigned failed = here.block;
  launch = nullptr;
  here = before;
  if (!state.error.empty()) {
    for (unsigned i = 0; i < block; ++i) fiber(i).abandon();
    fail(FMTR_ERROR_BACKEND, "kernel '", name, "', block ", failed, ": ", state.error);
  }
}

void refuse(const char* what, Site site) {
  launch->error = say("thread ", here.thread, ": ", what, at(site));
  stop();
}

void wait_for_block(Site site) {
  Thread& me = launch->threads[here.thread];
  if (launch->arrived == 0) {
    launch->first = here.thread;
  } else if (!same(launch->threads[launch->first].site, site)) {
    launch->error =
        say("divergent barrier: ", doing(launch->first), ", but thread ", here.thread, " comes to another", at(site));
    stop();
  }
  me.state = State::at_block_barrier;
  me.operation = "block_barrier";
  me.site = site;
  if (++launch->arrived == launch->block_size) {
    launch->arrived = 0;
    for (Thread& thread : launch->threads) thread.state = State::ready;
  }
  Fiber::suspend();
}

void wait_for_warp(const char* operation, Site site, void (*complete)(Exchange&)) {
  Thread& me = launch->threads[here.thread];
  Warp& warp = launch->warps[here.thread / kWarp];
  if (warp.arrived == 0) {
    warp.first = here.thread;
  } else if (const Thread& first = launch->threads[warp.first];
             std::strcmp(first.operation, operation) != 0 || !same(first.site, site)) {
    launch->error = say("lanes of a warp diverge: ", doing(warp.first), ", but thread ", here.thread, " comes to ",
                        operation, at(site));
    stop();
  }
  me.state = State::at_warp_operation;
  me.operation = operation;
  me.site = site;
  if (++warp.arrived == kWarp) {
    warp.arrived = 0;
    if (complete) complete(warp.exchange[me.step % 2]);
    Thread* lanes = &launch->threads[here.thread / kWarp * kWarp];
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      lanes[lane].state = State::ready;
      ++lanes[lane].step;
    }
  }
  Fiber::suspend();
}

void start_copy(void* shared, const void* global, Site site) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 || reinterpret_cast<uintptr_t>(global) % 16 != 0)
    refuse("copy_async16 of memory that is not 16-byte aligned", site);
  Thread& me = launch->threads[here.thread];
  me.copies.push_back({shared, global, me.group});
}

void commit_copies() { ++launch->threads[here.thread].group; }

void wait_for_copies(unsigned newest) {
  Thread& me = launch->threads[here.thread];
  size_t done = 0;
  for (; done < me.copies.size() && me.copies[done].group + newest < me.group; ++done)
    std::memcpy(me.copies[done].to, me.copies[done].from, 16);
  me.copies.erase(me.copies.begin(), me.copies.begin() + static_cast<std::ptrdiff_t>(done));
}

}  // namespace fastmtr::device::host
