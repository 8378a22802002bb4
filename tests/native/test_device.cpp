// A device's plugin, as it is built for the host: the CPU's answers, whatever the order of the threads. Under
// AddressSanitizer each access beyond memory of the device or of a block, and each by the host, ends the process.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <vector>

#include "bundle.h"
#include "check.h"
#include "core/model.h"
#include "core/session.h"
#include "requests.h"

namespace {

using namespace fastmtr;

struct Answer {
  std::vector<float> scores, fused, best, vectors;
  std::vector<uint64_t> positions, counts;
  bool operator==(const Answer&) const = default;
};

Answer ask(const std::shared_ptr<const Model>& model, const Requests& call, uint64_t k, uint32_t tile = 0) {
  Session session(model, 1, tile);
  const uint64_t n = call.offsets.size() - 1, total = call.items.size();
  Answer answer{std::vector<float>(total * 2), std::vector<float>(total),    std::vector<float>(n * k * 2),
                std::vector<float>(n * 16),    std::vector<uint64_t>(n * k), std::vector<uint64_t>(n)};
  session.score(call.batch(), answer.scores.data(), answer.fused.data());
  session.rank(call.batch(), {k, answer.positions.data(), nullptr, answer.best.data(), answer.counts.data()});
  session.request_output(call.batch(), "user", answer.vectors.data(), answer.vectors.size());
  for (std::vector<float>* numbers : {&answer.scores, &answer.fused, &answer.best})
    for (float& x : *numbers)
      if (std::isnan(x)) x = -1;  // equal to itself
  return answer;
}

double difference(const std::vector<float>& a, const std::vector<float>& b) {
  double most = 0;
  for (size_t i = 0; i < a.size(); ++i) most = std::max(most, std::abs(double{a[i]} - double{b[i]}));
  return most;
}

std::shared_ptr<Model> on_device(const TemporaryBundle& bundle, DevicePrecision precision) {
  return std::make_shared<Model>(bundle.path(), nullptr, false, precision, *choose_device("cuda-host"));
}

void test_answers(TemporaryBundle& bundle, const std::shared_ptr<const Model>& cpu) {
  Requests call(bundle, {70, 0, 1, 5, 130, 2, 0});
  call.items[3] = call.items[80] = -1;  // not there
  call.unknown_items = FMTR_UNKNOWN_SKIP;
  const Answer expected = ask(cpu, call, 100);
  struct {
    DevicePrecision precision;
    double bound;
  } const cases[] = {{DevicePrecision::fp32, 1e-6},
                     {DevicePrecision::tf32, 1e-3},
                     {DevicePrecision::fp16, 1e-3},
                     {DevicePrecision::bf16, 1e-2}};
  for (const auto& [precision, bound] : cases) {
    const std::string what = precision_name(precision);
    const auto device = on_device(bundle, precision);
    const Answer found = ask(device, call, 100);
    check(difference(expected.scores, found.scores) < bound, what + ": scores");
    check(difference(expected.fused, found.fused) < bound, what + ": fused scores");
    check(difference(expected.vectors, found.vectors) < 1e-6, what + ": a request's vector");
    check(expected.counts == found.counts, what + ": counts");
    if (precision == DevicePrecision::fp32) check(expected.positions == found.positions, what + ": lists");
    for (const uint32_t tile : {1u, 17u, 64u}) check(found == ask(device, call, 100, tile), what + ": bits, by tile");
    for (const char* order : {"reverse", "random:7"}) {
      ::setenv("FASTMTR_CUDA_HOST_ORDER", order, 1);
      check(found == ask(device, call, 100), what + ": bits, threads in the order " + order);
      ::unsetenv("FASTMTR_CUDA_HOST_ORDER");
    }
  }
}

void test_whole_catalogue(TemporaryBundle& bundle, const std::shared_ptr<const Model>& cpu) {
  const auto device = on_device(bundle, DevicePrecision::fp32);
  const Requests call(bundle, {1});
  const std::vector<float> places(TemporaryBundle::kItems * 3, 0.5f);
  const auto best = [&](const std::shared_ptr<const Model>& model) {
    fmtr_batch batch = call.batch();
    batch.items = nullptr;
    batch.candidate_dense = places.data();
    std::vector<uint64_t> positions(2000), count(1);
    Session session(model, 1, 0);
    session.rank(batch, {2000, positions.data(), nullptr, nullptr, count.data()});
    return positions;
  };
  check(best(cpu) == best(device), "the best of the whole catalogue");
}

void test_changes(TemporaryBundle& bundle) {
  const auto cpu = std::make_shared<Model>(bundle.path(), nullptr, false, Precision::fp32);
  const auto device = on_device(bundle, DevicePrecision::fp32);
  Requests call(bundle, {40, 40});
  call.unknown_items = FMTR_UNKNOWN_SKIP;
  for (int round = 0; round < 3; ++round) {
    std::vector<int64_t> keys(call.items.begin(), call.items.begin() + 20);
    std::sort(keys.begin(), keys.end());
    keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
    for (int64_t i = 0; i < 30; ++i) keys.push_back(1'000'000'000 + 100 * round + i);
    const std::vector<float> dense = bundle.floats(keys.size() * TemporaryBundle::kItemWidth);
    const fmtr_catalogue_data data{sizeof data, keys.size(), keys.data(), nullptr, dense.data()};
    std::copy(keys.end() - 30, keys.end(), call.items.begin() + 40);
    for (const auto& model : {cpu, device}) {
      model->upsert(data);
      model->remove(keys.data() + 5, 10);
    }
    const Answer expected = ask(cpu, call, 10), found = ask(device, call, 10);
    check(difference(expected.fused, found.fused) < 1e-6, "scores after a change of the catalogue");
    check(expected.positions == found.positions, "lists after a change of the catalogue");
  }
}

void test_refusals(TemporaryBundle& bundle) {
  refuses(FMTR_ERROR_BACKEND, "device must be", [] { choose_device("tpu"); });
  const auto device = on_device(bundle, DevicePrecision::bf16);
  const Requests call(bundle, {3});
  Session session(device, 1, 0);
  refuses(FMTR_ERROR_BACKEND, "profile", [&] { session.profile(call.batch(), 0, 1); });
  std::vector<uint64_t> positions(1), counts(1);
  refuses(FMTR_ERROR_BACKEND, "fp32", [&] {
    session.rank_certified(call.batch(), {1, positions.data(), nullptr, nullptr, counts.data()}, {{0, 2}, nullptr});
  });
}

}  // namespace

int main() {
  TemporaryBundle bundle;
  const auto cpu = std::make_shared<const Model>(bundle.path(), nullptr, false, Precision::fp32);
  test_answers(bundle, cpu);
  test_whole_catalogue(bundle, cpu);
  test_changes(bundle);
  test_refusals(bundle);
  return finish();
}
