#if defined(__aarch64__)
#define FASTMTR_VEC "vec_neon.h"
#include "table.h"
#include "tables.h"

const fastmtr::Kernels fastmtr::kNeonTable = fastmtr::kernels_for("neon");
#endif
