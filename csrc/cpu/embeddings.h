// Look-ups in embedding tables, decoded in registers.
#ifndef FASTMTR_CPU_EMBEDDINGS_H
#define FASTMTR_CPU_EMBEDDINGS_H

#include "encodings.h"

namespace fastmtr {
namespace {

constexpr size_t kIdsAhead = 16;        // lookups that are under way while one is copied
constexpr size_t kAheadBytes = 4 * 64;  // of each: the processor's own prefetcher goes on from there

// Rows of a table. T: what a number, or two, are kept in.
template <class T>
struct Lookup {
  static constexpr bool kScaled = sizeof(T) == 1;
  const T* data;
  const float *scales, *shifts;
  size_t stride;

  FASTMTR_INLINE explicit Lookup(const EmbeddingTable& table)
      : data((const T*)table.data), scales(table.scales), shifts(table.shifts), stride(table.dim / kColumnsOf<T>) {}

  FASTMTR_INLINE void fetch(int32_t id) const {
    const auto* row = (const char*)(data + (size_t)id * stride);
    for (size_t b = 0; b < less(stride * sizeof(T), kAheadBytes); b += 64) __builtin_prefetch(row + b);
    if (kScaled) {
      __builtin_prefetch(scales + id);
      __builtin_prefetch(shifts + id);
    }
  }

  // Columns i .. i + m, anything beyond; i a multiple of W.
  FASTMTR_INLINE F get(int32_t id, size_t i, size_t m) const {
    const F x = decode_part(data + (size_t)id * stride + i / kColumnsOf<T>, m);
    return kScaled ? fma(x, set1(scales[id]), set1(shifts[id])) : x;
  }
};

template <class Fn>
FASTMTR_INLINE void with_rows_of(const EmbeddingTable& table, Fn fn) {
  switch (table.encoding) {
    case TableEncoding::f32:
      return fn(Lookup<float>(table));
    case TableEncoding::f16:
      return fn(Lookup<uint16_t>(table));
    case TableEncoding::u8:
      return fn(Lookup<uint8_t>(table));
    case TableEncoding::u4:
      return fn(Lookup<Nibbles>(table));
  }
}

inline void embedding(size_t rows, size_t n_ids, IdRows ids, int64_t padding, const EmbeddingTable* table, Out out) {
  const size_t total = rows * n_ids, dim = table->dim;
  with_rows_of(*table, [&](const auto& lookup) {
    size_t soon_row = 0, soon_column = 0;  // the lookup kIdsAhead on
    const auto fetch_next = [&] {
      lookup.fetch(row(ids, soon_row)[soon_column]);
      if (++soon_column == n_ids) soon_column = 0, ++soon_row;
    };
    for (size_t i = 0; i < less(kIdsAhead, total); ++i) fetch_next();
    size_t done = 0;
    for (size_t r = 0; r < rows; ++r)
      for (size_t k = 0; k < n_ids; ++k, ++done) {
        if (done + kIdsAhead < total) fetch_next();
        const int32_t id = row(ids, r)[k];
        float* to = row(out, r) + k * dim;
        for (size_t i = 0; i < dim; i += W) {
          const size_t m = less(W, dim - i);
          store_part(to + i, id == padding ? zero() : lookup.get(id, i, m), m);
        }
      }
  });
}

// One bag's columns i .. i + m; ids ascending by position.
template <class T>
FASTMTR_INLINE void pool(const int32_t* ids, size_t n_ids, int64_t padding, Pooling mode, const Lookup<T>& lookup,
                         size_t i, size_t m, float* out) {
  F total = zero();
  size_t count = 0;
  for (size_t j = 0; j < n_ids; ++j) {
    if (ids[j] == padding) continue;
    const F v = lookup.get(ids[j], i, m);
    total = count++ == 0 ? v : mode == Pooling::max ? max_or_nan(total, v) : total + v;
  }
  store_part(out + i, mode == Pooling::mean && count > 0 ? total / (float)count : total, m);
}

inline void embedding_bag(size_t rows, size_t n_ids, IdRows ids, int64_t padding, Pooling mode,
                          const EmbeddingTable* table, Out out) {
  const size_t dim = table->dim;
  with_rows_of(*table, [&](const auto& lookup) {
    const auto fetch = [&](size_t r) {
      for (size_t j = 0; j < n_ids; ++j)
        if (row(ids, r)[j] != padding) lookup.fetch(row(ids, r)[j]);
    };
    if (rows > 0) fetch(0);
    for (size_t r = 0; r < rows; ++r) {
      if (r + 1 < rows) fetch(r + 1);
      for (size_t i = 0; i < dim; i += W)
        pool(row(ids, r), n_ids, padding, mode, lookup, i, less(W, dim - i), row(out, r));
    }
  });
}

}  // namespace
}  // namespace fastmtr
#endif
