// fastmtr for C++17 and later: the C ABI with owners, vectors and exceptions. Header only.
//
//   fastmtr::Model model("bundle");
//   fastmtr::Session session(model);
//   fastmtr::Batch batch;
//   batch.request_ids = {...}; batch.request_dense = {...}; batch.add_request({item, item, ...});
//   fastmtr::Ranking best = session.rank(batch, 10);
#ifndef FASTMTR_HPP
#define FASTMTR_HPP

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fastmtr.h"

namespace fastmtr {

class Exception : public std::runtime_error {
 public:
  Exception(fmtr_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
  fmtr_status status() const noexcept { return status_; }

 private:
  fmtr_status status_;
};

inline void check(fmtr_status status) {
  if (status != FMTR_OK) throw Exception(status, std::string(fmtr_status_name(status)) + ": " + fmtr_last_error());
}

inline std::string take_text(char* text) {
  std::string copy(text);
  fmtr_string_free(text);
  return copy;
}

inline std::string info() {
  char* json = nullptr;
  check(fmtr_info(&json));
  return take_text(json);
}

// Movable, shared by threads by reference. Must outlive its sessions.
class Model {
 public:
  explicit Model(const std::string& directory, const char* isa = nullptr, bool without_catalogue = false,
                 fmtr_precision precision = FMTR_FP32, const char* device = nullptr) {
    const fmtr_load_options options{sizeof(fmtr_load_options), isa, without_catalogue ? 1 : 0, precision, device};
    check(fmtr_model_load(directory.c_str(), &options, &model_));
  }
  ~Model() { fmtr_model_free(model_); }
  Model(Model&& other) noexcept : model_(std::exchange(other.model_, nullptr)) {}
  Model& operator=(Model&& other) noexcept {
    std::swap(model_, other.model_);
    return *this;
  }
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  fmtr_model* get() const noexcept { return model_; }
  uint64_t n_tasks() const { return fmtr_model_n_tasks(model_); }
  uint64_t n_items() const { return fmtr_model_n_items(model_); }
  uint64_t width(fmtr_domain domain, fmtr_kind kind) const { return fmtr_model_width(model_, domain, kind); }
  std::string describe() const {
    char* json = nullptr;
    check(fmtr_model_describe(model_, &json));
    return take_text(json);
  }
  std::string explain() const {
    char* json = nullptr;
    check(fmtr_model_explain(model_, &json));
    return take_text(json);
  }

  // The catalogue: each change makes a new version, which sessions see at their next call.
  void set_catalogue(const std::vector<int64_t>& keys, const std::vector<int32_t>& ids,
                     const std::vector<float>& dense) {
    const fmtr_catalogue_data data = items(keys, ids, dense);
    check(fmtr_model_set_catalogue(model_, &data));
  }
  void upsert(const std::vector<int64_t>& keys, const std::vector<int32_t>& ids, const std::vector<float>& dense) {
    const fmtr_catalogue_data data = items(keys, ids, dense);
    check(fmtr_model_upsert(model_, &data));
  }
  // Returns how many of them there were.
  uint64_t erase(const std::vector<int64_t>& keys) {
    uint64_t deleted = 0;
    check(fmtr_model_delete(model_, keys.data(), keys.size(), &deleted));
    return deleted;
  }
  uint64_t catalogue_version() const { return fmtr_model_catalogue_version(model_); }

  // In row order, of one version.
  std::vector<int64_t> keys() const {
    return of_one_version<int64_t>(1, [&](int64_t* values, uint64_t n) { return fmtr_model_keys(model_, values, n); });
  }
  // [items, width], of one version. The output's width is in describe().
  std::vector<float> item_output(const std::string& name, uint64_t width) const {
    return of_one_version<float>(
        width, [&](float* values, uint64_t n) { return fmtr_model_item_output(model_, name.c_str(), values, n); });
  }

  // [keys, width], of these items.
  std::vector<float> item_output(const std::string& name, uint64_t width, const std::vector<int64_t>& keys) const {
    std::vector<float> values(keys.size() * width);
    check(fmtr_model_item_output_of(model_, name.c_str(), keys.data(), keys.size(), values.data(), values.size()));
    return values;
  }

