// The engine over a hand-written bundle: no allocation once warm, and the same bits whatever the threads and tiles.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "bundle.h"
#include "check.h"
#include "core/model.h"
#include "core/session.h"
#include "requests.h"

namespace {
std::atomic<long> allocations{0};

void* allocate(size_t n, size_t align) {
  ++allocations;
  void* at = std::aligned_alloc(align, (n + align - 1) / align * align);
  if (at == nullptr) throw std::bad_alloc();
  return at;
}
}  // namespace

// One of each kind that a library may call; they end in the same free().
void* operator new(size_t n) { return allocate(n, alignof(std::max_align_t)); }
void* operator new[](size_t n) { return allocate(n, alignof(std::max_align_t)); }
void* operator new(size_t n, const std::nothrow_t&) noexcept {
  ++allocations;
  return std::malloc(n);
}
void* operator new(size_t n, std::align_val_t align) { return allocate(n, static_cast<size_t>(align)); }
void* operator new[](size_t n, std::align_val_t align) { return allocate(n, static_cast<size_t>(align)); }
void operator delete(void* at) noexcept { std::free(at); }
void operator delete[](void* at) noexcept { std::free(at); }
void operator delete(void* at, size_t) noexcept { std::free(at); }
void operator delete[](void* at, size_t) noexcept { std::free(at); }
void operator delete(void* at, std::align_val_t) noexcept { std::free(at); }
void operator delete[](void* at, std::align_val_t) noexcept { std::free(at); }
void operator delete(void* at, size_t, std::align_val_t) noexcept { std::free(at); }
void operator delete[](void* at, size_t, std::align_val_t) noexcept { std::free(at); }

namespace {

using namespace fastmtr;

struct Answer {
  std::vector<float> scores, fused, best, vectors;
  std::vector<uint64_t> positions, counts;

  explicit Answer(const Requests& requests)
      : scores(requests.items.size() * 2),
        fused(requests.items.size()),
        best((requests.offsets.size() - 1) * 10 * 2),
        vectors((requests.offsets.size() - 1) * 16),
        positions((requests.offsets.size() - 1) * 10),
        counts(requests.offsets.size() - 1) {}

  void ask(Session& session, const Requests& requests) {
    session.score(requests.batch(), scores.data(), fused.data());
    session.rank(requests.batch(), {10, positions.data(), nullptr, best.data(), counts.data()});
    session.request_output(requests.batch(), "user", vectors.data(), vectors.size());
  }
  bool operator==(const Answer& other) const {
    const auto same = [](const auto& a, const auto& b) {
      return std::memcmp(a.data(), b.data(), a.size() * sizeof a[0]) == 0;
    };
    return same(scores, other.scores) && same(fused, other.fused) && same(best, other.best) &&
           same(vectors, other.vectors) && same(positions, other.positions) && same(counts, other.counts);
  }
};

// The best of the whole catalogue, for one request.
struct WholeCatalogue {
  std::vector<float> places, fused;
  std::vector<uint64_t> positions;
  uint64_t count = 0;
  fmtr_batch batch;

