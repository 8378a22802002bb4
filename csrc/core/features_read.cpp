// features.json and its arrays: everything is checked before it is used.
#include <bit>
#include <cmath>
#include <cstring>
#include <map>

#include "core/feature_text.h"
#include "core/features.h"
#include "core/json.h"
#include "core/plan_reader.h"
#include "core/status.h"

namespace fastmtr {

namespace {

constexpr std::string_view kFile = "features.json";
constexpr int64_t kMostRows = INT32_MAX;

constexpr Name<fmtr_domain> kDomains[] = {
    {"request", FMTR_REQUEST}, {"item", FMTR_ITEM}, {"candidate", FMTR_CANDIDATE}};
constexpr Name<fmtr_kind> kKinds[] = {{"ids", FMTR_IDS}, {"dense", FMTR_DENSE}};
constexpr Name<FeatureOp> kOps[] = {
    {"category", FeatureOp::category}, {"cross", FeatureOp::cross},         {"bucket", FeatureOp::bucket},
    {"many", FeatureOp::many},         {"attribute", FeatureOp::attribute}, {"words", FeatureOp::words},
    {"tfidf", FeatureOp::tfidf},       {"scale", FeatureOp::scale},         {"recency", FeatureOp::recency},
    {"cyclic", FeatureOp::cyclic},     {"gaps", FeatureOp::gaps},           {"table", FeatureOp::table},
    {"vector", FeatureOp::vector}};
constexpr Name<ClockPart> kParts[] = {{"hour", ClockPart::hour},
                                      {"weekday", ClockPart::weekday},
                                      {"hour_of_week", ClockPart::hour_of_week},
                                      {"year", ClockPart::year}};
constexpr Name<bool> kNulls[] = {{"fill", false}, {"error", true}};
constexpr Name<bool> kUnseen[] = {{"row", false}, {"error", true}};
constexpr Name<bool> kKeep[] = {{"first", false}, {"last", true}};
constexpr Name<kernels::Range> kRanges[] = {{"keep", kernels::Range::keep},
                                            {"clip", kernels::Range::clip},
                                            {"null", kernels::Range::null},
                                            {"error", kernels::Range::error}};
enum class Scaling : uint8_t { plain, log1p, ranks };
constexpr Name<Scaling> kScalings[] = {
    {"none", Scaling::plain},  {"standard", Scaling::plain}, {"minmax", Scaling::plain}, {"robust", Scaling::plain},
    {"log1p", Scaling::log1p}, {"quantile", Scaling::ranks}, {"normal", Scaling::ranks}};

double number(Reader& at, std::string_view key) {
  const Json& found = at.required(key);
  if (found.kind != Json::Kind::number || !std::isfinite(found.number))
    at.refuse(say("'", key, "' must be a finite number, found ", found.kind_name()));
  return found.number;
}

Vocabulary::Type type_of(Reader& at, const Json* found) {
  if (found == nullptr || found->kind == Json::Kind::null) return Vocabulary::Type::none;
  if (found->kind == Json::Kind::string && found->string == "int") return Vocabulary::Type::whole;
  if (found->kind == Json::Kind::string && found->string == "str") return Vocabulary::Type::text;
  at.refuse("a type must be \"int\", \"str\" or null");
}

uint64_t places(uint64_t n) { return std::bit_ceil(n * 2 + 1); }

template <class Entry>
Aligned<Entry> emptied(uint64_t n) {
  Aligned<Entry> out(static_cast<size_t>(n));
  for (size_t i = 0; i < out.size(); ++i) out[i].rank = kernels::kNoRank;
  return out;
}

}  // namespace

class FeatureReader {
 public:
  FeatureReader(Features& features, const Features::Arrays& arrays) : features_(features), arrays_(arrays) {}

