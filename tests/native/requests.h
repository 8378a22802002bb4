// Requests to the model of bundle.h.
#ifndef FASTMTR_TESTS_REQUESTS_H
#define FASTMTR_TESTS_REQUESTS_H

#include <cstdint>
#include <vector>

#include "bundle.h"
#include "fastmtr.h"

// Requests with candidates drawn from the catalogue.
struct Requests {
  std::vector<int32_t> ids;
  std::vector<float> dense, places;
  std::vector<uint64_t> offsets{0};
  std::vector<int64_t> items;
  fmtr_unknown_items unknown_items = FMTR_UNKNOWN_ERROR;

  Requests(TemporaryBundle& bundle, const std::vector<uint64_t>& counts)
      : ids(bundle.ids(counts.size() * TemporaryBundle::kHistory)),
        dense(bundle.floats(counts.size() * TemporaryBundle::kRequestWidth)) {
    for (const uint64_t n : counts) {
      for (uint64_t i = 0; i < n; ++i) items.push_back(bundle.keys[bundle.random() % bundle.keys.size()]);
      offsets.push_back(items.size());
    }
    places = bundle.floats(items.size() * 3);
  }

  fmtr_batch batch() const {
    fmtr_batch batch{};
    batch.struct_size = sizeof batch;
    batch.n_requests = offsets.size() - 1;
    batch.request_ids = ids.data();
    batch.request_dense = dense.data();
    batch.offsets = offsets.data();
    batch.items = items.data();
    batch.candidate_dense = places.data();
    batch.unknown_items = unknown_items;
    return batch;
  }
};

#endif
