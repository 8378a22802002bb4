// The emulated device: its memory is the process's, work is kept in a queue until it is waited for.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <new>
#include <vector>

#include "core/status.h"
#include "cuda/runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(memory, size) ((void)(memory), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(memory, size) ((void)(memory), (void)(size))
#endif

namespace fastmtr::device {
namespace {

constexpr size_t kAlignment = 256;
constexpr size_t kSharedBytes = 227 * 1024;
constexpr unsigned kMultiprocessors = 4;  // few, so that a block which goes from tile to tile does

// Device memory is open to the process only while a stream does its work.
class Allocations {
 public:
  void add(void* memory, size_t bytes, Place place) {
    const std::lock_guard lock(mutex_);
    all_[static_cast<unsigned char*>(memory)] = {bytes, place};
    if (users_ == 0) close({bytes, place}, memory);
  }
  void remove(void* memory) {
    const std::lock_guard lock(mutex_);
    const auto found = all_.find(static_cast<unsigned char*>(memory));
    ASAN_UNPOISON_MEMORY_REGION(memory, found->second.bytes);
    all_.erase(found);
  }
  bool is_pinned(const void* memory, size_t bytes) {
    const std::lock_guard lock(mutex_);
    const auto* at = static_cast<const unsigned char*>(memory);
    auto found = all_.upper_bound(const_cast<unsigned char*>(at));
    if (found == all_.begin()) return false;
    --found;
    return found->second.place == Place::pinned && at + bytes <= found->first + found->second.bytes;
  }
  void open() {
    const std::lock_guard lock(mutex_);
    if (users_++ == 0)
      for (const auto& [memory, allocation] : all_) ASAN_UNPOISON_MEMORY_REGION(memory, allocation.bytes);
  }
  void close() {
    const std::lock_guard lock(mutex_);
    if (--users_ == 0)
      for (const auto& [memory, allocation] : all_) close(allocation, memory);
  }

 private:
  struct Allocation {
    size_t bytes;
    Place place;
  };
  static void close(const Allocation& allocation, void* memory) {
    if (allocation.place == Place::device) ASAN_POISON_MEMORY_REGION(memory, allocation.bytes);
  }

  std::mutex mutex_;
  std::map<unsigned char*, Allocation> all_;
  unsigned users_ = 0;
};

Allocations& allocations() {
  static Allocations all;
  return all;
}

// What CUDA refuses while a stream of this thread records a graph. What cannot throw is told at the end of it.
thread_local bool recording = false;
thread_local const char* broken = nullptr;

void refuse_if_recording(const char* what) {
  if (recording) fail(FMTR_ERROR_BACKEND, what, " while a graph is recorded");
}

struct Opened {
  Opened() { allocations().open(); }
  ~Opened() { allocations().close(); }
};

using Work = std::function<void()>;

}  // namespace

int device_count(std::string&) { return 1; }

Properties properties(int device) {
  if (device != 0) fail(FMTR_ERROR_BACKEND, "the emulation has device 0 alone, found ", device);
  return {"host emulation", 0, 0, kMultiprocessors, kSharedBytes, kSharedBytes + 1024, size_t{1} << 34,
          size_t{1} << 25};
}

void use_device(int device) { properties(device); }

void* allocate(size_t bytes, Place place) {
  if (bytes == 0) return nullptr;
  refuse_if_recording("memory is allocated");
  void* memory = ::operator new(bytes, std::align_val_t{kAlignment});
  std::memset(memory, 0xff, bytes);
  allocations().add(memory, bytes, place);
  return memory;
}

void release(void* memory, Place) noexcept {
  if (!memory) return;
  if (recording) broken = "memory is released";
  allocations().remove(memory);
  ::operator delete(memory, std::align_val_t{kAlignment});
}

// ---- streams -------------------------------------------------------------------------------------------------------

struct Stream::State {
  std::deque<Work> queue;
  std::vector<Work>* record = nullptr;

