#if defined(__aarch64__)
#include "vec_neon.h"

#include "table.h"
#include "tables.h"

const fastmtr::Kernels fastmtr::kNeonTable = fastmtr::kernels_for("neon");
#endif
