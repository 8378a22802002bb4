// Errors inside the engine are exceptions; at the C boundary they become a status and this thread's message.
#ifndef FASTMTR_CORE_STATUS_H
#define FASTMTR_CORE_STATUS_H

#include <concepts>
#include <stdexcept>
#include <string>
#include <string_view>

#include "fastmtr.h"

namespace fastmtr {

class Error : public std::runtime_error {
 public:
  Error(fmtr_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
  fmtr_status status() const noexcept { return status_; }

 private:
  fmtr_status status_;
};

namespace detail {
inline void append(std::string& out, std::string_view part) { out.append(part); }
inline void append(std::string& out, char part) { out.push_back(part); }
void append(std::string& out, double part);  // the shortest text that reads back as the same number
template <std::integral Number>
void append(std::string& out, Number part) {
  out.append(std::to_string(part));
}
}  // namespace detail

// The parts one after another, numbers as text.
template <class... Parts>
std::string say(const Parts&... parts) {
  std::string out;
  (detail::append(out, parts), ...);
  return out;
}

template <class... Parts>
[[noreturn]] void fail(fmtr_status status, const Parts&... parts) {
  throw Error(status, say(parts...));
}

void set_last_error(const char* message) noexcept;
const char* last_error() noexcept;

// Runs `body`; whatever it throws becomes a status, so that nothing leaves through the C boundary.
template <class Body>
fmtr_status guard(Body&& body) noexcept {
  try {
    body();
    return FMTR_OK;
  } catch (const Error& error) {
    set_last_error(error.what());
    return error.status();
  } catch (const std::bad_alloc&) {
    set_last_error("out of memory");
    return FMTR_ERROR_MEMORY;
  } catch (const std::length_error& error) {
    set_last_error("out of memory: a size is beyond what this machine can address");
    return FMTR_ERROR_MEMORY;
  } catch (const std::exception& error) {
    set_last_error(error.what());
    return FMTR_ERROR_INTERNAL;
  } catch (...) {
    set_last_error("an exception of unknown type");
    return FMTR_ERROR_INTERNAL;
  }
}

}  // namespace fastmtr
#endif