 private:
  fmtr_catalogue_data items(const std::vector<int64_t>& keys, const std::vector<int32_t>& ids,
                            const std::vector<float>& dense) const {
    if (ids.size() != keys.size() * width(FMTR_ITEM, FMTR_IDS) ||
        dense.size() != keys.size() * width(FMTR_ITEM, FMTR_DENSE))
      throw Exception(FMTR_ERROR_ARGUMENT, "items: ids or dense do not have one row for each key");
    return {sizeof(fmtr_catalogue_data), keys.size(), keys.data(), ids.data(), dense.data()};
  }

  template <class Value, class Read>
  std::vector<Value> of_one_version(uint64_t width, const Read& read) const {
    for (;;) {
      const uint64_t version = catalogue_version();
      std::vector<Value> values(n_items() * width);
      const fmtr_status status = read(values.data(), values.size());
      if (version != catalogue_version()) continue;
      check(status);
      return values;
    }
  }

  fmtr_model* model_ = nullptr;
};

// Requests with their packed inputs, one row after the other, and the keys of their candidates.
struct Batch {
  std::vector<int32_t> request_ids, candidate_ids;
  std::vector<float> request_dense, candidate_dense;
  std::vector<uint64_t> offsets{0};
  std::vector<int64_t> items;
  bool whole_catalogue = false;  // every request scores all items, in row order; add_request({}) for each
  bool skip_unknown = false;
  std::optional<std::vector<float>> fusion_weights;  // one for each fused task
  uint64_t catalogue_version = 0;                    // that the catalogue must have; 0: any

  void add_request(const std::vector<int64_t>& candidates) {
    items.insert(items.end(), candidates.begin(), candidates.end());
    offsets.push_back(items.size());
  }
};

struct Scores {
  uint64_t n_tasks = 0;
  std::vector<float> scores;  // [candidates, n_tasks]
  std::vector<float> fused;   // [candidates]
};

struct Ranking {
  uint64_t k = 0, n_tasks = 0;
  std::vector<uint64_t> positions;  // [requests, k], UINT64_MAX beyond counts
  std::vector<float> fused;         // [requests, k]
  std::vector<float> scores;        // [requests, k, n_tasks]
  std::vector<uint64_t> counts;     // [requests]
};

struct CertifiedRanking : Ranking {
  std::vector<uint64_t> rescored;  // [requests]: candidates scored in fp32
};

// One thread's workspace.
class Session {
 public:
  explicit Session(const Model& model, uint32_t threads = 1, uint32_t tile = 0) : model_(model.get()) {
    const fmtr_session_options options{sizeof(fmtr_session_options), threads, tile};
    check(fmtr_session_create(model_, &options, &session_));
  }
  ~Session() { fmtr_session_free(session_); }
  Session(Session&& other) noexcept : model_(other.model_), session_(std::exchange(other.session_, nullptr)) {}
  Session& operator=(Session&& other) noexcept {
    std::swap(model_, other.model_);
    std::swap(session_, other.session_);
    return *this;
  }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  fmtr_session* get() const noexcept { return session_; }

  Scores score(const Batch& batch) {
    const auto [c, candidates] = view(batch);
    Scores out;
    out.n_tasks = fmtr_model_n_tasks(model_);
    out.fused.resize(candidates);
    out.scores.resize(out.fused.size() * out.n_tasks);
    check(fmtr_score(session_, &c, out.scores.data(), out.fused.data()));
    return out;
  }

  Ranking rank(const Batch& batch, uint64_t k) {
    const fmtr_batch c = view(batch).c;
    Ranking out;
    make_room(out, c, k);
    check(fmtr_rank(session_, &c, k, out.positions.data(), out.fused.data(), out.scores.data(), out.counts.data()));
    return out;
  }

  // The list of fp32 from a model loaded with int8 (fp16 is refused): see fmtr_rank_certified.
  CertifiedRanking rank_certified(const Batch& batch, uint64_t k, float width, float safety = 0) {
    const fmtr_batch c = view(batch).c;
    const fmtr_certify_options options{sizeof(fmtr_certify_options), width, safety};
    CertifiedRanking out;
    make_room(out, c, k);
    out.rescored.resize(c.n_requests);
    check(fmtr_rank_certified(session_, &c, k, &options, out.positions.data(), out.fused.data(), out.scores.data(),
                              out.counts.data(), out.rescored.data()));
    return out;
  }

