// A few helper threads that wait for one piece of work at a time. Made only where more than one thread was asked for.
#ifndef FASTMTR_CORE_THREAD_POOL_H
#define FASTMTR_CORE_THREAD_POOL_H

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace fastmtr {

class ThreadPool {
 public:
  explicit ThreadPool(size_t helpers);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // Calls work(part, worker) for each part 0 .. parts, in any order, on this thread (worker 0) and the helpers; returns
  // when all are done. The work must not throw. Allocates nothing.
  template <class Work>
  void run(size_t parts, const Work& work) {
    run(
        parts, [](const void* self, size_t part, size_t worker) { (*static_cast<const Work*>(self))(part, worker); },
        &work);
  }

 private:
  using Call = void (*)(const void* self, size_t part, size_t worker);
  void run(size_t parts, Call call, const void* self);
  void help(size_t worker);
  void take_parts(size_t worker);

  std::mutex mutex_;
  std::condition_variable begin_, end_;
  uint64_t round_ = 0;  // how often run() was called
  size_t busy_ = 0;     // helpers still in this round
  bool stop_ = false;
  Call call_ = nullptr;
  const void* self_ = nullptr;
  size_t parts_ = 0;
  std::atomic<size_t> next_{0};
  std::vector<std::thread> helpers_;
};

}  // namespace fastmtr
#endif
