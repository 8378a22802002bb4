// Compiled with -mavx512f -mavx512bw -mavx512dq -mavx512vl and the AVX2 flags.
#if defined(__x86_64__)
#include "table.h"
#include "tables.h"
#include "vec_avx512.h"

const fastmtr::Kernels fastmtr::kAvx512Table = fastmtr::kernels_for("avx512");
#endif