  // Of each candidate's fused score from that in fp32.
  std::vector<float> precision_errors(const Batch& batch) {
    const auto [c, candidates] = view(batch);
    std::vector<float> errors(candidates);
    check(fmtr_precision_errors(session_, &c, errors.data()));
    return errors;
  }

  // A request-domain output, [requests, width]; its width is in Model::describe().
  std::vector<float> request_output(const Batch& batch, const std::string& name, uint64_t width) {
    const fmtr_batch c = view(batch).c;
    std::vector<float> values(c.n_requests * width);
    check(fmtr_request_output(session_, &c, name.c_str(), values.data(), values.size()));
    return values;
  }

  // Where the time of rank(), or with k = 0 of score(), goes: JSON text.
  std::string profile(const Batch& batch, uint64_t k, uint64_t repeats = 10) {
    const fmtr_batch c = view(batch).c;
    char* json = nullptr;
    check(fmtr_profile(session_, &c, k, repeats, &json));
    return take_text(json);
  }

 private:
  struct View {
    fmtr_batch c;
    uint64_t candidates;  // of all requests
  };

  void make_room(Ranking& out, const fmtr_batch& c, uint64_t k) const {
    out.k = k;
    out.n_tasks = fmtr_model_n_tasks(model_);
    out.positions.resize(c.n_requests * k);
    out.fused.resize(c.n_requests * k);
    out.scores.resize(c.n_requests * k * out.n_tasks);
    out.counts.resize(c.n_requests);
  }

  View view(const Batch& batch) const {
    const uint64_t requests = batch.offsets.empty() ? 0 : batch.offsets.size() - 1;
    const auto rows = [&](size_t size, uint64_t n, fmtr_domain domain, fmtr_kind kind, const char* name) {
      if (size != n * fmtr_model_width(model_, domain, kind))
        throw Exception(FMTR_ERROR_ARGUMENT, std::string(name) + " has " + std::to_string(size) +
                                                 " numbers, expected " + std::to_string(n) + " rows of " +
                                                 std::to_string(fmtr_model_width(model_, domain, kind)));
    };
    rows(batch.request_ids.size(), requests, FMTR_REQUEST, FMTR_IDS, "request_ids");
    rows(batch.request_dense.size(), requests, FMTR_REQUEST, FMTR_DENSE, "request_dense");
    uint64_t candidates = batch.items.size(), version = batch.catalogue_version;
    if (batch.whole_catalogue) {
      // The size of the answer is that of one version, so the call has to insist on it.
      uint64_t now;
      do {
        now = fmtr_model_catalogue_version(model_);
        candidates = requests * fmtr_model_n_items(model_);
      } while (now != fmtr_model_catalogue_version(model_));
      if (version == 0) version = now;
    }
    rows(batch.candidate_ids.size(), candidates, FMTR_CANDIDATE, FMTR_IDS, "candidate_ids");
    rows(batch.candidate_dense.size(), candidates, FMTR_CANDIDATE, FMTR_DENSE, "candidate_dense");
    if (requests > 0 && batch.offsets.back() != batch.items.size())
      throw Exception(FMTR_ERROR_ARGUMENT, "offsets must end with the number of items");
    static const int64_t nothing = 0;  // NULL would mean the whole catalogue
    fmtr_batch c{};
    c.struct_size = sizeof c;
    c.n_requests = requests;
    c.request_ids = batch.request_ids.data();
    c.request_dense = batch.request_dense.data();
    c.offsets = batch.offsets.data();
    c.items = batch.whole_catalogue ? nullptr : batch.items.empty() ? &nothing : batch.items.data();
    c.candidate_ids = batch.candidate_ids.data();
    c.candidate_dense = batch.candidate_dense.data();
    c.unknown_items = batch.skip_unknown ? FMTR_UNKNOWN_SKIP : FMTR_UNKNOWN_ERROR;
    c.fusion_weights = batch.fusion_weights ? batch.fusion_weights->data() : nullptr;
    c.catalogue_version = version;
    return {c, candidates};
  }

