#include "core/features.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/feature_text.h"
#include "core/feature_values.h"
#include "core/json.h"
#include "core/status.h"

namespace fastmtr {

namespace {

using kernels::clock_part;
using kernels::kMissing;
using kernels::kUnseen;

void count(std::atomic<uint64_t>& counter, uint64_t by = 1) { counter.fetch_add(by, std::memory_order_relaxed); }

// What a row needs room for, kept from row to row.
struct Scratch {
  Words words;
  std::vector<int32_t> ids;
  std::vector<int32_t> seen;  // a set of ids, open addressing; 0: empty
  std::vector<uint64_t> hashes;
  std::vector<uint32_t> counts;
};
thread_local Scratch scratch;

// A row being encoded.
struct Row {
  const FeatureDomain& domain;
  const kernels::Clock clock;
  const fmtr_value* const* at;  // by column
  int32_t* ids;
  float* dense;

  const fmtr_value* given(const FeatureStep& step, size_t i = 0) const { return at[step.columns[i]]; }
  const std::string& name(const FeatureStep& step, size_t i = 0) const { return domain.columns[step.columns[i]].name; }
  std::string names(const FeatureStep& step) const {
    std::string out;
    for (size_t i = 0; i < step.columns.size(); ++i) out += say(i == 0 ? "" : ", ", quote(name(step, i)));
    return out;
  }
  const fmtr_value* now() const { return domain.clock == UINT32_MAX ? nullptr : at[domain.clock]; }
  bool now(int64_t* tick_out) const {
    return domain.clock != UINT32_MAX && tick(domain.columns[domain.clock].name, scalar(now()), tick_out);
  }
};

// The first id of a category that was found at that rank, or not.
int32_t ranked(const FeatureStep& step, const Vocabulary& known, const Scalar& value, uint32_t rank, uint64_t hashed) {
  if (rank != kernels::kNoRank) return static_cast<int32_t>(known.first() + rank);
  count(step.counters->unseen);
  if (known.refuse_unseen)
    fail(FMTR_ERROR_SCHEMA, "column ", quote(step.shown), " has ", shown(value),
         ", which was not seen when it was fitted, and its rule is unseen = 'error'");
  return kUnseen + static_cast<int32_t>(known.oov_rows == 1 ? 0 : hashed % known.oov_rows);
}

// The first id of a canonical category.
int32_t id_of(const FeatureStep& step, const Vocabulary& known, const Scalar& value) {
  if (value.kind == Scalar::Kind::null) {
    count(step.counters->nulls);
    if (known.refuse_nulls) refuse_null(step.shown);
    return kMissing;
  }
  const uint64_t hashed = hash(value, 0);
  if (known.hash_rows != 0) return static_cast<int32_t>(known.first() + hashed % known.hash_rows);
  uint32_t rank = kernels::kNoRank;
  if (value.kind == Scalar::Kind::whole && known.type == Vocabulary::Type::whole)
    rank = kernels::find_int(known.ints.data(), known.mask, value.whole, hashed);
  else if (value.kind == Scalar::Kind::text && known.type == Vocabulary::Type::text)
    rank = kernels::find_text(known.texts.data(), known.mask, known.bytes.data(),
                              reinterpret_cast<const unsigned char*>(value.text.data()), value.text.size(), hashed);
  return ranked(step, known, value, rank, hashed);
}

void write_category(const FeatureStep& step, const Scalar& value, int32_t* out) {
  const Vocabulary& known = *step.vocabulary;
  out[0] = id_of(step, known, value);
  for (uint32_t seed = 1; seed < known.hashes; ++seed)
    out[seed] = value.kind == Scalar::Kind::null
                    ? kMissing
                    : static_cast<int32_t>(known.first() + hash(value, seed) % known.hash_rows);
}

void write_cross(const FeatureStep& step, const Row& row, int32_t* out) {
  const Vocabulary& known = *step.vocabulary;
  std::vector<uint64_t>& hashes = scratch.hashes;
  hashes.clear();
  bool null = false;
  for (size_t i = 0; i < step.columns.size(); ++i) {
    const Scalar value = category(row.name(step, i), scalar(row.given(step, i)), step.types[i]);
    null = null || value.kind == Scalar::Kind::null;
    hashes.push_back(value.kind == Scalar::Kind::null ? 0 : hash(value, 0));
  }
  if (null) {
    count(step.counters->nulls);
    if (known.refuse_nulls) refuse_null(step.shown);
    std::fill_n(out, step.width, kMissing);
    return;
  }
  const auto joint = [&](uint64_t seed) {
    return kernels::hash_bytes(reinterpret_cast<const unsigned char*>(hashes.data()), hashes.size() * 8, seed);
  };
  if (known.hash_rows != 0) {
    for (uint32_t seed = 0; seed < known.hashes; ++seed)
      out[seed] = static_cast<int32_t>(known.first() + joint(seed) % known.hash_rows);
    return;
  }
  Scalar value;
  value.kind = Scalar::Kind::whole;
  value.whole = static_cast<int64_t>(joint(0));
  out[0] = id_of(step, known, value);
}

// Collects ids, without those that are missing and, of a set, without repeats.
class Ids {
 public:
  Ids(const FeatureStep& step, uint64_t most) : step_(step) {
    scratch.ids.clear();
    if (step.as_set && most > kFew) {
      const size_t places = std::bit_ceil(static_cast<size_t>(most) * 2);
      scratch.seen.assign(places, 0);
      mask_ = places - 1;
    }
  }
  void add(int32_t id) {
    if (id == kMissing || (step_.as_set && is_there(id))) return;
    scratch.ids.push_back(id);
  }
  // `found`: elements that are not null, those that are left out included.
  void write(int32_t* out, uint64_t found) const {
    if (found == 0) count(step_.counters->nulls);
    count(step_.counters->values, found);
    const std::vector<int32_t>& ids = scratch.ids;
    const size_t kept = std::min<size_t>(ids.size(), step_.width);
    std::copy_n(ids.begin() + static_cast<ptrdiff_t>(step_.keep_last ? ids.size() - kept : 0), kept, out);
    std::fill(out + kept, out + step_.width, kMissing);
  }

