// Stacks that a thread can switch between, with AddressSanitizer and ThreadSanitizer told of each switch.
#ifndef FASTMTR_CUDA_FIBER_H
#define FASTMTR_CUDA_FIBER_H

namespace fastmtr::device::host {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // At the next resume(), `body` begins on this stack. What was suspended on it is forgotten, not unwound; `body`
  // throws nothing.
  void start(void (*body)(void*), void* argument);
  // Runs it until it suspends or ends. From a stack that is no fiber's.
  void resume();
  // From the fiber that runs: back to where it was resumed.
  static void suspend();
  // No fiber's body is suspended any more on this stack, which may be used again.
  void abandon();

  static void run_body();

 private:
  unsigned char* stack_;
  void* stack_pointer_ = nullptr;
  void (*body_)(void*) = nullptr;
  void* argument_ = nullptr;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
  void* tsan_ = nullptr;
};

}  // namespace fastmtr::device::host
#endif
