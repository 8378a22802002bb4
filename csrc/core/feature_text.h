// Texts of features: whether bytes are UTF-8, their words, their parts.
#ifndef FASTMTR_CORE_FEATURE_TEXT_H
#define FASTMTR_CORE_FEATURE_TEXT_H

#include <cstdint>
#include <string_view>
#include <vector>

namespace fastmtr {

// Well-formed UTF-8 without surrogates.
bool is_utf8(std::string_view text);

// Without the white space (as Python's str.strip knows it) at both ends. Of valid UTF-8.
std::string_view stripped(std::string_view text);

// The words of a text in lower case, with one space between them: word i is text[begins[i], ends[i]), and an n-gram is
// a range from a word's beginning to another's end. Keeps its memory from text to text.
struct Words {
  std::vector<char> text;
  std::vector<uint64_t> begins, ends;

  void read(std::string_view given);  // valid UTF-8

  // Calls each(n-gram): of all that begin at the first word, then the second; the shortest first.
  template <class Each>
  void for_each(uint64_t ngrams, const Each& each) const {
    for (size_t i = 0; i < begins.size(); ++i)
      for (size_t last = i; last < begins.size() && last - i < ngrams; ++last)
        each(std::string_view(text.data() + begins[i], ends[last] - begins[i]));
  }
};

}  // namespace fastmtr
#endif