 private:
  static constexpr uint64_t kFew = 16;

  bool is_there(int32_t id) {
    if (mask_ == 0) return std::find(scratch.ids.begin(), scratch.ids.end(), id) != scratch.ids.end();
    return kernels::put_id(scratch.seen.data(), mask_, id);
  }

  const FeatureStep& step_;
  size_t mask_ = 0;
};

// Of a many-valued feature: the id of an element, or of the attribute of one.
int32_t element_id(const FeatureStep& step, const std::string& column, const Scalar& value) {
  const Vocabulary& known = *step.vocabulary;
  const int32_t id = id_of(step, known, category(column, value, known.type));
  if (step.op != FeatureOp::attribute || id < static_cast<int32_t>(known.first())) return id;
  return step.ids[static_cast<size_t>(id) - known.first()];
}

void write_many(const FeatureStep& step, const Row& row, int32_t* out) {
  const fmtr_value* given = row.given(step);
  const std::string& column = row.name(step);
  if (is_list(given)) {
    Ids ids(step, given->count);
    uint64_t found = 0;
    for (uint64_t i = 0; i < given->count; ++i) {
      const Scalar value = element(*given, i);
      if (value.kind == Scalar::Kind::null) continue;
      ids.add(element_id(step, column, value));
      ++found;
    }
    return ids.write(out, found);
  }
  const Scalar value = scalar(given);
  if (value.kind == Scalar::Kind::text && !step.separator.empty()) {
    check_text(column, value.text);
    Ids ids(step, value.text.size() / step.separator.size() + 1);
    uint64_t found = 0;
    for (size_t begin = 0; begin <= value.text.size();) {
      const size_t end = std::min(value.text.find(step.separator, begin), value.text.size());
      Scalar part;
      part.kind = Scalar::Kind::text;
      part.text = stripped(value.text.substr(begin, end - begin));
      if (!part.text.empty()) {
        ids.add(element_id(step, column, part));
        ++found;
      }
      begin = end + step.separator.size();
    }
    return ids.write(out, found);
  }
  if (value.kind != Scalar::Kind::null)
    refuse_type(column, step.separator.empty() ? "a list" : "a list or text", value);
  count(step.counters->nulls);
  std::fill_n(out, step.width, kMissing);
}

// The words of a text feature's value; false if it is null.
bool read_words(const FeatureStep& step, const Row& row) {
  const Scalar value = scalar(row.given(step));
  if (value.kind == Scalar::Kind::null) {
    scratch.words.read({});
    return false;
  }
  if (value.kind != Scalar::Kind::text) refuse_type(row.name(step), "text", value);
  check_text(row.name(step), value.text);
  scratch.words.read(value.text);
  return true;
}

void write_words(const FeatureStep& step, const Row& row, int32_t* out) {
  read_words(step, row);
  Ids ids(step, 0);
  uint64_t found = 0;
  scratch.words.for_each(step.ngrams, [&](std::string_view gram) {
    Scalar value;
    value.kind = Scalar::Kind::text;
    value.text = gram;
    ids.add(element_id(step, row.name(step), value));
    ++found;
  });
  ids.write(out, found);
}

void write_tfidf(const FeatureStep& step, const Row& row, float* out) {
  if (!read_words(step, row) && step.refuse_nulls) refuse_null(step.shown);
  const size_t width = step.doubles.size();
  std::vector<uint32_t>& counts = scratch.counts;
  counts.assign(width, 0);
  uint64_t found = 0;
  scratch.words.for_each(step.ngrams, [&](std::string_view gram) {
    ++found;
    ++counts[kernels::hash_bytes(reinterpret_cast<const unsigned char*>(gram.data()), gram.size(), 0) % width];
  });
  if (found == 0) count(step.counters->nulls);
  count(step.counters->values, found);
  double total = 0;
  for (size_t i = 0; i < width; ++i) {
    const double weight = counts[i] * step.doubles[i];
    total += weight * weight;
  }
  const double length = std::sqrt(total);
  for (size_t i = 0; i < width; ++i)
    out[i] = length > 0 ? static_cast<float>(counts[i] * step.doubles[i] / length) : 0.0f;
}

kernels::Scaled scaled(const FeatureStep& step, double x) {
  const kernels::Scaled out = kernels::scale(step.scale, x);
  if (out.null || out.beyond) [[unlikely]] {
    if (out.beyond) {
      count(step.counters->beyond);
      if (step.scale.out_of_range == kernels::Range::error)
        fail(FMTR_ERROR_SCHEMA, "column ", quote(step.shown), " is ", x, ", beyond ", step.scale.low, " and ",
             step.scale.high, ", and its rule is out_of_range = 'error'");
    } else {
      count(step.counters->nulls);
      if (step.refuse_nulls) refuse_null(step.shown);
    }
  }
  return out;
}

void write_scaled(const FeatureStep& step, double x, float* out) {
  const kernels::Scaled found = scaled(step, x);
  out[0] = found.value;
  if (step.indicator) out[1] = found.null ? 1.0f : 0.0f;
}

void write_recency(const FeatureStep& step, const Row& row, float* out) {
  int64_t then = 0, now = 0;
  const bool has_then = tick(row.name(step), scalar(row.given(step)), &then), has_now = row.now(&now);
  write_scaled(step, has_then && has_now ? kernels::elapsed(now, then, row.clock.ticks_per_second) : std::nan(""), out);
}

void write_gaps(const FeatureStep& step, const Row& row, float* out) {
  const fmtr_value* given = row.given(step);
  std::fill_n(out, step.width, 0.0f);
  int64_t now = 0;
  const bool has_now = row.now(&now);
  if (is_null(given)) return;
  if (!is_list(given)) refuse_type(row.name(step), "lists of points in time", scalar(given));
  uint64_t found = 0;
  for (uint64_t i = 0; i < given->count; ++i) {
    int64_t then = 0;
    if (!tick(row.name(step), element(*given, i), &then) || !has_now || i >= step.width) continue;
    out[i] = scaled(step, kernels::log1p(kernels::elapsed(now, then, row.clock.ticks_per_second))).value;
    ++found;
  }
  count(step.counters->values, found);
}

void write_cyclic(const FeatureStep& step, const Row& row, float* out) {
  int64_t now = 0;
  if (!row.now(&now)) {
    count(step.counters->nulls);
    if (step.refuse_nulls) refuse_null(step.shown);
    out[0] = out[1] = 0.0f;
    return;
  }
  kernels::cycle(now, step.part, row.clock, out);
}

void write_vector(const FeatureStep& step, const Row& row, float* out) {
  const fmtr_value* given = row.given(step);
  if (is_null(given)) {
    count(step.counters->nulls);
    if (step.refuse_nulls) refuse_null(step.shown);
    std::fill_n(out, step.width, 0.0f);
    return;
  }
  if (!is_list(given)) refuse_type(row.name(step), say("lists of ", step.width, " numbers"), scalar(given));
  if (given->count != step.width)
    fail(FMTR_ERROR_SCHEMA, "column ", quote(row.name(step)), " should hold lists of ", step.width,
         " numbers, found a list of ", given->count);
  for (uint32_t i = 0; i < step.width; ++i) {
    const double x = number(row.name(step), element(*given, i));
    out[i] = std::isnan(x) ? 0.0f : kernels::to_float(x);
  }
}

void write_bucket(const FeatureStep& step, const Row& row, int32_t* out) {
  const double x = number(row.name(step), scalar(row.given(step)));
  if (std::isnan(x)) {
    count(step.counters->nulls);
    if (step.refuse_nulls) refuse_null(step.shown);
    out[0] = kMissing;
    return;
  }
  // Row 1 is that of unseen values, which numbers do not have.
  out[0] = 2 + static_cast<int32_t>(kernels::bounds_below(step.doubles.data(), step.doubles.size(), x));
}

// Texts that wait to be looked up: their places are fetched from memory meanwhile.
class Pending {
 public:
  explicit Pending(int32_t* ids) : ids_(ids) {}

