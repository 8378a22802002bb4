// Compiled with -mavx2 -mfma -mf16c.
#if defined(__x86_64__)
#define FASTMTR_VEC "vec_avx2.h"
#include "table.h"
#include "tables.h"

const fastmtr::Kernels fastmtr::kAvx2Table = fastmtr::kernels_for("avx2");
#endif
