// What the files compiled for an instruction set give to the rest: a constant, no code that could run on the wrong
// processor.
#ifndef FASTMTR_CPU_TABLES_H
#define FASTMTR_CPU_TABLES_H

#include "../backend.h"

namespace fastmtr {
extern const Kernels kBaselineTable;
extern const Kernels kEmulated16Table;
extern const Kernels kAvx2Table;                // x86-64 only
extern const Kernels kAvx512Table;              // x86-64 only
extern const Kernels kNeonTable;                // AArch64 only
extern const Int8Kernels kAvx512VnniInt8Table;  // x86-64 only
}  // namespace fastmtr
#endif
