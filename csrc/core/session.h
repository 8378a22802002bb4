// One thread's workspace over a model: all memory that a call needs, made once and grown only for a larger call than
// ever.
#ifndef FASTMTR_CORE_SESSION_H
#define FASTMTR_CORE_SESSION_H

#include <atomic>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "core/arena.h"
#include "core/model.h"
#include "core/thread_pool.h"

namespace fastmtr {

struct RankResult {
  uint64_t k;
  uint64_t* positions;
  float* fused;
  float* scores;
  uint64_t* counts;
};

class Session {
 public:
  Session(std::shared_ptr<const Model> model, uint32_t threads, uint32_t tile);
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Each refuses with FMTR_ERROR_ARGUMENT while another thread is in a call of this session.
  void score(const fmtr_batch& batch, float* scores, float* fused);
  void rank(const fmtr_batch& batch, const RankResult& result);
  void request_output(const fmtr_batch& batch, std::string_view name, float* values, uint64_t capacity);

 private:
  struct Worker {
    Aligned<float> request_tile, tile, tile_scores, scores, fused;
    Aligned<uint32_t> gather;
    Aligned<uint64_t> best;
    Aligned<Rows> scratch;
  };

  // A call's batch after its checks.
  struct Call {
    const fmtr_batch* batch;
    std::shared_ptr<const Catalogue> catalogue;
    bool whole_catalogue;
    const float* fusion_weights;
    uint64_t total, most;  // candidates: in all, of the largest request
    const uint32_t* rows;  // catalogue rows of all candidates; NULL: candidates are the catalogue, or need no row
    bool unknown;          // some of rows are kNoRow
    uint64_t begin(uint64_t request) const { return whole_catalogue ? request * most : batch->offsets[request]; }
    uint64_t count(uint64_t request) const { return begin(request + 1) - begin(request); }
  };

  Call check(const fmtr_batch& batch);
  void check_requests(const fmtr_batch& batch) const;
  Context context(const Call& call, Worker& worker) const;

  bool by_request(const Call& call) const;
  // Runs the request phase for all requests, block by block, then for each request `each(request, worker, score_into)`,
  // where score_into(scores, fused) scores its candidates.
  template <class Each>
  void for_each_request(const Call& call, const Each& each);
  void score_tile(const Call& call, Context context, Worker& worker, uint64_t request, uint64_t first, uint64_t n,
                  float* scores, float* fused);
  void rank_one(const Call& call, Worker& worker, uint64_t request, const RankResult& result) const;

  std::shared_ptr<const Model> model_;
  std::vector<Port> tasks_;
  size_t tile_;
  std::vector<Worker> workers_;
  std::optional<ThreadPool> pool_;
  Aligned<uint32_t> rows_;
  std::atomic_flag in_use_;
};

}  // namespace fastmtr
#endif
