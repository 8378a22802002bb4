// Counting checks, without a framework.
#ifndef FASTMTR_TESTS_CHECK_H
#define FASTMTR_TESTS_CHECK_H

#include <cstdio>
#include <string>

#include "core/status.h"

inline int passed = 0, failed = 0;

inline void check(bool ok, const std::string& what) {
  ++(ok ? passed : failed);
  if (!ok && failed <= 40) std::printf("FAILED: %s\n", what.c_str());
}

// The body must throw that status with a message that has the text in it.
template <class Body>
void refuses(fmtr_status status, const std::string& text, const Body& body) {
  try {
    body();
    check(false, "nothing was refused, expected: " + text);
  } catch (const fastmtr::Error& error) {
    check(error.status() == status && std::string(error.what()).find(text) != std::string::npos,
          std::string(error.what()) + "; expected: " + text);
  }
}

inline int finish() {
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}

#endif
