// Which kernels run: the best that this build has and this processor and its operating system support.
#ifndef FASTMTR_REGISTRY_H
#define FASTMTR_REGISTRY_H

#include <string>

#include "backend.h"

namespace fastmtr {

// `isa`: NULL or "" for FASTMTR_FORCE_ISA, or else the best. Throws FMTR_ERROR_BACKEND naming the reason.
const Kernels& choose_kernels(const char* isa);

// JSON text; see fmtr_info.
std::string info_json();

}  // namespace fastmtr
#endif
