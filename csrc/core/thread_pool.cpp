#include "core/thread_pool.h"

namespace fastmtr {

ThreadPool::ThreadPool(size_t helpers) {
  helpers_.reserve(helpers);
  try {
    for (size_t i = 0; i < helpers; ++i) helpers_.emplace_back([this, i] { help(i + 1); });
  } catch (...) {  // the system gives no more threads: end those it gave, or their destructors end the process
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    begin_.notify_all();
    for (std::thread& helper : helpers_) helper.join();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  begin_.notify_all();
  for (std::thread& helper : helpers_) helper.join();
}

void ThreadPool::take_parts(size_t worker) {
  for (size_t part = next_.fetch_add(1, std::memory_order_relaxed); part < parts_;
       part = next_.fetch_add(1, std::memory_order_relaxed))
    call_(self_, part, worker);
}

void ThreadPool::run(size_t parts, Call call, const void* self) {
  {
    const std::lock_guard lock(mutex_);
    call_ = call;
    self_ = self;
    parts_ = parts;
    next_.store(0, std::memory_order_relaxed);
    busy_ = helpers_.size();
    ++round_;
  }
  begin_.notify_all();
  take_parts(0);
  std::unique_lock lock(mutex_);
  end_.wait(lock, [this] { return busy_ == 0; });
}

void ThreadPool::help(size_t worker) {
  uint64_t seen = 0;
  std::unique_lock lock(mutex_);
  while (true) {
    begin_.wait(lock, [&] { return stop_ || round_ != seen; });
    if (stop_) return;
    seen = round_;
    lock.unlock();
    take_parts(worker);
    lock.lock();
    if (--busy_ == 0) end_.notify_one();
  }
}

}  // namespace fastmtr
