// Reads the members of one object of plan.json (or features.json), and refuses what is not as it must be.
#ifndef FASTMTR_CORE_PLAN_READER_H
#define FASTMTR_CORE_PLAN_READER_H

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "core/status.h"

namespace fastmtr {

template <class Enum>
struct Name {
  std::string_view text;
  Enum value;
};

template <class Enum, size_t N>
const char* name_of(const Name<Enum> (&names)[N], Enum value) {
  for (const auto& name : names)
    if (name.value == value) return name.text.data();
  return "?";
}

// An object of the plan, with the place it stands for messages. Members that nobody asked for are refused by finish().
class Reader {
 public:
  Reader(const Json& json, std::string where, std::string_view file = "plan.json")
      : json_(json), where_(std::move(where)), file_(file) {
    if (json.kind != Json::Kind::object) refuse(say("expected an object, found ", json.kind_name()));
  }

  [[noreturn]] void refuse(std::string_view problem) const {
    fail(FMTR_ERROR_BUNDLE, file_, ": ", where_, ": ", problem);
  }
  const std::string& where() const { return where_; }
  void rename(std::string where) { where_ = std::move(where); }

  // NULL when it is not there or is null.
  const Json* optional(std::string_view key) {
    if (std::find(asked_.begin(), asked_.end(), key) == asked_.end()) asked_.push_back(key);
    const Json* found = json_.find(key);
    return found == nullptr || found->kind == Json::Kind::null ? nullptr : found;
  }
  const Json& required(std::string_view key) {
    const Json* found = optional(key);
    if (found == nullptr) refuse(say("'", key, "' is missing"));
    return *found;
  }

  std::string text(std::string_view key) {
    const Json& found = required(key);
    expect(found, Json::Kind::string, key, "text");
    if (found.string.empty()) refuse(say("'", key, "' is empty"));
    return found.string;
  }
  int64_t whole(std::string_view key, int64_t least, int64_t most) {
    const Json& found = required(key);
    if (!found.integer || found.whole < least || found.whole > most)
      refuse(say("'", key, "' must be a whole number ", least, " .. ", most, ", found ",
                 found.integer                      ? say(found.whole)
                 : found.kind == Json::Kind::number ? say(found.number)
                                                    : found.kind_name()));
    return found.whole;
  }
  bool boolean(std::string_view key, bool otherwise) {
    const Json* found = optional(key);
    if (found == nullptr) return otherwise;
    expect(*found, Json::Kind::boolean, key, "true or false");
    return found->boolean;
  }
  float real(std::string_view key) { return real(required(key), key); }
  float real(const Json& found, std::string_view key) const {
    expect(found, Json::Kind::number, key, "a number");
    const float value = static_cast<float>(found.number);
    if (!std::isfinite(value)) refuse(say("'", key, "' is beyond float32: ", found.number));
    return value;
  }
  const std::vector<Json>& list(std::string_view key) {
    const Json& found = required(key);
    expect(found, Json::Kind::array, key, "a list");
    return found.array;
  }
  template <class Enum, size_t N>
  Enum choice(std::string_view key, const Name<Enum> (&names)[N]) {
    const std::string found = text(key);
    for (const auto& name : names)
      if (name.text == found) return name.value;
    std::string known;
    for (const auto& name : names) known += say(known.empty() ? "" : ", ", name.text);
    refuse(say("'", key, "' is ", quote(found), ", expected one of ", known));
  }
  Reader object(std::string_view key) { return {required(key), say(where_, ", ", key), file_}; }

  void finish() const {
    for (const auto& [name, value] : json_.object)
      if (std::find(asked_.begin(), asked_.end(), name) == asked_.end())
        refuse(say("unknown member ", quote(name), "; this version knows ", known()));
  }

 private:
  void expect(const Json& found, Json::Kind kind, std::string_view key, std::string_view what) const {
    if (found.kind != kind) refuse(say("'", key, "' must be ", what, ", found ", found.kind_name()));
  }
  std::string known() const {
    std::string out;
    for (const auto& key : asked_) out += say(out.empty() ? "" : ", ", key);
    return out.empty() ? "none here" : out;
  }

  const Json& json_;
  std::string where_;
  std::string_view file_;
  std::vector<std::string_view> asked_;
};

}  // namespace fastmtr
#endif
