// Raw values as features read them: one meaning for a value, whatever type it came in.
#ifndef FASTMTR_CORE_FEATURE_VALUES_H
#define FASTMTR_CORE_FEATURE_VALUES_H

#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>

#include "core/feature_kernels.h"
#include "core/feature_text.h"
#include "core/features.h"
#include "core/json.h"
#include "core/status.h"
#include "fastmtr.h"

namespace fastmtr {

// One value, alone or of a list.
struct Scalar {
  enum class Kind : uint8_t { null, whole, number, text, list } kind = Kind::null;
  int64_t whole = 0;
  double number = 0;
  std::string_view text;
};

inline Scalar scalar(const fmtr_value* value) {
  Scalar out;
  if (value == nullptr) return out;
  switch (value->type) {
    case FMTR_INT:
      out.kind = Scalar::Kind::whole;
      out.whole = value->of.whole;
      break;
    case FMTR_FLOAT:
      out.kind = std::isnan(value->of.number) ? Scalar::Kind::null : Scalar::Kind::number;
      out.number = value->of.number;
      break;
    case FMTR_TEXT:
      out.kind = Scalar::Kind::text;
      out.text = {value->of.text, static_cast<size_t>(value->count)};
      break;
    case FMTR_INTS:
    case FMTR_FLOATS:
    case FMTR_TEXTS:
      out.kind = Scalar::Kind::list;
      break;
    default:
      break;
  }
  return out;
}

inline Scalar element(const fmtr_value& list, uint64_t i) {
  Scalar out;
  if (list.valid != nullptr && list.valid[i] == 0) return out;
  if (list.type == FMTR_INTS) {
    out.kind = Scalar::Kind::whole;
    out.whole = list.of.ints[i];
  } else if (list.type == FMTR_FLOATS) {
    out.number = list.of.floats[i];
    out.kind = std::isnan(out.number) ? Scalar::Kind::null : Scalar::Kind::number;
  } else {
    const fmtr_text& text = list.of.texts[i];
    if (text.data == nullptr && text.size > 0) fail(FMTR_ERROR_ARGUMENT, "text ", i, " of a list is NULL");
    out.kind = Scalar::Kind::text;
    out.text = {text.data, static_cast<size_t>(text.size)};
  }
  return out;
}

inline bool is_list(const fmtr_value* value) { return value != nullptr && value->type >= FMTR_INTS; }
inline bool is_null(const fmtr_value* value) {
  return value == nullptr || (!is_list(value) && scalar(value).kind == Scalar::Kind::null);
}

inline std::string shown(const Scalar& value) {
  switch (value.kind) {
    case Scalar::Kind::whole:
      return say("the number ", value.whole);
    case Scalar::Kind::number:
      return say("the number ", value.number);
    case Scalar::Kind::text:
      return say("the text ", quote(value.text));
    case Scalar::Kind::list:
      return "a list";
    default:
      return "null";
  }
}

[[noreturn]] inline void refuse_type(const std::string& column, std::string_view expected, const Scalar& found) {
  fail(FMTR_ERROR_SCHEMA, "column ", quote(column), " should hold ", expected, ", found ", shown(found));
}

[[noreturn]] inline void refuse_null(const std::string& column) {
  fail(FMTR_ERROR_SCHEMA, "column ", quote(column), " is null, and its rule is nulls = 'error'");
}

inline void check_text(const std::string& column, std::string_view text) {
  if (!is_utf8(text)) fail(FMTR_ERROR_SCHEMA, "column ", quote(column), " holds text that is not valid UTF-8");
}

inline int64_t whole(const std::string& column, const Scalar& value, std::string_view expected) {
  if (value.kind == Scalar::Kind::whole) return value.whole;
  if (value.kind != Scalar::Kind::number || value.number != std::floor(value.number))
    refuse_type(column, expected, value);
  if (!(value.number >= -0x1p63 && value.number < 0x1p63)) refuse_type(column, "whole numbers of 64 bits", value);
  return static_cast<int64_t>(value.number);
}

// A category in its canonical form: null, a whole number, or checked text.
inline Scalar category(const std::string& column, const Scalar& value, Vocabulary::Type type) {
  Scalar out = value;
  switch (value.kind) {
    case Scalar::Kind::null:
      break;
    case Scalar::Kind::text:
      if (type == Vocabulary::Type::whole) refuse_type(column, "whole numbers", value);
      check_text(column, value.text);
      break;
    case Scalar::Kind::list:
      refuse_type(column, "whole numbers or text", value);
    default:
      out.whole = whole(column, value, "whole numbers or text");
      out.kind = Scalar::Kind::whole;
      if (type == Vocabulary::Type::text) refuse_type(column, "text", out);
  }
  return out;
}

inline uint64_t hash(const Scalar& value, uint64_t seed) {
  if (value.kind == Scalar::Kind::whole) return kernels::hash_int(value.whole, seed);
  return kernels::hash_bytes(reinterpret_cast<const unsigned char*>(value.text.data()), value.text.size(), seed);
}

inline double number(const std::string& column, const Scalar& value) {
  switch (value.kind) {
    case Scalar::Kind::whole:
      return static_cast<double>(value.whole);
    case Scalar::Kind::number:
      return value.number;
    case Scalar::Kind::null:
      return std::nan("");
    default:
      refuse_type(column, "numbers", value);
  }
}

inline bool tick(const std::string& column, const Scalar& value, int64_t* out) {
  if (value.kind == Scalar::Kind::null) return false;
  *out = whole(column, value, "points in time, as whole numbers");
  return true;
}

}  // namespace fastmtr
#endif