  void read(const Json& json) {
    Reader root(json, "the state", kFile);
    const int64_t version = root.whole("version", 0, INT64_MAX);
    if (version == 1)
      root.refuse(
          "version 1 is read by fastmtr's Python only, which writes version 2: load the pipeline there "
          "(FeaturePipeline.from_state) and write the bundle again");
    if (version != 2) root.refuse(say("version ", version, " is of a later fastmtr; this one reads version 2"));
    if (const std::string hash = root.text("hash"); hash != "xxh64")
      root.refuse(say("the hash is ", quote(hash), ", this fastmtr has xxh64"));
    Reader clock = root.object("clock");
    std::string clock_column;
    if (clock.optional("column") != nullptr) clock_column = clock.text("column");
    features_.ticks_per_second_ = clock.whole("ticks_per_second", 1, 1'000'000'000);
    features_.offset_seconds_ = clock.whole("offset_seconds", -86'400, 86'400);
    clock.finish();
    Reader keys = root.object("keys");
    for (FeatureDomain& domain : features_.domains_) {
      if (!clock_column.empty()) domain.clock = column(domain, clock_column, 0);
      for (const char* key : {"user", "item"}) column(domain, keys.text(key), 0);
    }
    keys.finish();
    const Json& states = root.required("features");
    root.optional("statistics");
    uint32_t widths[3][2] = {};
    for (const Json& entry : root.list("program")) {
      const std::string name = Reader(entry, "a feature of the program", kFile).text("name");
      Reader at(entry, say("feature ", quote(name)), kFile);
      const fmtr_domain domain = at.choice("domain", kDomains);
      FeatureStep step = read_step(at, states, features_.domains_[domain]);
      uint32_t& end = widths[domain][step.kind];
      if (step.offset != end) at.refuse(say("'offset' is ", step.offset, ", but the feature before it ends at ", end));
      if (step.width > static_cast<uint32_t>(kMostRows) - end) at.refuse("the packed row is too wide");
      end += step.width;
      features_.domains_[domain].steps.push_back(std::move(step));
    }
    root.finish();
    for (int d = 0; d < 3; ++d) {
      features_.domains_[d].ids = widths[d][FMTR_IDS];
      features_.domains_[d].dense = widths[d][FMTR_DENSE];
    }
  }

 private:
  static uint32_t column(FeatureDomain& domain, const std::string& name, uint32_t accepts) {
    const auto [found, is_new] = domain.column_of.try_emplace(name, static_cast<uint32_t>(domain.columns.size()));
    if (is_new) {
      if (domain.columns.size() >= kMaxFeatureColumns)
        fail(FMTR_ERROR_BUNDLE, kFile, ": there are more than ", kMaxFeatureColumns, " raw columns");
      domain.columns.push_back({name, 0});
    }
    domain.columns[found->second].accepts |= accepts;
    return found->second;
  }

  FeatureStep read_step(Reader& at, const Json& states, FeatureDomain& domain) {
    FeatureStep step;
    step.name = at.text("name");
    at.required("domain");
    step.op = at.choice("op", kOps);
    step.kind = at.choice("kind", kKinds);
    step.offset = static_cast<uint32_t>(at.whole("offset", 0, kMostRows));
    step.width = static_cast<uint32_t>(at.whole("width", 1, kMostRows));
    step.counters = std::make_unique<FeatureCounters>();
    const std::string state_name = at.text("state");
    const Json* state_json = states.find(state_name);
    if (state_json == nullptr) at.refuse(say("'state' is ", quote(state_name), ", of which nothing was saved"));
    Reader state(*state_json, say("features, ", quote(state_name)), kFile);
    const auto wants = [&](uint64_t n, uint32_t accepts) {
      const std::vector<Json>& names = at.list("columns");
      if (names.size() != n) at.refuse(say("'columns' names ", names.size(), ", expected ", n));
      for (const Json& name : names) {
        if (name.kind != Json::Kind::string) at.refuse("'columns' must be texts");
        step.columns.push_back(column(domain, name.string, accepts));
      }
    };
    const auto is = [&](fmtr_kind kind, uint64_t width) {
      if (step.kind != kind || step.width != width)
        at.refuse(say("expected ", width, kind == FMTR_IDS ? " ids" : " numbers", ", found 'width' ", step.width));
    };
    const auto needs_clock = [&] {
      if (domain.clock == UINT32_MAX) at.refuse("it is made of the time, but 'clock' has no column");
      domain.columns[domain.clock].accepts |= kAcceptsTicks;
    };

    switch (step.op) {
      case FeatureOp::category:
        wants(1, kAcceptsCategory);
        if (at.optional("derive") != nullptr) {
          step.part = at.choice("derive", kParts);
          if (step.part == ClockPart::year) at.refuse("'derive' = 'year' is no category");
          needs_clock();
        }
        step.vocabulary = vocabulary(state, state_name);
        is(FMTR_IDS, step.vocabulary->hashes);
        break;
      case FeatureOp::cross: {
        const std::vector<Json>& types = state.list("types");
        if (types.size() < 2) state.refuse("'types' must have two or more");
        wants(types.size(), kAcceptsCategory);
        for (const Json& type : types) step.types.push_back(type_of(state, &type));
        step.vocabulary = vocabulary(state, state_name);
        if (step.vocabulary->type == Vocabulary::Type::text) state.refuse("a cross is of whole numbers, its hashes");
        is(FMTR_IDS, step.vocabulary->hashes);
        break;
      }
      case FeatureOp::bucket:
        wants(1, kAcceptsNumber);
        is(FMTR_IDS, 1);
        step.refuse_nulls = state.choice("nulls", kNulls);
        step.doubles = ascending(state, state_name, "bounds");
        break;
      case FeatureOp::many:
      case FeatureOp::attribute:
      case FeatureOp::words:
        is(FMTR_IDS, step.width);
        step.keep_last = at.choice("keep", kKeep);
        step.as_set = at.boolean("as_set", false);
        if (step.op == FeatureOp::words) {
          wants(1, kAcceptsText);
          step.ngrams = static_cast<uint64_t>(at.whole("ngrams", 1, 1000));
        } else {
          const bool split = at.optional("separator") != nullptr;
          if (split) step.separator = at.text("separator");
          wants(1, kAcceptsList | (split ? uint32_t{kAcceptsText} : 0));
        }
        step.vocabulary = vocabulary(state, state_name);
        if (step.op == FeatureOp::attribute) {
          const int64_t rows = state.whole("rows", 2, kMostRows);
          step.ids = vector<int32_t>(state, state_name, "ids", "I32");
          if (step.vocabulary->hash_rows != 0 || step.ids.size() != step.vocabulary->n_known)
            state.refuse(say("there are ", step.ids.size(), " ids for ", step.vocabulary->n_known, " keys"));
          for (const int32_t id : step.ids)
            if (id < 0 || id >= rows) state.refuse(say("an id is ", id, ", expected 0 .. ", rows - 1));
        }
        break;
      case FeatureOp::tfidf:
        wants(1, kAcceptsText);
        step.refuse_nulls = state.choice("nulls", kNulls);
        step.ngrams = static_cast<uint64_t>(state.whole("ngrams", 1, 1000));
        step.doubles = vector<double>(state, state_name, "idf", "F64");
        for (const double each : step.doubles)
          if (!(each >= 0 && std::isfinite(each))) state.refuse("'idf' must be finite numbers from 0 on");
        if (state.whole("width", 1, kMostRows) != static_cast<int64_t>(step.doubles.size()))
          state.refuse("'width' is not that of 'idf'");
        is(FMTR_DENSE, step.doubles.size());
        break;
      case FeatureOp::scale:
        wants(1, kAcceptsNumber);
        scale(state, state_name, step);
        is(FMTR_DENSE, 1 + step.indicator);
        break;
      case FeatureOp::recency:
        wants(1, kAcceptsTicks);
        needs_clock();
        at.optional("derive");
        scale(state, state_name, step);
        is(FMTR_DENSE, 1 + step.indicator);
        break;
      case FeatureOp::gaps:
        wants(1, kAcceptsTicks | kAcceptsList);
        needs_clock();
        scale(state, state_name, step);
        is(FMTR_DENSE, static_cast<uint64_t>(state.whole("length", 1, kMostRows)));
        break;
      case FeatureOp::cyclic:
        wants(0, 0);
        needs_clock();
        at.optional("derive");
        step.part = state.choice("part", kParts);
        if (step.part == ClockPart::hour_of_week) state.refuse("'part' must be hour, weekday or year");
        step.refuse_nulls = state.choice("nulls", kNulls);
        is(FMTR_DENSE, 2);
        break;
      case FeatureOp::table: {
        wants(1, kAcceptsCategory);
        state.required("encoding");
        step.vocabulary = vocabulary(state, state_name);
        const Tensor& table = array(state, state_name, "table", "F32");
        if (table.shape.size() != 2 || table.shape[0] != step.vocabulary->rows() || table.shape[1] != step.width)
          state.refuse(say("'table' must have ", step.vocabulary->rows(), " rows of ", step.width));
        step.table = copied<float>(table);
        for (const float each : step.table)
          if (!std::isfinite(each)) state.refuse("'table' must be finite");
        is(FMTR_DENSE, table.shape[1]);
        break;
      }
      case FeatureOp::vector:
        wants(1, kAcceptsNumber | kAcceptsList);
        step.refuse_nulls = state.choice("nulls", kNulls);
        is(FMTR_DENSE, static_cast<uint64_t>(state.whole("width", 1, kMostRows)));
        break;
    }
    step.shown = step.columns.size() == 1 ? domain.columns[step.columns[0]].name : step.name;
    at.finish();
    state.finish();
    return step;
  }

  const Tensor& array(const Reader& state, const std::string& name, std::string_view part, std::string_view dtype) {
    const std::string full = say(name, "/", part);
    const Tensor* found = arrays_(full);
    if (found == nullptr) state.refuse(say("there is no array ", quote(full)));
    if (found->dtype != dtype) state.refuse(say("array ", quote(full), " is ", found->dtype, ", expected ", dtype));
    return *found;
  }

  template <class T>
  static std::vector<T> copied(const Tensor& from) {
    std::vector<T> out(from.bytes / sizeof(T));
    if (!out.empty()) std::memcpy(out.data(), from.data, out.size() * sizeof(T));
    return out;
  }

  template <class T>
  std::vector<T> vector(const Reader& state, const std::string& name, std::string_view part, std::string_view dtype) {
    const Tensor& found = array(state, name, part, dtype);
    if (found.shape.size() != 1) state.refuse(say("array '", part, "' must have one dimension"));
    return copied<T>(found);
  }

  std::vector<double> ascending(const Reader& state, const std::string& name, std::string_view part) {
    std::vector<double> out = vector<double>(state, name, part, "F64");
    for (size_t i = 0; i < out.size(); ++i)
      if (!std::isfinite(out[i]) || (i > 0 && !(out[i - 1] < out[i])))
        state.refuse(say("'", part, "' must be finite numbers that ascend"));
    return out;
  }

  void scale(Reader& state, const std::string& name, FeatureStep& step) {
    kernels::Scale& to = step.scale;
    const Scaling kind = state.choice("kind", kScalings);
    step.refuse_nulls = state.choice("nulls", kNulls);
    step.indicator = state.boolean("indicator", false);
    to.out_of_range = state.choice("out_of_range", kRanges);
    number(state, "mean");
    to.low = number(state, "low");
    to.high = number(state, "high");
    to.least = number(state, "least");
    to.most = number(state, "most");
    to.shift = number(state, "shift");
    to.factor = number(state, "factor");
    to.filler = state.real("filler");
    to.log1p = kind == Scaling::log1p;
    if (!(to.factor > 0)) state.refuse("'factor' must be above 0");
    if (to.low > to.high || to.least > to.most) state.refuse("a range must not end before it begins");
    if (kind == Scaling::ranks) {
      step.doubles = ascending(state, name, "knots");
      step.levels = vector<double>(state, name, "levels", "F64");
      if (step.doubles.size() != step.levels.size())
        state.refuse(say("there are ", step.doubles.size(), " knots and ", step.levels.size(), " levels"));
      for (const double level : step.levels)
        if (!std::isfinite(level)) state.refuse("'levels' must be finite");
    }
    to.n_knots = step.doubles.size();
    to.knots = step.doubles.data();  // a moved vector keeps its memory
    to.levels = step.levels.data();
  }

  // Features of one state share one vocabulary.
  std::shared_ptr<const Vocabulary> vocabulary(Reader& state, const std::string& name) {
    auto made = std::make_shared<Vocabulary>();
    made->type = type_of(state, state.optional("type"));
    made->refuse_nulls = state.choice("nulls", kNulls);
    made->refuse_unseen = state.choice("unseen", kUnseen);
    if (state.optional("hash_rows") != nullptr)
      made->hash_rows = static_cast<uint64_t>(state.whole("hash_rows", 1, kMostRows / 2));
    made->hashes = static_cast<uint32_t>(state.whole("hashes", 1, 64));
    made->oov_rows = static_cast<uint32_t>(state.whole("oov_rows", 1, kMostRows / 2));
    if (made->hash_rows == 0 && made->hashes != 1) state.refuse("'hashes' above 1 need 'hash_rows'");
    std::shared_ptr<const Vocabulary>& shared = vocabularies_[name];
    if (shared != nullptr) return shared;
    if (made->hash_rows == 0 && made->type == Vocabulary::Type::whole) known_ints(state, name, *made);
    if (made->hash_rows == 0 && made->type == Vocabulary::Type::text) known_texts(state, name, *made);
    shared = std::move(made);
    return shared;
  }

  static void check_count(const Reader& state, const Vocabulary& to, uint64_t n) {
    if (n > static_cast<uint64_t>(kMostRows) - to.first()) state.refuse(say(n, " categories are too many"));
  }

  void known_ints(const Reader& state, const std::string& name, Vocabulary& to) {
    const std::vector<int64_t> values = vector<int64_t>(state, name, "values", "I64");
    check_count(state, to, values.size());
    to.n_known = static_cast<uint32_t>(values.size());
    to.ints = emptied<kernels::IntEntry>(places(values.size()));
    to.mask = to.ints.size() - 1;
    for (uint32_t rank = 0; rank < values.size(); ++rank)
      if (!kernels::put_int(to.ints.data(), to.mask, values[rank], rank))
        state.refuse(say("category ", values[rank], " stands twice"));
  }

  void known_texts(const Reader& state, const std::string& name, Vocabulary& to) {
    const std::vector<int64_t> offsets = vector<int64_t>(state, name, "offsets", "I64");
    to.bytes = vector<unsigned char>(state, name, "bytes", "U8");
    if (offsets.empty() || offsets.front() != 0 || offsets.back() != static_cast<int64_t>(to.bytes.size()))
      state.refuse("'offsets' must begin at 0 and end with the bytes");
    for (size_t i = 1; i < offsets.size(); ++i)
      if (offsets[i] < offsets[i - 1] || offsets[i] - offsets[i - 1] > UINT32_MAX / 2)
        state.refuse("'offsets' must ascend");
    check_count(state, to, offsets.size() - 1);
    to.n_known = static_cast<uint32_t>(offsets.size() - 1);
    to.texts = emptied<kernels::TextEntry>(places(to.n_known));
    to.mask = to.texts.size() - 1;
    for (uint32_t rank = 0; rank < to.n_known; ++rank) {
      const unsigned char* text = to.bytes.data() + offsets[rank];
      const auto size = static_cast<uint32_t>(offsets[rank + 1] - offsets[rank]);
      const std::string_view shown(reinterpret_cast<const char*>(text), size);
      if (!is_utf8(shown)) state.refuse("a category is not valid UTF-8");
      if (!kernels::put_text(to.texts.data(), to.mask, to.bytes.data(), static_cast<uint64_t>(offsets[rank]), size,
                             rank))
        state.refuse(say("category ", quote(shown), " stands twice"));
    }
  }

  Features& features_;
  const Features::Arrays& arrays_;
  std::map<std::string, std::shared_ptr<const Vocabulary>> vocabularies_;
};

Features::Features(std::string_view json, const Arrays& arrays) {
  FeatureReader(*this, arrays).read(parse_json(json, kFile));
}

std::unique_ptr<Features> Features::load(const std::string& directory) {
  const MappedFile json(directory + "/features.json");
  const SafeTensors tensors(directory + "/features.safetensors", "features.safetensors");
  return std::make_unique<Features>(json.text(), [&](const std::string& name) { return tensors.find(name); });
}

}  // namespace fastmtr
