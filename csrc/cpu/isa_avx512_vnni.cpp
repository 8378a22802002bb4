// The products in 8 bits alone; all else is the table of isa_avx512.cpp. Compiled with its flags and -mavx512vnni.
#if defined(__x86_64__)
#define FASTMTR_VEC "vec_avx512.h"
#include "affine_int8.h"
#include "tables.h"

const fastmtr::Int8Kernels fastmtr::kAvx512VnniInt8Table = fastmtr::int8_kernels();
#endif
