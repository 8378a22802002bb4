// Which tables this processor can run. Compiled without instruction-set flags.
#include "tables.h"

namespace fastmtr {
namespace {

const Kernels* available(const Kernels& table, const char** why) {
  if (why) *why = nullptr;
  return &table;
}

[[maybe_unused]] const Kernels* unavailable(const char* reason, const char** why) {
  if (why) *why = reason;
  return nullptr;
}

}  // namespace

const Kernels* baseline_kernels(const char** why) { return available(kBaselineTable, why); }
const Kernels* emulated16_kernels(const char** why) { return available(kEmulated16Table, why); }

#if defined(__x86_64__)
// The compiler's checks ask the operating system too, whether it saves the wide registers.
const Kernels* avx2_kernels(const char** why) {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c"))
    return unavailable("this processor (or operating system) does not have AVX2, FMA and F16C", why);
  return available(kAvx2Table, why);
}

const Kernels* avx512_kernels(const char** why) {
  __builtin_cpu_init();
  if (!avx2_kernels(why)) return nullptr;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
    return unavailable("this processor (or operating system) does not have AVX-512 F, BW, DQ and VL", why);
  // Weights in half precision are for few rows, where reading them is all there is to do; and what converts 16 of them
  // at once takes more than twice the time of 8 (on Zen 4; measured with bench_kernels).
  static const Kernels table = [] {
    Kernels made = kAvx512Table;
    made.fp16 = kAvx2Table.fp16;
    // Sums of gathered rows, too, are quicker with 8 lanes: with 16, fewer of the rows are under way (bench_kernels).
    made.add = kAvx2Table.add;
    return made;
  }();
  return available(table, why);
}

const Kernels* avx512_vnni_kernels(const char** why) {
  if (!avx512_kernels(why)) return nullptr;
  if (!__builtin_cpu_supports("avx512vnni"))
    return unavailable("this processor has AVX-512, but not its VNNI instructions", why);
  static const Kernels table = [] {
    Kernels made = *avx512_kernels(nullptr);
    made.isa = "avx512_vnni";
    made.int8 = kAvx512VnniInt8Table;
    return made;
  }();
  return available(table, why);
}
#else
const Kernels* avx2_kernels(const char** why) {
  return unavailable("AVX2 is of x86-64; this is another processor", why);
}
const Kernels* avx512_kernels(const char** why) {
  return unavailable("AVX-512 is of x86-64; this is another processor", why);
}
const Kernels* avx512_vnni_kernels(const char** why) { return avx512_kernels(why); }
#endif

#if defined(__aarch64__)
const Kernels* neon_kernels(const char** why) { return available(kNeonTable, why); }
#else
const Kernels* neon_kernels(const char** why) {
  return unavailable("NEON is of AArch64; this is another processor", why);
}
#endif

}  // namespace fastmtr