  fmtr_model* model_ = nullptr;
  fmtr_session* session_ = nullptr;
};

// A bundle's feature program: raw values of a row in, what a model reads out. Shared by threads by reference.
//
//   fastmtr::Features features("bundle");
//   const uint32_t city = features.column(FMTR_REQUEST, "city"), age = features.column(FMTR_REQUEST, "age");
//   fastmtr::Values row;
//   row.add(city, "Rome"); row.add(age, 34);
//   features.append(FMTR_REQUEST, row, batch.request_ids, batch.request_dense);
class Values {
 public:
  void clear() { values_.clear(); }
  void add(uint32_t column, int64_t whole) { put(column, FMTR_INT, 0).of.whole = whole; }
  void add(uint32_t column, int whole) { add(column, int64_t{whole}); }
  void add(uint32_t column, double number) { put(column, FMTR_FLOAT, 0).of.number = number; }
  void add_null(uint32_t column) { put(column, FMTR_NULL, 0); }
  // What is pointed to must live until the row is encoded.
  void add(uint32_t column, std::string_view text) { put(column, FMTR_TEXT, text.size()).of.text = text.data(); }
  void add(uint32_t column, const char* text) { add(column, std::string_view(text)); }
  void add(uint32_t column, const int64_t* ints, uint64_t n, const uint8_t* valid = nullptr) {
    fmtr_value& value = put(column, FMTR_INTS, n);
    value.of.ints = ints;
    value.valid = valid;
  }
  void add(uint32_t column, const double* floats, uint64_t n, const uint8_t* valid = nullptr) {
    fmtr_value& value = put(column, FMTR_FLOATS, n);
    value.of.floats = floats;
    value.valid = valid;
  }
  void add(uint32_t column, const fmtr_text* texts, uint64_t n, const uint8_t* valid = nullptr) {
    fmtr_value& value = put(column, FMTR_TEXTS, n);
    value.of.texts = texts;
    value.valid = valid;
  }

  const fmtr_value* data() const noexcept { return values_.data(); }
  size_t size() const noexcept { return values_.size(); }

 private:
  fmtr_value& put(uint32_t column, fmtr_type type, uint64_t count) {
    fmtr_value value{};
    value.column = column;
    value.type = type;
    value.count = count;
    values_.push_back(value);
    return values_.back();
  }

  std::vector<fmtr_value> values_;
};

class Features {
 public:
  explicit Features(const std::string& directory) { check(fmtr_features_load(directory.c_str(), &features_)); }
  ~Features() { fmtr_features_free(features_); }
  Features(Features&& other) noexcept : features_(std::exchange(other.features_, nullptr)) {}
  Features& operator=(Features&& other) noexcept {
    std::swap(features_, other.features_);
    return *this;
  }
  Features(const Features&) = delete;
  Features& operator=(const Features&) = delete;

  fmtr_features* get() const noexcept { return features_; }
  uint64_t width(fmtr_domain domain, fmtr_kind kind) const { return fmtr_features_width(features_, domain, kind); }
  uint32_t column(fmtr_domain domain, const std::string& name) const {
    uint32_t found = 0;
    check(fmtr_features_column(features_, domain, name.c_str(), &found));
    return found;
  }

  // Appends one row to packed matrices, those of a Batch say.
  void append(fmtr_domain domain, const Values& row, std::vector<int32_t>& ids, std::vector<float>& dense) const {
    const size_t n_ids = ids.size(), n_dense = dense.size();
    ids.resize(n_ids + width(domain, FMTR_IDS));
    dense.resize(n_dense + width(domain, FMTR_DENSE));
    const fmtr_status status = fmtr_features_encode(features_, domain, row.data(), row.size(), nullptr, nullptr,
                                                    ids.data() + n_ids, dense.data() + n_dense);
    if (status != FMTR_OK) {
      ids.resize(n_ids);
      dense.resize(n_dense);
    }
    check(status);
  }

  std::string describe() const {
    char* json = nullptr;
    check(fmtr_features_describe(features_, &json));
    return take_text(json);
  }
  std::string counts() const {
    char* json = nullptr;
    check(fmtr_features_counts(features_, &json));
    return take_text(json);
  }

 private:
  fmtr_features* features_ = nullptr;
};

}  // namespace fastmtr
#endif
