// Whole columns of a table, a row at a time: what device code does in the thread of a row, and the host in a loop.
//
// Columns lie as Arrow keeps them, and results are written where they stand in the packed rows. All that memory is the
// caller's. fastmtr/features/device_batch.py fills these structs and knows their layout.
#ifndef FASTMTR_CORE_FEATURE_BATCH_H
#define FASTMTR_CORE_FEATURE_BATCH_H

#include "core/feature_kernels.h"
#include "core/feature_utf8.h"

namespace fastmtr {
namespace kernels {

enum class ColumnType : uint64_t { null, whole, natural, floating, bits, text, list, vectors };

// The elements of lists and vectors are the column behind it.
struct Column {
  ColumnType type;
  uint64_t width;  // bytes of a number, or of an offset; of vectors, how many elements each has
  uint64_t first_bit;
  uint64_t base;                 // what the first offset is
  uint64_t expected;             // of a cross: Categories::type
  const unsigned char* values;   // numbers, bits (from first_bit on), or the bytes of texts
  const unsigned char* offsets;  // of texts and lists
  const unsigned char* valid;    // a bit for each from first_bit on; null: all are
};

struct Categories {
  static constexpr uint64_t kNothing = 0, kWhole = 1, kText = 2;  // nothing: only nulls were fitted
  uint64_t type;
  uint64_t refuse_nulls, refuse_unseen;
  uint64_t hash_rows;  // 0: a vocabulary
  uint64_t oov_rows;
  uint64_t mask;
  const IntEntry* ints;
  const TextEntry* texts;
  const unsigned char* bytes;
};

// One feature.
struct Step {
  FeatureOp op;
  ClockPart part;  // of the clock, which then is the column
  bool refuse_nulls, keep_last, as_set, indicator;
  uint64_t column, n_columns;  // where its columns begin; of a cross, how many there are
  uint64_t clock;              // its column
  uint64_t width;
  unsigned char* out;  // of the first row; int32 or float32
  uint64_t stride;     // bytes from row to row
  Clock ticks;
  uint64_t ngrams;
  const unsigned char* separator;
  uint64_t separator_size;
  unsigned char* scratch;  // see device_batch.py
  const double* doubles;   // bounds, or weights
  uint64_t n_doubles;
  const int32_t* ids;         // of attributes, by key
  const float* table;         // by category
  const uint32_t* lower;      // by code point
  const unsigned char* word;  // by code point
  Categories categories;
  Scale scale;
};

FMTR_HD double null_number() { return of_bits(0x7FF8000000000000ull); }

// ---- columns

template <class T>
FMTR_HD T load(const unsigned char* from, uint64_t i) {
  return reinterpret_cast<const T*>(from)[i];
}

FMTR_HD bool bit(const unsigned char* bits, uint64_t i) { return (bits[i >> 3] >> (i & 7) & 1) != 0; }

FMTR_HD bool is_valid(const Column& column, uint64_t i) {
  return column.type != ColumnType::null && (column.valid == nullptr || bit(column.valid, column.first_bit + i));
}

FMTR_HD int64_t whole_number(const Column& column, uint64_t i) {
  if (column.type == ColumnType::bits) return bit(column.values, column.first_bit + i) ? 1 : 0;
  const bool natural = column.type == ColumnType::natural;
  switch (column.width) {
    case 1:
      return natural ? int64_t{column.values[i]} : int64_t{load<signed char>(column.values, i)};
    case 2:
      return natural ? int64_t{load<unsigned short>(column.values, i)} : int64_t{load<short>(column.values, i)};
    case 4:
      return natural ? int64_t{load<uint32_t>(column.values, i)} : int64_t{load<int32_t>(column.values, i)};
    default:
      return load<int64_t>(column.values, i);
  }
}

// NaN: null.
FMTR_HD double number_at(const Column& column, uint64_t i) {
  if (!is_valid(column, i)) return null_number();
  if (column.type == ColumnType::floating)
    return column.width == 8 ? load<double>(column.values, i) : widened(load<float>(column.values, i));
  if (column.type == ColumnType::natural && column.width == 8)
    return static_cast<double>(load<uint64_t>(column.values, i));
  return static_cast<double>(whole_number(column, i));
}

// Where element i of texts, lists or vectors begins and ends; nothing where it is null.
struct Span {
  uint64_t begin, end;
  FMTR_HD uint64_t size() const { return end - begin; }
};

FMTR_HD Span span_at(const Column& column, uint64_t i) {
  if (!is_valid(column, i)) return {0, 0};
  if (column.type == ColumnType::vectors) return {i * column.width, (i + 1) * column.width};
  if (column.width == 8)
    return {load<uint64_t>(column.offsets, i) - column.base, load<uint64_t>(column.offsets, i + 1) - column.base};
  return {load<uint32_t>(column.offsets, i) - column.base, load<uint32_t>(column.offsets, i + 1) - column.base};
}

FMTR_HD bool is_list(const Column& column) {
  return column.type == ColumnType::list || column.type == ColumnType::vectors;
}

// ---- categories

// In its canonical form.
struct Category {
  enum class Kind : uint8_t { null, whole, text } kind;
  int64_t whole;
  const unsigned char* text;
  uint64_t size;
};

FMTR_HD Category text_category(const unsigned char* text, uint64_t size) {
  return {Category::Kind::text, 0, text, size};
}

FMTR_HD Category category_at(const Column& column, uint64_t i, uint64_t expected, bool& refused) {
  const Category null{Category::Kind::null, 0, nullptr, 0};
  if (!is_valid(column, i)) return null;
  Category out{Category::Kind::whole, 0, nullptr, 0};
  if (column.type == ColumnType::text) {
    const Span span = span_at(column, i);
    out = text_category(column.values + span.begin, span.size());
  } else if (column.type == ColumnType::floating) {
    const double x = number_at(column, i);
    if (x != x) return null;
    // Of a float that is one, the whole number is the float again.
    const bool fits = x >= -9223372036854775808.0 && x < 9223372036854775808.0;
    out.whole = fits ? static_cast<int64_t>(x) : 0;
    refused = refused || static_cast<double>(out.whole) != x;
  } else if (is_list(column)) {
    refused = true;
  } else {
    out.whole = whole_number(column, i);
    refused = refused || (column.type == ColumnType::natural && out.whole < 0);
  }
  const bool is_text = out.kind == Category::Kind::text;
  if (expected != Categories::kNothing && is_text != (expected == Categories::kText)) {
    refused = true;
    return null;
  }
  return out;
}

FMTR_HD bool tick_at(const Column& column, uint64_t i, int64_t* tick, bool& refused) {
  const Category found = category_at(column, i, Categories::kWhole, refused);
  *tick = found.whole;
  return found.kind != Category::Kind::null;
}

FMTR_HD uint64_t hash(const Category& value, uint64_t seed) {
  return value.kind == Category::Kind::text ? hash_bytes(value.text, value.size, seed) : hash_int(value.whole, seed);
}

// The first id.
FMTR_HD int32_t id_of(const Categories& known, const Category& value, bool& refused) {
  if (value.kind == Category::Kind::null) {
    refused = refused || known.refuse_nulls != 0;
    return kMissing;
  }
  const uint64_t hashed = hash(value, 0), first = 1 + known.oov_rows;
  if (known.hash_rows != 0) return static_cast<int32_t>(first + hashed % known.hash_rows);
  uint32_t rank = kNoRank;
  if (value.kind == Category::Kind::whole && known.type == Categories::kWhole)
    rank = find_int(known.ints, known.mask, value.whole, hashed);
  else if (value.kind == Category::Kind::text && known.type == Categories::kText)
    rank = find_text(known.texts, known.mask, known.bytes, value.text, value.size, hashed);
  if (rank != kNoRank) return static_cast<int32_t>(first + rank);
  refused = refused || known.refuse_unseen != 0;
  return kUnseen + static_cast<int32_t>(known.oov_rows == 1 ? 0 : hashed % known.oov_rows);
}

// Of one value its `width` ids.
FMTR_HD void write_ids(const Step& step, const Category& value, int32_t* out, bool& refused) {
  const Categories& known = step.categories;
  out[0] = id_of(known, value, refused);
  for (uint64_t seed = 1; seed < step.width; ++seed)
    out[seed] = value.kind == Category::Kind::null
                    ? kMissing
                    : static_cast<int32_t>(1 + known.oov_rows + hash(value, seed) % known.hash_rows);
}

FMTR_HD void write_category(const Step& step, const Column* columns, uint64_t row, int32_t* out, bool& refused) {
  Category value;
  if (step.part == ClockPart::none) {
    value = category_at(columns[step.column], row, step.categories.type, refused);
  } else {
    int64_t tick = 0;
    value = {Category::Kind::null, 0, nullptr, 0};
    if (tick_at(columns[step.clock], row, &tick, refused))
      value = {Category::Kind::whole, clock_part(tick, step.part, step.ticks), nullptr, 0};
  }
  write_ids(step, value, out, refused);
}

// Several values together are the bytes of their hashes.
FMTR_HD void write_cross(const Step& step, const Column* columns, uint64_t row, int32_t* out, bool& refused) {
  uint64_t* const hashes = reinterpret_cast<uint64_t*>(step.scratch) + row * step.n_columns;
  Category joint = text_category(reinterpret_cast<const unsigned char*>(hashes), step.n_columns * 8);
  for (uint64_t i = 0; i < step.n_columns; ++i) {
    const Column& column = columns[step.column + i];
    const Category value = category_at(column, row, column.expected, refused);
    hashes[i] = hash(value, 0);
    if (value.kind == Category::Kind::null) joint.kind = Category::Kind::null;
  }
  if (joint.kind == Category::Kind::text && step.categories.hash_rows == 0)
    joint = {Category::Kind::whole, static_cast<int64_t>(hash(joint, 0)), nullptr, 0};
  write_ids(step, joint, out, refused);
}

// ---- lists of ids

// The ids of a row, without those that are missing and, of a set, without repeats: the first or the last ones.
class Ids {
 public:
  // `most` ids at most; the row's scratch begins at `at`.
  FMTR_HD Ids(const Step& step, int32_t* out, uint64_t at, uint64_t most) : step_(step), out_(out) {
    if (!step.as_set || !step.keep_last) return;
    places_ = reinterpret_cast<int32_t*>(step.scratch) + 4 * at;
    mask_ = 1;
    while (mask_ < 2 * most) mask_ *= 2;
    for (uint64_t i = 0; i < mask_; ++i) places_[i] = 0;
    mask_ -= 1;
  }
  FMTR_HD bool full() const { return !step_.keep_last && n_ == step_.width; }
  FMTR_HD void add(int32_t id) {
    if (id == kMissing || full() || (step_.as_set && is_there(id))) return;
    out_[step_.keep_last ? n_ % step_.width : n_] = id;
    ++n_;
  }
  FMTR_HD void finish() const {
    for (uint64_t i = n_; i < step_.width; ++i) out_[i] = kMissing;
    if (n_ <= step_.width) return;
    // The last ones went round: each part is turned about, then the whole.
    const uint64_t oldest = n_ % step_.width;
    reverse(0, oldest);
    reverse(oldest, step_.width);
    reverse(0, step_.width);
  }

