#if defined(__aarch64__)
#include "table.h"
#include "tables.h"
#include "vec_neon.h"

const fastmtr::Kernels fastmtr::kNeonTable = fastmtr::kernels_for("neon");
#endif
