// The shapes of AVX-512 in plain code, so that they can be tested on every processor. Compiled with -Os -Wno-psabi: no
// function outside this file takes or gives such a vector.
#define FASTMTR_PLAIN_LANES 16
#define FASTMTR_PLAIN_ROWS 14
#define FASTMTR_UNROLL 1  // small and quick to compile, not fast
#define FASTMTR_VEC "vec_plain.h"
#include "table.h"
#include "tables.h"

const fastmtr::Kernels fastmtr::kEmulated16Table = fastmtr::kernels_for("emulated16");
