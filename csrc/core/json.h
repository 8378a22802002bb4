// A small strict JSON reader (RFC 8259) with limits, and the escaping that writing JSON needs.
#ifndef FASTMTR_CORE_JSON_H
#define FASTMTR_CORE_JSON_H

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fastmtr {

class Json {
 public:
  enum class Kind : uint8_t { null, boolean, number, string, array, object };
  using Members = std::vector<std::pair<std::string, Json>>;

  Kind kind = Kind::null;
  bool boolean = false;
  bool integer = false;  // the number is written without fraction or exponent and fits int64
  int64_t whole = 0;     // its value then
  double number = 0;
  std::string string;
  std::vector<Json> array;
  Members object;

  const Json* find(std::string_view key) const;  // NULL: not an object, or no such member
  const char* kind_name() const;
};

struct JsonLimits {
  size_t depth = 64;
  size_t values = 4'000'000;
};

// Refuses: trailing text, repeated keys, invalid UTF-8, U+0000, lone surrogates, numbers beyond double, NaN, comments.
// `what` names the text in the message ("plan.json").
Json parse_json(std::string_view text, std::string_view what, const JsonLimits& limits = {});

std::string json_quote(std::string_view text);  // a JSON string, with its quotes
std::string quote(std::string_view text);       // for messages: 'name', as Python shows it; cut where it is very long

}  // namespace fastmtr
#endif
