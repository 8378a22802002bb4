// The feature program of a bundle: raw typed values of one row become the ids and numbers that a model reads.
//
// Immutable once read, shared by threads; the counters alone change. docs/features.md says what each operation means.
#ifndef FASTMTR_CORE_FEATURES_H
#define FASTMTR_CORE_FEATURES_H

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/arena.h"
#include "core/feature_kernels.h"
#include "core/safetensors.h"
#include "fastmtr.h"

namespace fastmtr {

// What a raw column's values may be; several features may read one column.
enum Accepts : uint32_t {
  kAcceptsCategory = 1,
  kAcceptsNumber = 2,
  kAcceptsTicks = 4,
  kAcceptsText = 8,
  kAcceptsList = 16
};

struct FeatureColumn {
  std::string name;
  uint32_t accepts = 0;  // 0: may be given, but nothing reads it
};

// Of one set of categories: a vocabulary or a hash.
struct Vocabulary {
  enum class Type : uint8_t { none, whole, text };

  Type type = Type::none;  // none: only nulls were fitted, and anything is unseen
  bool refuse_nulls = false, refuse_unseen = false;
  uint64_t hash_rows = 0;  // 0: a vocabulary
  uint32_t hashes = 1, oov_rows = 1, n_known = 0;
  uint64_t mask = 0;
  Aligned<kernels::IntEntry> ints;  // large pages: rows of many vocabularies are read here and there
  Aligned<kernels::TextEntry> texts;
  std::vector<unsigned char> bytes;

  uint32_t first() const { return 1 + oov_rows; }
  uint64_t rows() const { return first() + (hash_rows != 0 ? hash_rows : n_known); }
};

using kernels::ClockPart;
using kernels::FeatureOp;

struct FeatureCounters {
  std::atomic<uint64_t> rows{0}, nulls{0}, values{0}, unseen{0}, beyond{0};  // values: of lists
};

struct FeatureStep {
  std::string name;
  std::string shown;  // in messages: its raw column, if it is of one
  FeatureOp op = FeatureOp::category;
  fmtr_kind kind = FMTR_IDS;
  uint32_t offset = 0, width = 0;
  std::vector<uint32_t> columns;  // of the domain; the clock is not among them
  bool keep_last = false, as_set = false, indicator = false, refuse_nulls = false;
  ClockPart part = ClockPart::none;
  uint64_t ngrams = 1;
  std::string separator;
  std::shared_ptr<const Vocabulary> vocabulary;
  std::vector<Vocabulary::Type> types;  // of a cross
  kernels::Scale scale{};
  std::vector<double> doubles, levels;  // bounds, knots, idf
  std::vector<int32_t> ids;             // of an attribute
  std::vector<float> table;
  std::unique_ptr<FeatureCounters> counters;
};

struct FeatureDomain {
  std::vector<FeatureColumn> columns;
  std::unordered_map<std::string, uint32_t> column_of;
  std::vector<FeatureStep> steps;
  uint32_t ids = 0, dense = 0;            // widths
  uint32_t clock = UINT32_MAX;            // its column
  mutable std::atomic<uint64_t> rows{0};  // that no stored row was the base of
};

constexpr uint32_t kMaxFeatureColumns = 4096;

class Features {
 public:
  // Null where there is no such array.
  using Arrays = std::function<const Tensor*(const std::string& name)>;

  static std::unique_ptr<Features> load(const std::string& directory);
  Features(std::string_view json, const Arrays& arrays);  // copies what it needs

  const FeatureDomain& domain(fmtr_domain domain) const;
  void encode(fmtr_domain domain, const fmtr_value* values, uint64_t n, const int32_t* base_ids,
              const float* base_dense, int32_t* ids, float* dense) const;
  std::string describe() const;
  std::string counts() const;

 private:
  friend class FeatureReader;

  FeatureDomain domains_[3];
  int64_t ticks_per_second_ = 1, offset_seconds_ = 0;
};

}  // namespace fastmtr
#endif
