// A catalogue that changes: every version scores like a catalogue that was made of its items at once, also while other
// threads score, and slots are used again once nobody reads them.
#include <algorithm>
#include <atomic>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "bundle.h"
#include "check.h"
#include "core/model.h"
#include "core/session.h"

namespace {

using namespace fastmtr;

constexpr size_t kWidth = TemporaryBundle::kItemWidth;
constexpr size_t kTasks = 2;

// Items in row order.
struct Items {
  std::vector<int64_t> keys;
  std::vector<float> dense;

  void add(int64_t key, const std::vector<float>& values) {
    keys.push_back(key);
    dense.insert(dense.end(), values.begin(), values.end());
  }
  // What an upsert is documented to do.
  void upsert(const Items& with) {
    for (size_t i = 0; i < with.keys.size(); ++i) {
      const std::vector<float> values(with.dense.begin() + static_cast<ptrdiff_t>(i * kWidth),
                                      with.dense.begin() + static_cast<ptrdiff_t>((i + 1) * kWidth));
      const auto at = std::find(keys.begin(), keys.end(), with.keys[i]);
      if (at == keys.end())
        add(with.keys[i], values);
      else
        std::copy(values.begin(), values.end(), dense.begin() + (at - keys.begin()) * static_cast<ptrdiff_t>(kWidth));
    }
  }
  void remove(const std::vector<int64_t>& gone) {
    Items left;
    for (size_t i = 0; i < keys.size(); ++i)
      if (std::find(gone.begin(), gone.end(), keys[i]) == gone.end())
        left.add(keys[i], {dense.begin() + static_cast<ptrdiff_t>(i * kWidth),
                           dense.begin() + static_cast<ptrdiff_t>((i + 1) * kWidth)});
    *this = left;
  }
  fmtr_catalogue_data data() const {
    return {sizeof(fmtr_catalogue_data), keys.size(), keys.data(), nullptr, dense.data()};
  }
};

// One request for all items that were ever made, or for the whole catalogue.
struct Request {
  std::vector<int32_t> ids;
  std::vector<float> dense, places;
  std::vector<int64_t> keys;
  std::vector<uint64_t> offsets;

  Request(TemporaryBundle& bundle, const std::vector<int64_t>& keys)
      : ids(bundle.ids(TemporaryBundle::kHistory)),
        dense(bundle.floats(TemporaryBundle::kRequestWidth)),
        places(keys.size() * 3, 0.25f),
        keys(keys),
        offsets{0, keys.size()} {}

  std::vector<float> by_key(Session& session) const {
    fmtr_batch batch = this->batch();
    batch.offsets = offsets.data();
    batch.items = keys.data();
    batch.unknown_items = FMTR_UNKNOWN_SKIP;
    std::vector<float> scores(keys.size() * kTasks);
    session.score(batch, scores.data(), nullptr);
    return scores;
  }
  // Throws FMTR_ERROR_STALE if the catalogue is no longer that version.
  std::vector<float> whole(Session& session, uint64_t n_items, uint64_t version) const {
    fmtr_batch batch = this->batch();
    batch.catalogue_version = version;
    std::vector<float> scores(n_items * kTasks);
    session.score(batch, scores.data(), nullptr);
    return scores;
  }

 private:
  fmtr_batch batch() const {
    fmtr_batch batch{};
    batch.struct_size = sizeof batch;
    batch.n_requests = 1;
    batch.request_ids = ids.data();
    batch.request_dense = dense.data();
    batch.candidate_dense = places.data();
    return batch;
  }
};

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

uint64_t version_of(const Model& model) {
  return model.read([](const Catalogue* catalogue) { return catalogue == nullptr ? 0 : catalogue->version(); });
}

// What a model says of its catalogue, by rows and by keys.
struct View {
  std::vector<int64_t> keys;
  std::vector<float> part, whole, by_key;