  explicit WholeCatalogue(const Requests& requests)
      : places(TemporaryBundle::kItems * 3, 0.5f), fused(50), positions(50), batch(requests.batch()) {
    batch.n_requests = 1;
    batch.items = nullptr;
    batch.candidate_dense = places.data();
  }
  void rank(Session& session) { session.rank(batch, {50, positions.data(), fused.data(), nullptr, &count}); }
};

void test_bits(TemporaryBundle& bundle, const std::shared_ptr<const Model>& model) {
  const std::vector<uint64_t> shapes[] = {
      {1}, {2000}, {0, 700, 3}, std::vector<uint64_t>(40, 9), {50, 1, 400, 0, 64, 63, 65, 7, 512}};
  for (const auto& counts : shapes) {
    const Requests requests(bundle, counts);
    Answer expected(requests);
    Session plain(model, 1, 0);
    expected.ask(plain, requests);
    for (const uint32_t threads : {1u, 2u, 3u, 8u})
      for (const uint32_t tile : {0u, 1u, 13u, 64u, 4096u}) {
        if (tile == 1 && threads > 2) continue;
        Session session(model, threads, tile);
        Answer found(requests);
        found.ask(session, requests);
        check(found == expected, say(counts.size(), " requests, ", threads, " threads, tile ", tile, ": other bits"));
      }
  }
}

void test_allocations(TemporaryBundle& bundle, const std::shared_ptr<Model>& model) {
  const Requests large(bundle, {900, 3, 0, 250}), small(bundle, {17, 60}), many(bundle, std::vector<uint64_t>(30, 20));
  for (const uint32_t threads : {1u, 3u}) {
    Session session(model, threads, 0);
    Answer a(large), b(small), c(many);
    WholeCatalogue whole(large);
    a.ask(session, large);
    b.ask(session, small);
    c.ask(session, many);
    whole.rank(session);
    const auto warm = [&](const char* when) {
      const long before = allocations;
      for (int i = 0; i < 5; ++i) {
        a.ask(session, large);
        b.ask(session, small);
        c.ask(session, many);
        whole.rank(session);
      }
      const long during = allocations - before;
      check(during == 0, say(threads, " threads, ", when, ": ", during, " allocations in warm calls, expected none"));
    };
    warm("as loaded");
    const std::vector<float> dense = bundle.floats(7 * TemporaryBundle::kItemWidth);
    model->upsert({sizeof(fmtr_catalogue_data), 7, bundle.keys.data() + 100, nullptr, dense.data()});
    warm("with changed items");
    session.profile(small.batch(), 3, 2);
    warm("after a profile");
  }
}

void test_sessions_of_many_threads(TemporaryBundle& bundle, const std::shared_ptr<Model>& model) {
  const Requests requests(bundle, {300, 20});
  Answer expected(requests);
  Session plain(model, 1, 0);
  expected.ask(plain, requests);
  std::vector<int64_t> keys(TemporaryBundle::kItems);
  model->read_keys(keys.data(), keys.size());
  std::vector<float> items(keys.size() * TemporaryBundle::kItemWidth);
  model->read([&](const Catalogue* catalogue) {
    Context context;
    catalogue->bind(context);
    std::copy_n(context.item_dense, items.size(), items.data());
  });
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t)
    threads.emplace_back([&] {
      Session session(model, 1, 0);
      Answer found(requests);
      for (int i = 0; i < 20; ++i) {
        found.ask(session, requests);
        wrong += !(found == expected);
      }
    });
  for (int i = 0; i < 10; ++i) {  // replaced by an equal one while they score
    const fmtr_catalogue_data data{sizeof data, keys.size(), keys.data(), nullptr, items.data()};
    model->set_catalogue(data);
  }
  for (std::thread& thread : threads) thread.join();
  check(wrong == 0, say(wrong.load(), " answers changed while the catalogue was replaced by an equal one"));
}

void test_refusals(TemporaryBundle& bundle, const std::shared_ptr<const Model>& model) {
  Requests requests(bundle, {5});
  Session session(model, 2, 0);
  std::vector<float> scores(10);
  const auto score = [&] { session.score(requests.batch(), scores.data(), nullptr); };
  requests.ids[3] = 50;
  refuses(FMTR_ERROR_SCHEMA, "input 'history', request row 0, position 3: id 50 is out of range, expected 0 .. 49",
          score);
  requests.ids[3] = 1;
  requests.dense[29] = std::numeric_limits<float>::infinity();
  refuses(FMTR_ERROR_SCHEMA, "input 'profile', request row 0, position 29: infinity found", score);
  requests.dense[29] = 0;
  requests.items[4] = 1;
  refuses(FMTR_ERROR_SCHEMA, "item 1 (candidate 4) is not in the catalogue of 6000 items", score);
  requests.items[4] = bundle.keys[0];
  score();
  refuses(FMTR_ERROR_BUNDLE, "is no bundle", [] { Model("/nonexistent", nullptr, false); });
  refuses(FMTR_ERROR_BACKEND, "'mmx', which is not known", [&] { Model(bundle.path(), "mmx", false); });
}

}  // namespace

int main() {
  TemporaryBundle bundle;
  for (const char* isa : {"baseline", static_cast<const char*>(nullptr)}) {
    const auto model = std::make_shared<Model>(bundle.path(), isa, false);
    test_bits(bundle, model);
    test_allocations(bundle, model);
    test_sessions_of_many_threads(bundle, model);
    test_refusals(bundle, model);
  }
  return finish();
}