  void add(const FeatureStep& step, std::string_view text) {
    if (n_ == kMost) finish();
    const Vocabulary& known = *step.vocabulary;
    const uint64_t hashed = kernels::hash_bytes(reinterpret_cast<const unsigned char*>(text.data()), text.size(), 0);
    __builtin_prefetch(&known.texts[hashed & known.mask]);
    waiting_[n_++] = {&step, text, hashed};
  }

  void finish() {
    for (size_t i = 0; i < n_; ++i) {
      const auto& [step, text, hashed] = waiting_[i];
      const Vocabulary& known = *step->vocabulary;
      const uint32_t rank =
          kernels::find_text(known.texts.data(), known.mask, known.bytes.data(),
                             reinterpret_cast<const unsigned char*>(text.data()), text.size(), hashed);
      if (rank != kernels::kNoRank) {
        ids_[step->offset] = static_cast<int32_t>(known.first() + rank);
        continue;
      }
      Scalar value;
      value.kind = Scalar::Kind::text;
      value.text = text;
      ids_[step->offset] = ranked(*step, known, value, rank, hashed);
    }
    n_ = 0;
  }

 private:
  static constexpr size_t kMost = 32;
  struct Waiting {
    const FeatureStep* step;
    std::string_view text;
    uint64_t hashed;
  };
  Waiting waiting_[kMost];
  size_t n_ = 0;
  int32_t* ids_;
};

// Whether the rule for nulls refuses; lists and texts leave nulls out.
bool refuses_nulls(const FeatureStep& step) {
  switch (step.op) {
    case FeatureOp::category:
    case FeatureOp::cross:
    case FeatureOp::table:
      return step.vocabulary->refuse_nulls;
    default:
      return step.refuse_nulls;
  }
}

[[noreturn]] void refuse_absent(const FeatureStep& step, const std::string& column) {
  fail(FMTR_ERROR_SCHEMA, "column ", quote(column), " is not given, and the rule of feature ", quote(step.name),
       " is nulls = 'error': give it, unless a stored user or item does");
}

void encode_step(const FeatureStep& step, const Row& row, bool has_base, Pending& pending) {
  int32_t* const ids = row.ids + step.offset;
  float* const dense = row.dense + step.offset;
  bool given = step.columns.empty() && row.now() != nullptr;
  for (const uint32_t column : step.columns) given = given || row.at[column] != nullptr;
  const bool of_clock =
      step.op == FeatureOp::category && step.part != ClockPart::none && !given && row.now() != nullptr;
  if (has_base) {
    if (!given && !of_clock) return;
    for (const uint32_t column : step.columns)
      if (row.at[column] == nullptr && step.columns.size() > 1)
        fail(FMTR_ERROR_SCHEMA, "feature ", quote(step.name), " is made of ", row.names(step),
             " together, and the row has no ", quote(row.domain.columns[column].name),
             ": give all of them, or none for what is stored");
    count(step.counters->rows);
  }
  if (refuses_nulls(step) && !of_clock) {
    for (size_t i = 0; i < step.columns.size(); ++i)
      if (row.given(step, i) == nullptr) refuse_absent(step, row.name(step, i));
    if ((step.op == FeatureOp::recency || step.op == FeatureOp::cyclic) && row.now() == nullptr)
      refuse_absent(step, row.domain.columns[row.domain.clock].name);
  }
  switch (step.op) {
    case FeatureOp::category: {
      if (of_clock) {
        Scalar part;
        int64_t now = 0;
        if (row.now(&now)) {
          part.kind = Scalar::Kind::whole;
          part.whole = clock_part(now, step.part, row.clock);
        }
        return write_category(step, part, ids);
      }
      const Scalar value = category(row.name(step), scalar(row.given(step)), step.vocabulary->type);
      if (value.kind == Scalar::Kind::text && step.vocabulary->hash_rows == 0 &&
          step.vocabulary->type == Vocabulary::Type::text)
        return pending.add(step, value.text);
      return write_category(step, value, ids);
    }
    case FeatureOp::cross:
      return write_cross(step, row, ids);
    case FeatureOp::bucket:
      return write_bucket(step, row, ids);
    case FeatureOp::many:
    case FeatureOp::attribute:
      return write_many(step, row, ids);
    case FeatureOp::words:
      return write_words(step, row, ids);
    case FeatureOp::tfidf:
      return write_tfidf(step, row, dense);
    case FeatureOp::scale:
      return write_scaled(step, number(row.name(step), scalar(row.given(step))), dense);
    case FeatureOp::recency:
      return write_recency(step, row, dense);
    case FeatureOp::cyclic:
      return write_cyclic(step, row, dense);
    case FeatureOp::gaps:
      return write_gaps(step, row, dense);
    case FeatureOp::vector:
      return write_vector(step, row, dense);
    case FeatureOp::table: {
      const Scalar value = category(row.name(step), scalar(row.given(step)), step.vocabulary->type);
      const auto id = static_cast<size_t>(id_of(step, *step.vocabulary, value));
      std::copy_n(step.table.data() + id * step.width, step.width, dense);
      return;
    }
  }
}

constexpr const char* kDomainNames[] = {"request", "item", "candidate"};

}  // namespace

const FeatureDomain& Features::domain(fmtr_domain domain) const {
  if (domain != FMTR_REQUEST && domain != FMTR_ITEM && domain != FMTR_CANDIDATE)
    fail(FMTR_ERROR_ARGUMENT, "domain is ", static_cast<int>(domain),
         ", expected FMTR_REQUEST, FMTR_ITEM or FMTR_CANDIDATE");
  return domains_[domain];
}

void Features::encode(fmtr_domain which, const fmtr_value* values, uint64_t n, const int32_t* base_ids,
                      const float* base_dense, int32_t* ids, float* dense) const {
  const FeatureDomain& of = domain(which);
  const bool has_base = base_ids != nullptr || base_dense != nullptr;
  if ((of.ids > 0 && ids == nullptr) || (of.dense > 0 && dense == nullptr))
    fail(FMTR_ERROR_ARGUMENT, "there is no room for the row: ", ids == nullptr ? "ids" : "dense", " is NULL");
  if (has_base && ((of.ids > 0 && base_ids == nullptr) || (of.dense > 0 && base_dense == nullptr)))
    fail(FMTR_ERROR_ARGUMENT, "of the base there is only one half: give base_ids and base_dense, or neither");
  const fmtr_value* at[kMaxFeatureColumns];
  std::fill_n(at, of.columns.size(), nullptr);
  for (uint64_t i = 0; i < n; ++i) {
    if (values[i].column >= of.columns.size())
      fail(FMTR_ERROR_ARGUMENT, "values[", i, "].column is ", values[i].column, ", but the ", kDomainNames[which],
           " has ", of.columns.size(), " raw columns");
    if (values[i].type > FMTR_TEXTS)
      fail(FMTR_ERROR_ARGUMENT, "values[", i, "].type is ", values[i].type, ", which is no fmtr_type");
    if (values[i].count > 0 && values[i].type >= FMTR_TEXT && values[i].of.text == nullptr)
      fail(FMTR_ERROR_ARGUMENT, "values[", i, "] of column ", quote(of.columns[values[i].column].name), " is NULL");
    at[values[i].column] = &values[i];
  }
  if (has_base) {
    if (ids != base_ids) std::copy_n(base_ids, of.ids, ids);
    if (dense != base_dense) std::copy_n(base_dense, of.dense, dense);
  } else {
    count(of.rows);
  }
  const Row row{of, {ticks_per_second_, offset_seconds_}, at, ids, dense};
  Pending pending(ids);
  for (const FeatureStep& step : of.steps) encode_step(step, row, has_base, pending);
  pending.finish();
}

std::string Features::describe() const {
  std::string out = say("{\"ticks_per_second\": ", ticks_per_second_, ", ");
  for (int d = 0; d < 3; ++d) {
    const FeatureDomain& of = domains_[d];
    out += say(d == 0 ? "" : ", ", "\"", kDomainNames[d], "\": {\"ids\": ", of.ids, ", \"dense\": ", of.dense,
               ", \"columns\": [");
    for (size_t i = 0; i < of.columns.size(); ++i) {
      const FeatureColumn& column = of.columns[i];
      out += say(i == 0 ? "" : ", ", "{\"name\": ", json_quote(column.name), ", \"accepts\": [");
      bool first = true;
      for (const auto& [flag, text] : {std::pair{kAcceptsCategory, "category"},
                                       {kAcceptsNumber, "number"},
                                       {kAcceptsTicks, "ticks"},
                                       {kAcceptsText, "text"},
                                       {kAcceptsList, "list"}})
        if (column.accepts & flag) {
          out += say(first ? "\"" : ", \"", text, "\"");
          first = false;
        }
      out += "]}";
    }
    out += "]}";
  }
  return out + "}";
}

std::string Features::counts() const {
  const auto read = [](const std::atomic<uint64_t>& counter) { return counter.load(std::memory_order_relaxed); };
  std::string out = "{";
  for (int d = 0; d < 3; ++d) {
    const FeatureDomain& of = domains_[d];
    out += say(d == 0 ? "" : ", ", "\"", kDomainNames[d], "\": {");
    for (const FeatureStep& step : of.steps) {
      const FeatureCounters& c = *step.counters;
      const FeatureOp op = step.op;
      const uint64_t nulls = read(c.nulls);
      uint64_t rows = std::max(read(of.rows) + read(c.rows), nulls), values = rows - nulls;
      if (op == FeatureOp::many || op == FeatureOp::attribute || op == FeatureOp::words || op == FeatureOp::tfidf)
        values = read(c.values);
      if (op == FeatureOp::gaps) rows = values = read(c.values);
      out += say(&step == of.steps.data() ? "" : ", ", json_quote(step.name), ": {\"rows\": ", rows,
                 ", \"nulls\": ", nulls, ", \"values\": ", values);
      if (step.vocabulary != nullptr) out += say(", \"unseen\": ", read(c.unseen));
      if (op == FeatureOp::scale || op == FeatureOp::recency || op == FeatureOp::gaps)
        out += say(", \"beyond\": ", read(c.beyond));
      out += "}";
    }
    out += "}";
  }
  return out + "}";
}

}  // namespace fastmtr