 private:
  FMTR_HD bool is_there(int32_t id) {
    if (places_ != nullptr) return put_id(places_, mask_, id);
    for (uint64_t i = 0; i < n_; ++i)
      if (out_[i] == id) return true;
    return false;
  }
  FMTR_HD void reverse(uint64_t begin, uint64_t end) const {
    for (; begin + 1 < end; ++begin, --end) {
      const int32_t first = out_[begin];
      out_[begin] = out_[end - 1];
      out_[end - 1] = first;
    }
  }

  const Step& step_;
  int32_t* out_;
  int32_t* places_ = nullptr;
  uint64_t mask_ = 0, n_ = 0;
};

FMTR_HD int32_t element_id(const Step& step, const Category& value, bool& refused) {
  const int32_t id = id_of(step.categories, value, refused), first = static_cast<int32_t>(1 + step.categories.oov_rows);
  return step.op == FeatureOp::attribute && id >= first ? step.ids[id - first] : id;
}

FMTR_HD bool starts_with(const unsigned char* text, const unsigned char* end, const unsigned char* with, uint64_t n) {
  return static_cast<uint64_t>(end - text) >= n && same_bytes(text, with, n);
}

FMTR_HD void write_many(const Step& step, const Column* columns, uint64_t row, int32_t* out, bool& refused) {
  const Column& column = columns[step.column];
  const Span span = is_list(column) || column.type == ColumnType::text ? span_at(column, row) : Span{0, 0};
  Ids ids(step, out, span.begin + row, span.size() + 1);
  if (is_list(column)) {
    const Column& elements = (&column)[1];
    for (uint64_t i = span.begin; i < span.end; ++i) {
      const Category value = category_at(elements, i, step.categories.type, refused);
      // Nulls are left out, whatever the rule of the feature whose vocabulary it is.
      if (value.kind != Category::Kind::null) ids.add(element_id(step, value, refused));
    }
  } else if (column.type == ColumnType::text && step.separator_size > 0) {
    const unsigned char* at = column.values + span.begin;
    const unsigned char* const end = column.values + span.end;
    if (!is_utf8(at, span.size())) refused = true;
    while (at < end && !refused) {
      const unsigned char* after = at;
      while (after < end && !starts_with(after, end, step.separator, step.separator_size)) ++after;
      const unsigned char *first = at, *last = after;
      strip(first, last);
      if (first < last) {
        const Category part = text_category(first, static_cast<uint64_t>(last - first));
        refused = refused || step.categories.type == Categories::kWhole;
        ids.add(element_id(step, part, refused));
      }
      at = after + step.separator_size;
    }
  } else {
    refused = refused || is_valid(column, row);
  }
  ids.finish();
}

// ---- words

// The n-grams of a row's text, in lower case with one space between words: of all that begin at the first word, then
// the second, the shortest first. As many bytes as the text has are enough for it twice over.
class Grams {
 public:
  FMTR_HD Grams(const Step& step, const Column& column, uint64_t row, bool& refused) : ngrams_(step.ngrams) {
    if (column.type != ColumnType::text) {
      refused = refused || is_valid(column, row);
      taken_ = ngrams_;
      return;
    }
    const Span span = span_at(column, row);
    unsigned char* out = step.scratch + 2 * span.begin;
    const unsigned char* at = column.values + span.begin;
    const unsigned char* const end = column.values + span.end;
    if (!is_utf8(at, span.size())) {
      refused = true;
      at = end;
    }
    text_ = out;
    bool inside = false;
    while (at < end) {
      const uint32_t point = step.lower[next_point(at)];
      const bool word = step.word[point] != 0;
      if (word && !inside && out != text_) *out++ = ' ';
      if (word) out += put_point(out, point);
      inside = word;
    }
    size_ = static_cast<uint64_t>(out - text_);
    taken_ = ngrams_;
  }

