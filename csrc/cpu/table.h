// The table of kernels over the vector type of the header that FASTMTR_VEC names.
#ifndef FASTMTR_CPU_TABLE_H
#define FASTMTR_CPU_TABLE_H

#include "affine_int8.h"
#include "embeddings.h"
#include "operators.h"
#include "sequence.h"

namespace fastmtr {
namespace {

constexpr Kernels kernels_for(const char* isa) {
  return {isa,
          W,
          product_kernels<float>(),
#ifdef FASTMTR_NO_HALF
          {},
#else
          product_kernels<Half>(),
#endif
          int8_kernels(),
          add,
          activation,
          softmax,
          mixture,
          binary,
          scale_shift,
          reduce,
          layer_norm,
          l2_normalize,
          dot,
          matmul,
          arrange,
          present,
          mask,
          gru_step,
          embedding,
          embedding_bag,
          copy,
          encode,
          fuse};
}

}  // namespace
}  // namespace fastmtr
#endif
