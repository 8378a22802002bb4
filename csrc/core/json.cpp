#include "core/json.h"

#include <algorithm>
#include <charconv>
#include <unordered_set>

#include "core/status.h"

namespace fastmtr {

const Json* Json::find(std::string_view key) const {
  for (const auto& [name, value] : object)
    if (name == key) return &value;
  return nullptr;
}

const char* Json::kind_name() const {
  switch (kind) {
    case Kind::null:
      return "null";
    case Kind::boolean:
      return "true or false";
    case Kind::number:
      return "a number";
    case Kind::string:
      return "text";
    case Kind::array:
      return "a list";
    case Kind::object:
      return "an object";
  }
  return "?";
}

namespace {

class Parser {
 public:
  Parser(std::string_view text, std::string_view what, const JsonLimits& limits)
      : text_(text), what_(what), limits_(limits) {}

  Json document() {
    Json value = parse(0);
    skip_space();
    if (at_ != text_.size()) refuse("text after the end of the JSON value");
    return value;
  }

 private:
  [[noreturn]] void refuse(std::string_view problem) const {
    size_t line = 1, column = 1;
    for (size_t i = 0; i < at_ && i < text_.size(); ++i) {
      ++column;
      if (text_[i] == '\n') ++line, column = 1;
    }
    fail(FMTR_ERROR_BUNDLE, what_, ": line ", line, ", column ", column, ": ", problem);
  }

  bool end() const { return at_ >= text_.size(); }
  char peek() const { return end() ? '\0' : text_[at_]; }

  void skip_space() {
    while (!end() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r')) ++at_;
  }

  void expect(char c) {
    if (end()) refuse(say("the text ends where '", c, "' was expected"));
    if (text_[at_] != c) refuse(say("expected '", c, "'"));
    ++at_;
  }

  void word(std::string_view expected) {
    if (text_.substr(at_, expected.size()) != expected) refuse(say("expected ", expected));
    at_ += expected.size();
  }

  Json parse(size_t depth) {
    if (depth >= limits_.depth) refuse(say("nested deeper than ", limits_.depth));
    if (++values_ > limits_.values) refuse(say("more than ", limits_.values, " values"));
    skip_space();
    if (end()) refuse("the text ends where a value was expected");
    Json value;
    switch (peek()) {
      case '{':
        parse_object(value, depth);
        break;
      case '[':
        parse_array(value, depth);
        break;
      case '"':
        value.kind = Json::Kind::string;
        value.string = parse_string();
        break;
      case 't':
        word("true");
        value.kind = Json::Kind::boolean;
        value.boolean = true;
        break;
      case 'f':
        word("false");
        value.kind = Json::Kind::boolean;
        break;
      case 'n':
        word("null");
        break;
      default:
        parse_number(value);
    }
    return value;
  }

  void parse_object(Json& value, size_t depth) {
    value.kind = Json::Kind::object;
    std::unordered_set<std::string> seen;
    expect('{');
    skip_space();
    if (peek() == '}') {
      ++at_;
      return;
    }
    while (true) {
      skip_space();
      if (peek() != '"') refuse("expected the name of a member, in double quotes");
      std::string name = parse_string();
      if (!seen.insert(name).second) refuse(say("member ", quote(name), " stands twice"));
      skip_space();
      expect(':');
      value.object.emplace_back(std::move(name), parse(depth + 1));
      skip_space();
      if (peek() == ',') {
        ++at_;
        continue;
      }
      expect('}');
      return;
    }
  }

  void parse_array(Json& value, size_t depth) {
    value.kind = Json::Kind::array;
    expect('[');
    skip_space();
    if (peek() == ']') {
      ++at_;
      return;
    }
    while (true) {
      value.array.push_back(parse(depth + 1));
      skip_space();
      if (peek() == ',') {
        ++at_;
        continue;
      }
      expect(']');
      return;
    }
  }

  void digits() {
    if (peek() < '0' || peek() > '9') refuse("expected a digit");
    while (peek() >= '0' && peek() <= '9') ++at_;
  }

  void parse_number(Json& value) {
    value.kind = Json::Kind::number;
    const size_t start = at_;
    bool whole = true;
    if (peek() == '-') ++at_;
    if (peek() == '0') {
      ++at_;
    } else if (peek() >= '1' && peek() <= '9') {
      digits();
    } else {
      at_ = start;
      refuse("expected a value");
    }
    if (peek() == '.') {
      whole = false;
      ++at_;
      digits();
    }
    if (peek() == 'e' || peek() == 'E') {
      whole = false;
      ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      digits();
    }
    const char* first = text_.data() + start;
    const char* last = text_.data() + at_;
    const auto read = std::from_chars(first, last, value.number);
    // Too small for a double is read as zero by everyone; too large has no honest value.
    if (read.ec == std::errc::result_out_of_range) {
      bool tiny = false;
      for (const char* c = first; c != last; ++c)
        if (*c == 'e' || *c == 'E') tiny = c[1] == '-';
      if (!tiny) refuse("a number beyond what a double holds");
      value.number = 0;
    } else if (read.ec != std::errc() || read.ptr != last) {
      refuse("a malformed number");
    }
    if (whole) {
      const auto exact = std::from_chars(first, last, value.whole);
      value.integer = exact.ec == std::errc() && exact.ptr == last;
    }
  }

  uint32_t hex4() {
    uint32_t code = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = peek();
      uint32_t digit;
      if (c >= '0' && c <= '9')
        digit = static_cast<uint32_t>(c - '0');
      else if (c >= 'a' && c <= 'f')
        digit = static_cast<uint32_t>(c - 'a' + 10);
      else if (c >= 'A' && c <= 'F')
        digit = static_cast<uint32_t>(c - 'A' + 10);
      else
        refuse("expected four hexadecimal digits after \\u");
      code = code * 16 + digit;
      ++at_;
    }
    return code;
  }

