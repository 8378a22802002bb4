// Compiled with -mavx512f -mavx512bw -mavx512dq -mavx512vl and the AVX2 flags.
#if defined(__x86_64__)
#define FASTMTR_NO_HALF  // those of AVX2: see available.cpp
#define FASTMTR_VEC "vec_avx512.h"
#include "table.h"
#include "tables.h"

const fastmtr::Kernels fastmtr::kAvx512Table = fastmtr::kernels_for("avx512");
#endif
