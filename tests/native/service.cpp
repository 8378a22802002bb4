// A service from raw values of a request to ranked items, without Python. See tests/test_capi.py.
#include <cstdio>
#include <string>

#include "fastmtr.hpp"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const fastmtr::Model model(argv[1]);
  const fastmtr::Features features(argv[1]);
  const uint32_t user = features.column(FMTR_REQUEST, "user"), age = features.column(FMTR_REQUEST, "age"),
                 place = features.column(FMTR_REQUEST, "place");

  fastmtr::Values row;
  row.add(user, 104);
  row.add(age, 0.25);
  row.add(place, "home");
  fastmtr::Batch batch;
  batch.whole_catalogue = true;
  features.append(FMTR_REQUEST, row, batch.request_ids, batch.request_dense);
  batch.add_request({});

  fastmtr::Session session(model);
  const fastmtr::Ranking best = session.rank(batch, 5);
  const std::vector<int64_t> keys = model.keys();
  for (uint64_t i = 0; i < best.counts[0]; ++i)
    std::printf("%lld %a\n", static_cast<long long>(keys[best.positions[i]]), double{best.fused[i]});

  row.clear();
  row.add(age, "young");
  try {
    features.append(FMTR_REQUEST, row, batch.request_ids, batch.request_dense);
  } catch (const fastmtr::Exception& error) {
    std::printf("%s\n", error.what());
  }
  std::printf("%d encoded\n", features.counts().find("\"age\": {\"rows\": 2") != std::string::npos);
  return features.describe().empty() ? 3 : 0;
}
