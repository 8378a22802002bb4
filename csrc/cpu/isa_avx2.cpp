// Compiled with -mavx2 -mfma -mf16c.
#if defined(__x86_64__)
#include "table.h"
#include "tables.h"
#include "vec_avx2.h"

const fastmtr::Kernels fastmtr::kAvx2Table = fastmtr::kernels_for("avx2");
#endif
