// Where the time of a call goes, on demand. Without a Profile no clock is read.
#ifndef FASTMTR_CORE_PROFILE_H
#define FASTMTR_CORE_PROFILE_H

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

namespace fastmtr {

class Program;

// `request` and `candidates` are the steps of the plan.
enum class Phase : uint8_t { checks, lookup, request, candidates, fusion, top_k };
constexpr int kPhases = 6;

// Of one thread; sums.
struct Profile {
  struct Times {
    uint64_t calls = 0, rows = 0, nanoseconds = 0;
  };
  explicit Profile(size_t n_steps) : steps(n_steps) {}
  void add(const Profile& other);

  std::vector<Times> steps;  // of the plan
  uint64_t phases[kPhases] = {};
};

// Adds the time until its end to a sum. With NULL in place of a profile it does nothing.
class Stopwatch {
 public:
  explicit Stopwatch(uint64_t* sum) : sum_(sum) {
    if (sum_ != nullptr) start_ = std::chrono::steady_clock::now();
  }
  Stopwatch(Profile* profile, Phase phase)
      : Stopwatch(profile == nullptr ? nullptr : &profile->phases[static_cast<int>(phase)]) {}
  ~Stopwatch() {
    if (sum_ == nullptr) return;
    const auto taken = std::chrono::steady_clock::now() - start_;
    *sum_ += static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(taken).count());
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  uint64_t* sum_;
  std::chrono::steady_clock::time_point start_;
};

// What was run, for the head of the report.
struct Profiled {
  uint64_t repeats, requests, candidates, k, threads, nanoseconds;
};

std::string profile_json(const Profile& profile, const Profiled& what, const Program& program);

}  // namespace fastmtr
#endif