  static void encode(std::string& out, uint32_t code) {
    const auto push = [&](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
    if (code < 0x80) {
      push(code);
    } else if (code < 0x800) {
      push(0xC0 | code >> 6), push(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
      push(0xE0 | code >> 12), push(0x80 | (code >> 6 & 0x3F)), push(0x80 | (code & 0x3F));
    } else {
      push(0xF0 | code >> 18), push(0x80 | (code >> 12 & 0x3F)), push(0x80 | (code >> 6 & 0x3F)),
          push(0x80 | (code & 0x3F));
    }
  }

  void escape(std::string& out) {
    ++at_;
    if (end()) refuse("the text ends within an escape");
    const char c = text_[at_++];
    switch (c) {
      case '"':
        out.push_back('"');
        return;
      case '\\':
        out.push_back('\\');
        return;
      case '/':
        out.push_back('/');
        return;
      case 'b':
        out.push_back('\b');
        return;
      case 'f':
        out.push_back('\f');
        return;
      case 'n':
        out.push_back('\n');
        return;
      case 'r':
        out.push_back('\r');
        return;
      case 't':
        out.push_back('\t');
        return;
      case 'u':
        break;
      default:
        --at_;
        refuse("an unknown escape");
    }
    uint32_t code = hex4();
    if (code >= 0xDC00 && code <= 0xDFFF) refuse("a low surrogate without a high one");
    if (code >= 0xD800 && code <= 0xDBFF) {
      if (text_.substr(at_, 2) != "\\u") refuse("a high surrogate without a low one");
      at_ += 2;
      const uint32_t low = hex4();
      if (low < 0xDC00 || low > 0xDFFF) refuse("a high surrogate without a low one");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    if (code == 0) refuse("text with the character U+0000");  // names cross the C boundary as zero-terminated text
    encode(out, code);
  }

  // One UTF-8 character beyond ASCII: well formed, shortest form, no surrogate, at most U+10FFFF.
  void utf8(std::string& out) {
    const auto byte = [&](size_t i) {
      return at_ + i < text_.size() ? static_cast<unsigned char>(text_[at_ + i]) : 0u;
    };
    const uint32_t lead = byte(0);
    size_t n = 0;
    uint32_t code = 0, smallest = 0;
    if (lead >= 0xC2 && lead <= 0xDF)
      n = 2, code = lead & 0x1F, smallest = 0x80;
    else if (lead >= 0xE0 && lead <= 0xEF)
      n = 3, code = lead & 0x0F, smallest = 0x800;
    else if (lead >= 0xF0 && lead <= 0xF4)
      n = 4, code = lead & 0x07, smallest = 0x10000;
    else
      refuse("text that is not UTF-8");
    for (size_t i = 1; i < n; ++i) {
      if ((byte(i) & 0xC0) != 0x80) refuse("text that is not UTF-8");
      code = code << 6 | (byte(i) & 0x3F);
    }
    if (code < smallest || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) refuse("text that is not UTF-8");
    out.append(text_.substr(at_, n));
    at_ += n;
  }

  std::string parse_string() {
    expect('"');
    std::string out;
    while (true) {
      if (end()) refuse("the text ends within a string");
      const unsigned char c = static_cast<unsigned char>(text_[at_]);
      if (c == '"') {
        ++at_;
        return out;
      }
      if (c == '\\') {
        escape(out);
      } else if (c < 0x20) {
        refuse("a control character within a string");
      } else if (c < 0x80) {
        out.push_back(static_cast<char>(c));
        ++at_;
      } else {
        utf8(out);
      }
    }
  }

  std::string_view text_;
  std::string_view what_;
  const JsonLimits& limits_;
  size_t at_ = 0;
  size_t values_ = 0;
};

}  // namespace

Json parse_json(std::string_view text, std::string_view what, const JsonLimits& limits) {
  return Parser(text, what, limits).document();
}

namespace {

std::string enclose(std::string_view text, char mark) {
  static const char hex[] = "0123456789abcdef";
  std::string out(1, mark);
  for (const char c : text) {
    if (c == mark || c == '\\') {
      out.push_back('\\');
      out.push_back(c);
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out.append("\\u00");
      out.push_back(hex[static_cast<unsigned char>(c) >> 4]);
      out.push_back(hex[c & 15]);
    } else {
      out.push_back(c);
    }
  }
  out.push_back(mark);
  return out;
}

}  // namespace

std::string json_quote(std::string_view text) { return enclose(text, '"'); }

std::string quote(std::string_view text) {
  size_t end = std::min<size_t>(text.size(), 200);
  while (end < text.size() && end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80)
    --end;  // whole characters
  return enclose(end < text.size() ? say(text.substr(0, end), "...") : std::string(text), '\'');
}

}  // namespace fastmtr
