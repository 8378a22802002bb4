// Four plain lanes: SSE2 on x86-64.
#define FASTMTR_PLAIN_LANES 4
#define FASTMTR_PLAIN_ROWS 4
#define FASTMTR_VEC "vec_plain.h"
#include "table.h"
#include "tables.h"

const fastmtr::Kernels fastmtr::kBaselineTable = fastmtr::kernels_for("baseline");
