// The same service as embed.c, in C++17 over fastmtr.hpp. See tests/test_capi.py.
#include <cstdio>
#include <fstream>
#include <string>

#include "fastmtr.hpp"

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  fastmtr::Model loaded(argv[1]);
  fastmtr::Model model = std::move(loaded);
  fastmtr::Session session(model, 2);
  std::printf("fastmtr %s, %d tasks, %d items\n", fmtr_version(), static_cast<int>(model.n_tasks()),
              static_cast<int>(model.n_items()));

  std::ifstream file(argv[2]);
  const auto number = [&] {
    std::string text;
    file >> text;
    return std::stod(text);
  };
  fastmtr::Batch batch;
  const auto requests = static_cast<int>(number()), candidates = static_cast<int>(number());
  for (int i = 0; i < requests * 7; ++i) batch.request_ids.push_back(static_cast<int32_t>(number()));
  for (int i = 0; i < requests * 3; ++i) batch.request_dense.push_back(static_cast<float>(number()));
  std::vector<int> offsets;
  for (int i = 0; i <= requests; ++i) offsets.push_back(static_cast<int>(number()));
  for (int r = 0; r < requests; ++r) {
    std::vector<int64_t> items;
    for (int i = offsets[r]; i < offsets[r + 1]; ++i) items.push_back(static_cast<int64_t>(number()));
    batch.add_request(items);
  }
  for (int i = 0; i < candidates; ++i) batch.candidate_ids.push_back(static_cast<int32_t>(number()));
  for (int i = 0; i < candidates; ++i) batch.candidate_dense.push_back(static_cast<float>(number()));

  const fastmtr::Scores scored = session.score(batch);
  for (int i = 0; i < candidates; ++i)
    std::printf("%a %a %a\n", double{scored.scores[2 * i]}, double{scored.scores[2 * i + 1]}, double{scored.fused[i]});
  const fastmtr::Ranking best = session.rank(batch, 2);
  for (int r = 0; r < requests; ++r)
    std::printf("%d %d %d\n", static_cast<int>(best.counts[r]), static_cast<int>(best.positions[2 * r]),
                static_cast<int>(best.positions[2 * r + 1]));

  // At fp32 a certified list is the list, and nothing is scored twice.
  const fastmtr::CertifiedRanking certified = session.rank_certified(batch, 2, 0.5f);
  if (certified.positions != best.positions || certified.rescored[0] != 0) return 4;
  for (const float error : session.precision_errors(batch))
    if (error != 0) return 5;

  const auto report = [](const auto& body) {
    try {
      body();
    } catch (const fastmtr::Exception& error) {
      std::printf("%s\n", error.what());
    }
  };
  batch.items[0] = 123456789;
  report([&] { session.score(batch); });
  report([] { fastmtr::Model("/nonexistent"); });

  const auto keys = model.keys();
  model.upsert({keys[3], 424242}, {1, 2}, {0.5f, 0.25f, 0.125f, 1.0f});
  std::printf("version %d, %d items, row 3 %s, last %d\n", static_cast<int>(model.catalogue_version()),
              static_cast<int>(model.n_items()), model.keys()[3] == keys[3] ? "kept" : "moved",
              static_cast<int>(model.keys().back()));
  const uint64_t deleted = model.erase({keys[0], -77});
  std::printf("%d deleted, %d vectors\n", static_cast<int>(deleted),
              static_cast<int>(model.item_output("item_vector", 4).size()) / 4);
  batch.items[0] = keys[3];
  batch.catalogue_version = 1;
  report([&] { session.score(batch); });

  batch.catalogue_version = 0;
  const std::string plan = model.explain(), times = session.profile(batch, 2, 3);
  std::printf("explained %d, profiled %d\n", plan.find("\"flops\"") != std::string::npos,
              times.find("\"repeats\": 3, \"requests\": 2, \"candidates\": 5, \"k\": 2") != std::string::npos);
  fastmtr::Batch whole;
  whole.whole_catalogue = true;
  whole.request_ids.assign(batch.request_ids.begin(), batch.request_ids.begin() + 7);
  whole.request_dense.assign(batch.request_dense.begin(), batch.request_dense.begin() + 3);
  whole.add_request({});
  whole.candidate_ids.resize(model.n_items());
  whole.candidate_dense.resize(model.n_items());
  std::printf("%d scores of the whole catalogue, %d numbers of a user\n",
              static_cast<int>(session.score(whole).fused.size()),
              static_cast<int>(session.request_output(whole, "user_vector", 4).size()));

  fastmtr::Batch nothing;  // no candidates must not mean the whole catalogue
  nothing.request_ids.resize(7);
  nothing.request_dense.resize(3);
  nothing.add_request({});
  return session.score(nothing).fused.empty() && session.rank(nothing, 3).counts[0] == 0 ? 0 : 3;
}