  FMTR_HD bool next() {
    if (taken_ == ngrams_ || end_ == size_) {
      begin_ = next_word_;
      if (begin_ >= size_) return false;
      end_ = begin_;
      taken_ = 0;
    } else {
      ++end_;
    }
    while (end_ < size_ && text_[end_] != ' ') ++end_;
    if (taken_++ == 0) next_word_ = end_ + 1;
    return true;
  }
  FMTR_HD Category gram() const { return text_category(text_ + begin_, end_ - begin_); }

 private:
  const unsigned char* text_ = nullptr;
  uint64_t size_ = 0, ngrams_, begin_ = 0, end_ = 0, next_word_ = 0, taken_ = 0;
};

FMTR_HD void write_words(const Step& step, const Column* columns, uint64_t row, int32_t* out, bool& refused) {
  Ids ids(step, out, 0, 0);  // words are no set
  Grams grams(step, columns[step.column], row, refused);
  while (grams.next()) {
    if (ids.full() && step.categories.refuse_unseen == 0) break;
    refused = refused || step.categories.type == Categories::kWhole;
    ids.add(element_id(step, grams.gram(), refused));
  }
  ids.finish();
}

// Counts of n-grams, in the memory of the numbers that they become.
FMTR_HD void write_tfidf(const Step& step, const Column* columns, uint64_t row, float* out, bool& refused) {
  union Count {
    float number;
    uint32_t count;
  };
  Count* const counts = reinterpret_cast<Count*>(out);
  for (uint64_t i = 0; i < step.width; ++i) counts[i].count = 0;
  const Column& column = columns[step.column];
  refused = refused || (step.refuse_nulls && !is_valid(column, row));
  Grams grams(step, column, row, refused);
  while (grams.next()) ++counts[hash(grams.gram(), 0) % step.width].count;
  double total = 0;
  for (uint64_t i = 0; i < step.width; ++i) {
    const double weight = mul(counts[i].count, step.doubles[i]);
    total = add(total, mul(weight, weight));
  }
  const double length = root(total);
  for (uint64_t i = 0; i < step.width; ++i) {
    const double weight = mul(counts[i].count, step.doubles[i]);
    counts[i].number = length > 0 ? single(weight / length) : 0.0f;
  }
}

// ---- numbers

FMTR_HD void write_bucket(const Step& step, const Column* columns, uint64_t row, int32_t* out, bool& refused) {
  const double x = number_at(columns[step.column], row);
  const bool null = x != x;
  refused = refused || (null && step.refuse_nulls);
  // Row 1 is that of unseen values, which numbers do not have.
  out[0] = null ? kMissing : 2 + static_cast<int32_t>(bounds_below(step.doubles, step.n_doubles, x));
}

FMTR_HD void write_scaled(const Step& step, double x, float* out, bool& refused) {
  const Scaled found = scale(step.scale, x);
  refused = refused || (found.beyond && step.scale.out_of_range == Range::error);
  refused = refused || (found.null && !found.beyond && step.refuse_nulls);
  out[0] = found.value;
  if (step.indicator) out[1] = found.null ? 1.0f : 0.0f;
}

FMTR_HD void write_recency(const Step& step, const Column* columns, uint64_t row, float* out, bool& refused) {
  int64_t then = 0, now = 0;
  const bool has_then = tick_at(columns[step.column], row, &then, refused);
  const bool has_now = tick_at(columns[step.clock], row, &now, refused);
  write_scaled(step, has_then && has_now ? elapsed(now, then, step.ticks.ticks_per_second) : null_number(), out,
               refused);
}

FMTR_HD void write_gaps(const Step& step, const Column* columns, uint64_t row, float* out, bool& refused) {
  const Column& column = columns[step.column];
  int64_t now = 0;
  const bool has_now = tick_at(columns[step.clock], row, &now, refused);
  for (uint64_t i = 0; i < step.width; ++i) out[i] = 0.0f;
  if (!is_list(column)) {
    refused = refused || is_valid(column, row);
    return;
  }
  const Span span = span_at(column, row);
  for (uint64_t i = 0; i < span.size(); ++i) {
    int64_t then = 0;
    const bool known = tick_at((&column)[1], span.begin + i, &then, refused);
    if (known && has_now && i < step.width)
      write_scaled(step, log1p(elapsed(now, then, step.ticks.ticks_per_second)), out + i, refused);
  }
}

FMTR_HD void write_cyclic(const Step& step, const Column* columns, uint64_t row, float* out, bool& refused) {
  int64_t now = 0;
  out[0] = out[1] = 0.0f;
  if (tick_at(columns[step.clock], row, &now, refused))
    cycle(now, step.part, step.ticks, out);
  else
    refused = refused || step.refuse_nulls;
}

FMTR_HD void write_vector(const Step& step, const Column* columns, uint64_t row, float* out, bool& refused) {
  const Column& column = columns[step.column];
  const bool given = is_valid(column, row);
  const Span span = is_list(column) ? span_at(column, row) : Span{0, 0};
  refused = refused || (given ? span.size() != step.width : step.refuse_nulls);
  for (uint64_t i = 0; i < step.width; ++i) {
    const double x = i < span.size() ? number_at((&column)[1], span.begin + i) : null_number();
    out[i] = x != x ? 0.0f : to_float(x);
  }
}

// ---- rows

// Writes what the row becomes; `refused` becomes true where a rule or a type forbids it, and what is written then means
// nothing.
FMTR_HD void encode_row(const Step& step, const Column* columns, uint64_t row, bool& refused) {
  unsigned char* const out = step.out + row * step.stride;
  int32_t* const ids = reinterpret_cast<int32_t*>(out);
  float* const dense = reinterpret_cast<float*>(out);
  switch (step.op) {
    case FeatureOp::category:
      return write_category(step, columns, row, ids, refused);
    case FeatureOp::cross:
      return write_cross(step, columns, row, ids, refused);
    case FeatureOp::bucket:
      return write_bucket(step, columns, row, ids, refused);
    case FeatureOp::many:
    case FeatureOp::attribute:
      return write_many(step, columns, row, ids, refused);
    case FeatureOp::words:
      return write_words(step, columns, row, ids, refused);
    case FeatureOp::tfidf:
      return write_tfidf(step, columns, row, dense, refused);
    case FeatureOp::scale:
      return write_scaled(step, number_at(columns[step.column], row), dense, refused);
    case FeatureOp::recency:
      return write_recency(step, columns, row, dense, refused);
    case FeatureOp::cyclic:
      return write_cyclic(step, columns, row, dense, refused);
    case FeatureOp::gaps:
      return write_gaps(step, columns, row, dense, refused);
    case FeatureOp::table:
      dense[0] = step.table[id_of(step.categories,
                                  category_at(columns[step.column], row, step.categories.type, refused), refused)];
      return;
    case FeatureOp::vector:
      return write_vector(step, columns, row, dense, refused);
  }
}

#if defined(__CUDACC__)

// Blocks of threads over the rows, and one row of blocks a step. `refused`: of each step, 1 where a row was.
extern "C" __global__ void fastmtr_encode_rows(const Step* steps, const Column* columns, uint64_t rows,
                                               uint32_t* refused) {
  bool wrong = false;
  const uint64_t threads = uint64_t{gridDim.x} * blockDim.x;
  for (uint64_t row = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; row < rows; row += threads)
    encode_row(steps[blockIdx.y], columns, row, wrong);
  if (wrong) refused[blockIdx.y] = 1;
}

#else

inline void encode_rows(const Step* steps, uint64_t n_steps, const Column* columns, uint64_t rows, uint32_t* refused) {
  for (uint64_t s = 0; s < n_steps; ++s) {
    bool wrong = false;
    for (uint64_t row = 0; row < rows; ++row) encode_row(steps[s], columns, row, wrong);
    if (wrong) refused[s] = 1;
  }
}

#endif

}  // namespace kernels
}  // namespace fastmtr
#endif
