#include "cuda/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

// Saves the registers that a function must keep and the stack pointer to *save, and goes on where `to` was saved.
// (swapcontext asks the kernel for the signal mask at each switch, which takes ten times as long as all the rest.)
extern "C" void fastmtr_switch_stack(void** save, void* to);
#if defined(__x86_64__)
asm(R"(
  .text
  .type fastmtr_switch_stack, @function
  .hidden fastmtr_switch_stack
  .globl fastmtr_switch_stack
fastmtr_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size fastmtr_switch_stack, .-fastmtr_switch_stack
)");
#elif defined(__aarch64__)
asm(R"(
  .text
  .type fastmtr_switch_stack, %function
  .hidden fastmtr_switch_stack
  .globl fastmtr_switch_stack
fastmtr_switch_stack:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
  .size fastmtr_switch_stack, .-fastmtr_switch_stack
)");
#else
#error "The CUDA emulation needs a stack switch for this processor (x86-64 and aarch64 have one)."
#endif

namespace fastmtr::device::host {
namespace {

constexpr size_t kStack = 256 * 1024;  // address space: what is not touched takes no memory

size_t page_size() {
  static const size_t size = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return size;
}

// Of the stack that resumes fibers.
struct Resumer {
  Fiber* fiber = nullptr;  // the one that runs
  void* stack_pointer = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  const void* bottom = nullptr;
  size_t size = 0;
#endif
  void* tsan = nullptr;
};
thread_local Resumer resumer;

// Compiled apart from the sanitizer: its frame is never left, so what it poisoned would stay poisoned.
#if defined(__SANITIZE_ADDRESS__)
__attribute__((no_sanitize("address")))
#endif
__attribute__((noinline, noreturn)) void begin() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &resumer.bottom, &resumer.size);
#endif
  Fiber::run_body();
  void* unused;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(nullptr, resumer.bottom, resumer.size);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(resumer.tsan, 0);
#endif
  fastmtr_switch_stack(&unused, resumer.stack_pointer);
  __builtin_unreachable();
}

}  // namespace

Fiber::Fiber() {
  void* memory = mmap(nullptr, kStack + page_size(), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, page_size(), PROT_NONE);  // the guard
  stack_ = static_cast<unsigned char*>(memory) + page_size();
#if defined(__SANITIZE_THREAD__)
  tsan_ = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
  abandon();
#if defined(__SANITIZE_THREAD__)
  __tsan_destroy_fiber(tsan_);
#endif
  munmap(stack_ - page_size(), kStack + page_size());
}

void Fiber::abandon() {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack_, kStack);
#endif
}

void Fiber::run_body() {
  const Fiber* fiber = resumer.fiber;
  fiber->body_(fiber->argument_);
}

void Fiber::start(void (*body)(void*), void* argument) {
  body_ = body;
  argument_ = argument;
  void** top = reinterpret_cast<void**>(stack_ + kStack);
#if defined(__x86_64__)
  // [six registers][begin][0: its return address], so aligned that the stack is as after a call.
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&begin);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
#else
  for (int i = 0; i < 20; ++i) *--top = nullptr;
  top[11] = reinterpret_cast<void*>(&begin);  // x30
#endif
  stack_pointer_ = top;
  fake_stack_ = nullptr;
}

void Fiber::resume() {
  resumer.fiber = this;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&resumer.fake_stack, stack_, kStack);
#endif
#if defined(__SANITIZE_THREAD__)
  resumer.tsan = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(tsan_, 0);
#endif
  fastmtr_switch_stack(&resumer.stack_pointer, stack_pointer_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(resumer.fake_stack, nullptr, nullptr);
#endif
}

void Fiber::suspend() {
  Fiber* fiber = resumer.fiber;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fiber->fake_stack_, resumer.bottom, resumer.size);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(resumer.tsan, 0);
#endif
  fastmtr_switch_stack(&fiber->stack_pointer_, resumer.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber->fake_stack_, nullptr, nullptr);
#endif
}

}  // namespace fastmtr::device::host