  void add(Work work) {
    if (record)
      record->push_back(std::move(work));
    else
      queue.push_back(std::move(work));
  }
  void run() {
    refuse_if_recording("a stream is waited for");
    const Opened opened;
    while (!queue.empty()) {
      const Work work = std::move(queue.front());
      queue.pop_front();
      try {
        work();
      } catch (...) {
        queue.clear();
        throw;
      }
    }
  }
};

struct Event::State {
  Stream::State* stream = nullptr;
  uint64_t recorded = 0;
  std::shared_ptr<uint64_t> reached = std::make_shared<uint64_t>(0);
  std::shared_ptr<std::chrono::steady_clock::time_point> time =
      std::make_shared<std::chrono::steady_clock::time_point>();
};

Stream::Stream() : state_(std::make_unique<State>()) {}
Stream::~Stream() = default;
Stream::Stream(Stream&&) noexcept = default;
Stream& Stream::operator=(Stream&&) noexcept = default;

namespace {
void check_pinned(const void* host, size_t bytes) {
  if (recording && bytes > 0 && !allocations().is_pinned(host, bytes))
    fail(FMTR_ERROR_BACKEND, "a graph copies to or from memory that is not pinned");
}
}  // namespace

void Stream::copy_in(void* device, const void* host, size_t bytes) {
  check_pinned(host, bytes);
  copy(device, host, bytes);
}
void Stream::copy_out(void* host, const void* device, size_t bytes) {
  check_pinned(host, bytes);
  copy(host, device, bytes);
}
void Stream::copy(void* to, const void* from, size_t bytes) {
  if (bytes > 0) state_->add([=] { std::memcpy(to, from, bytes); });
}
void Stream::set(void* device, unsigned char value, size_t bytes) {
  if (bytes > 0) state_->add([=] { std::memset(device, value, bytes); });
}
void Stream::wait_for_foreign(void*) {}
void Stream::wait_for(const Event& event) {
  // What the other stream has to do before the event is done when this one comes here.
  Event::State* of = &event.state();
  if (of->stream && of->stream != state_.get()) state_->add([of] { of->stream->run(); });
}
void Stream::wait() { state_->run(); }

namespace detail {

void launch(Stream& stream, const char* name, const void* kernel, void (*call)(const void*, const void*),
            const void* args, size_t args_bytes, unsigned grid, unsigned block, size_t shared_bytes) {
  if (shared_bytes > kSharedBytes)
    fail(FMTR_ERROR_BACKEND, "kernel '", name, "': ", shared_bytes, " bytes of shared memory, expected at most ",
         kSharedBytes);
  // As aligned as the arguments may be.
  const size_t words = (args_bytes + sizeof(std::max_align_t) - 1) / sizeof(std::max_align_t);
  const auto copy = std::make_shared<std::vector<std::max_align_t>>(words);
  std::memcpy(copy->data(), args, args_bytes);
  stream.state().add([=] { host::run(name, call, kernel, copy->data(), grid, block, shared_bytes); });
}

unsigned blocks_per_multiprocessor(const char*, const void*, unsigned block, size_t shared_bytes) {
  constexpr unsigned kThreads = 2048;
  const size_t with_shared = (kSharedBytes + 1024) / (shared_bytes + 1024);  // 1 KiB of each block is the system's
  return block == 0 ? 0 : static_cast<unsigned>(std::min<size_t>(kThreads / block, with_shared));
}

}  // namespace detail

Event::Event() : state_(std::make_unique<State>()) {}
Event::~Event() = default;
Event::Event(Event&&) noexcept = default;
Event& Event::operator=(Event&&) noexcept = default;

void Event::record(Stream& stream) {
  state_->stream = &stream.state();
  const uint64_t number = ++state_->recorded;
  stream.state().add([number, reached = state_->reached, time = state_->time] {
    *reached = number;
    *time = std::chrono::steady_clock::now();
  });
}
void Event::wait() {
  if (*state_->reached < state_->recorded) state_->stream->run();
}
double Event::milliseconds_since(const Event& start) const {
  for (const State* state : {&start.state(), state_.get()})
    if (state->recorded == 0 || *state->reached < state->recorded)
      fail(FMTR_ERROR_BACKEND, "the time of an event that was not waited for");
  return std::chrono::duration<double, std::milli>(*state_->time - *start.state_->time).count();
}

struct Graph::State {
  std::shared_ptr<std::vector<Work>> works = std::make_shared<std::vector<Work>>();
};

Graph::Graph(Stream& stream, const std::function<void()>& body) : state_(std::make_unique<State>()) {
  refuse_if_recording("a graph is recorded");
  stream.state().record = state_->works.get();
  recording = true;
  broken = nullptr;
  const auto end = [&] {
    stream.state().record = nullptr;
    recording = false;
  };
  try {
    body();
  } catch (...) {
    end();
    throw;
  }
  end();
  if (broken) fail(FMTR_ERROR_BACKEND, broken, " while a graph is recorded");
}
Graph::~Graph() = default;
Graph::Graph(Graph&&) noexcept = default;
Graph& Graph::operator=(Graph&&) noexcept = default;

void Graph::launch(Stream& stream) const {
  stream.state().add([works = state_->works] {
    for (const Work& work : *works) work();
  });
}

}  // namespace fastmtr::device
