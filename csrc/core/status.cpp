#include "core/status.h"

#include <charconv>

namespace fastmtr {

namespace {
// A copy that allocates could itself fail while reporting that memory is out; a message longer than this is cut.
thread_local char message_of_this_thread[2048] = "";
}  // namespace

namespace detail {
void append(std::string& out, double part) {
  char text[40];
  const auto end = std::to_chars(text, text + sizeof text, part).ptr;
  out.append(text, end);
}
}  // namespace detail

void set_last_error(const char* message) noexcept {
  size_t n = 0;
  while (n + 1 < sizeof message_of_this_thread && message[n] != '\0') {
    message_of_this_thread[n] = message[n];
    ++n;
  }
  if (message[n] != '\0')
    while (n > 0 && (static_cast<unsigned char>(message_of_this_thread[n]) & 0xC0) == 0x80)
      --n;  // whole UTF-8 characters
  message_of_this_thread[n] = '\0';
}

const char* last_error() noexcept { return message_of_this_thread; }

}  // namespace fastmtr