  View(const std::shared_ptr<Model>& model, const Request& request, uint64_t n_items)
      : keys(n_items), part(n_items * 132) {
    model->read_keys(keys.data(), n_items);
    model->read_item_output("part", nullptr, 0, part.data(), part.size());
    Session session(model, 1, 0);
    whole = request.whole(session, n_items, version_of(*model));
    by_key = request.by_key(session);
  }
  bool operator==(const View& other) const {
    return keys == other.keys && same(part, other.part) && same(whole, other.whole) && same(by_key, other.by_key);
  }
};

std::shared_ptr<Model> load(const TemporaryBundle& bundle) {
  return std::make_shared<Model>(bundle.path(), nullptr, true, Precision::fp32);
}

void test_changes(TemporaryBundle& bundle) {
  const auto model = load(bundle), fresh = load(bundle);
  const std::vector<int64_t> all(bundle.keys.begin(), bundle.keys.begin() + 400);
  const Request request(bundle, all);
  std::mt19937 random(11);
  Items expected;
  uint64_t version = 0;
  for (int i = 0; i < 60; ++i) {
    std::vector<int64_t> keys(all);
    std::shuffle(keys.begin(), keys.end(), random);
    keys.resize(random() % (i % 10 == 0 ? 400 : 30));
    if (i % 3 == 2) {
      const uint64_t before = expected.keys.size();
      expected.remove(keys);
      const uint64_t removed = model->remove(keys.data(), keys.size());
      check(removed == before - expected.keys.size(), "how many were deleted");
      check(version_of(*model) == version + (removed > 0), "a delete of nothing makes no version");
    } else {
      Items items;
      for (const int64_t key : keys) items.add(key, bundle.floats(kWidth));
      expected.upsert(items);
      model->upsert(items.data());
      check(version_of(*model) == version + 1, "each change is the next version");
    }
    version = version_of(*model);
    fresh->set_catalogue(expected.data());
    check(View(model, request, expected.keys.size()) == View(fresh, request, expected.keys.size()),
          say("change ", i, ": the catalogue differs from one made of its ", expected.keys.size(), " items"));
  }
  const auto bytes = [&] { return model->read([](const Catalogue* catalogue) { return catalogue->bytes(); }); };
  const uint64_t before = bytes();
  for (int i = 0; i < 300; ++i) model->upsert(expected.data());
  check(bytes() <= before * 3 / 2, say("300 times the same items: ", before, " bytes became ", bytes()));
}

// More slots than the first store has, since an old version is read all the time.
void test_old_versions_live(TemporaryBundle& bundle) {
  const auto model = std::make_shared<Model>(bundle.path(), nullptr, false, Precision::fp32), fresh = load(bundle);
  std::vector<float> before(TemporaryBundle::kItems * 132), again(before.size());
  model->read_item_output("part", nullptr, 0, before.data(), before.size());
  Items items;
  {
    CatalogueVersions::Reader reader(model->catalogues());
    const CatalogueVersions::Snapshot snapshot(reader);
    for (int i = 0; i < 5; ++i) {
      items = {};
      for (const int64_t key : bundle.keys) items.add(key, bundle.floats(kWidth));
      model->upsert(items.data());
    }
    snapshot.get()->read(model->program().port(model->plan().output("part", Role::item).operand, Domain::item),
                         again.data());
    check(same(before, again) && snapshot.get()->version() == 1, "a version that is read changed");
  }
  fresh->set_catalogue(items.data());
  const Request request(bundle, bundle.keys);
  check(View(model, request, items.keys.size()) == View(fresh, request, items.keys.size()),
        "after a move to a larger store");
}

void test_refusals(TemporaryBundle& bundle) {
  const auto model = std::make_shared<Model>(bundle.path(), nullptr, false, Precision::fp32);
  const Request request(bundle, bundle.keys);
  const View before(model, request, TemporaryBundle::kItems);
  Items items;
  items.add(1, bundle.floats(kWidth));
  items.add(bundle.keys[7], bundle.floats(kWidth));
  items.add(1, bundle.floats(kWidth));
  refuses(FMTR_ERROR_SCHEMA, "item key 1 stands twice, in rows 0 and 2", [&] { model->upsert(items.data()); });
  items.keys[2] = 2;
  items.dense[kWidth * 2 + 5] = std::numeric_limits<float>::quiet_NaN();
  refuses(FMTR_ERROR_SCHEMA, "input 'item', item row 2, position 5: NaN found", [&] { model->upsert(items.data()); });
  check(View(model, request, TemporaryBundle::kItems) == before && version_of(*model) == 1,
        "a refused change changes nothing");
  Session session(model, 1, 0);
  // A version that is made but not published, as where its rows do not reach a device, gives its slots back.
  items.dense[kWidth * 2 + 5] = 0.0f;
  const Catalogue& current = *model->catalogues().current();
  for (int i = 0; i < 10000; ++i) current.with(items.data());
  check(View(model, request, TemporaryBundle::kItems) == before && current.has_room(items.keys.size()),
        "versions that nobody saw take no room");
  refuses(FMTR_ERROR_STALE, "the catalogue is version 1, the call expects version 2",
          [&] { request.whole(session, TemporaryBundle::kItems, 2); });
}

// What one model computed is of no use to another, even one of the same bundle.
void test_of_another_model(TemporaryBundle& bundle) {
  const auto model = load(bundle), other = load(bundle);
  Items items;
  for (size_t i = 0; i < 10; ++i) items.add(bundle.keys[i], bundle.floats(kWidth));
  model->catalogues().publish(Catalogue::copy(items.data(), other->plan(), other->program()), 1);
  const Request request(bundle, items.keys);
  Session session(model, 1, 0);
  refuses(FMTR_ERROR_INTERNAL, "computed by another model", [&] { request.by_key(session); });
}

// Four states that follow one another again and again while three threads score.
void test_threads(TemporaryBundle& bundle) {
  constexpr int kStates = 4;
  const std::vector<int64_t> all(bundle.keys.begin(), bundle.keys.begin() + 200);
  const std::vector<int64_t> tail(all.begin() + 120, all.end());
  const Request request(bundle, all);
  Items states[kStates], step[kStates];
  for (int s = 0; s < kStates; ++s) {
    if (s > 0) states[s] = states[s - 1];
    for (size_t i = 0; i < all.size(); ++i)
      if (s == 0 || i % 3 != 0) step[s].add(all[i], bundle.floats(kWidth));
    if (s == 2) {
      states[s].remove(tail);
    } else {
      states[s].upsert(step[s]);
    }
  }
  std::vector<View> views;
  for (const Items& state : states) {
    const auto fresh = load(bundle);
    fresh->set_catalogue(state.data());
    views.emplace_back(fresh, request, state.keys.size());
  }
  const auto model = load(bundle);
  model->set_catalogue(states[0].data());
  std::atomic<bool> done{false};
  std::atomic<int> wrong{0}, scored{0};
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < 3; ++t)
    threads.emplace_back([&, t] {
      Session session(model, t == 2 ? 2 : 1, 0);
      while (!done || scored < 100) {
        const std::vector<float> found = request.by_key(session);
        wrong += std::none_of(views.begin(), views.end(), [&](const View& view) { return same(view.by_key, found); });
        const uint64_t version = version_of(*model);
        try {
          const View& view = views[(version - 1) % kStates];
          wrong += !same(view.whole, request.whole(session, view.keys.size(), version));
        } catch (const Error& error) {
          wrong += error.status() != FMTR_ERROR_STALE;
        }
        ++scored;
      }
    });
  for (int i = 1; i < 400; ++i) {
    const int s = i % kStates;
    if (s == 0)
      model->set_catalogue(states[0].data());
    else if (s == 2)
      model->remove(tail.data(), tail.size());
    else
      model->upsert(step[s].data());
  }
  done = true;
  for (std::thread& thread : threads) thread.join();
  check(wrong == 0, say(wrong.load(), " of ", scored.load(), " answers are of no version"));
  check(version_of(*model) == 400, "400 versions");
}

}  // namespace

int main() {
  TemporaryBundle bundle;
  test_changes(bundle);
  test_old_versions_live(bundle);
  test_refusals(bundle);
  test_of_another_model(bundle);
  test_threads(bundle);
  return finish();
}
