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
#include "core/certified.h"
#include "core/device_model.h"
#include "core/model.h"
#include "core/profile.h"
#include "core/thread_pool.h"

namespace fastmtr {

struct RankResult {
  uint64_t k;
  uint64_t* positions;
  float* fused;
  float* scores;
  uint64_t* counts;
};

// Candidates' items that lie on the device, and where the results go: see DeviceCall.
struct DeviceItemsCall {
  const int64_t* items;
  bool are_rows, results_on_device;
  bool wait_for_stream;
  void* stream;
  int64_t* list_items;
};

struct Certify {
  Width width;
  uint64_t* rescored;  // [requests] or NULL
};

class Session {
 public:
  Session(std::shared_ptr<const Model> model, uint32_t threads, uint32_t tile);
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Each refuses with FMTR_ERROR_ARGUMENT while another thread is in a call of this session.
  void score(const fmtr_batch& batch, float* scores, float* fused);
  void rank(const fmtr_batch& batch, const RankResult& result);
  // The list that fp32 gives, whatever the model's precision, under what core/certified.h takes for granted.
  void rank_certified(const fmtr_batch& batch, const RankResult& result, const Certify& certify);
  // Of each candidate's fused score from that in fp32, in the measure of core/certified.h.
  void errors(const fmtr_batch& batch, float* errors);
  void request_output(const fmtr_batch& batch, std::string_view name, float* values, uint64_t capacity,
                      bool on_device = false);
  // rank() of items that lie on the device; batch.items is not read.
  void rank_device_items(fmtr_batch batch, const DeviceItemsCall& items, const RankResult& result);
  // Where the time of rank() goes, or with k = 0 of score(): once untimed, then `repeats` times. JSON text.
  std::string profile(const fmtr_batch& batch, uint64_t k, uint64_t repeats);

 private:
  // Of a model that has its weights in fp32 (too); else FMTR_ERROR_ARGUMENT.
  void need_fp32() const;
  bool computes_in_fp32() const;

  struct Worker {
    Aligned<float> request_tile, tile, tile_scores, scores, fused, exact;
    Aligned<uint32_t> gather, request_of;
    Aligned<int32_t> candidate_ids;  // the inputs of picked candidates, side by side
    Aligned<float> candidate_dense;
    Aligned<uint64_t> best;
    Aligned<Rows> scratch;
    CertifiedTopK certified;
    Profile* profile = nullptr;  // NULL but in profile()
  };

  // Candidates of a request to score, and where the results go; each may be NULL.
  struct Wanted {
    uint64_t n;
    const uint32_t* positions;  // NULL: the first n
    bool exact;
    float* scores;
    float* fused;
    Wanted part(uint64_t first, uint64_t count, size_t n_tasks) const;
  };

  // A call's batch after its checks.
  struct Call {
    const fmtr_batch* batch;
    const Catalogue* catalogue;  // NULL: none, or not asked for
    bool whole_catalogue;
    const float* fusion_weights;
    uint64_t total, most;   // candidates: in all, of the largest request
    const uint32_t* slots;  // of all candidates in the catalogue; NULL: candidates are the catalogue, or need no slot
    bool unknown;           // some of slots are kNoSlot
    uint64_t begin(uint64_t request) const { return whole_catalogue ? request * most : batch->offsets[request]; }
    const uint32_t* slots_from(uint64_t candidate) const { return slots == nullptr ? nullptr : slots + candidate; }
    uint64_t count(uint64_t request) const { return begin(request + 1) - begin(request); }
  };

  Call check(const fmtr_batch& batch, const Catalogue* catalogue, bool looks_up = true);
  void check_requests(const fmtr_batch& batch) const;
  void check_result(const fmtr_batch& batch, const RankResult& result) const;
  void reserve(const Call& call, const RankResult& result);
  Context context(const Call& call, Worker& worker) const;
  void score(const Call& call, float* scores, float* fused);
  DeviceCall device_call(const Call& call) const;
  void score_on_device(const Call& call, float* scores, float* fused) const;
  void rank_on_device(const Call& call, const RankResult& result);
  void rank(const Call& call, const RankResult& result);

  bool by_request(const Call& call) const;
  size_t workers_used(const Call& call) const;
  // Runs the request phase for all requests, block by block, then each(begin, end, worker's number, context) for the
  // requests begin .. end of a block.
  template <class Each>
  void for_each_block(const Call& call, const Each& each);
  // The same, then for each request `each(request, worker, score)`,
  // where score(wanted) scores its candidates.
  template <class Each>
  void for_each_request(const Call& call, const Each& each);
  // `first` of the candidates that are wanted, if those are consecutive.
  void score_tile(const Call& call, Context context, Worker& worker, uint64_t request, uint64_t first, Wanted wanted);
  bool shares_tiles(const Call& call) const;
  // All candidates of a block's requests, from `begin` on.
  void score_together(const Call& call, Context context, Worker& worker, uint64_t begin, const Wanted& all);
  void pick(const Call& call, Worker& worker, uint64_t request, const Wanted& wanted, Context* context) const;
  // `index(position)` is where a listed candidate's scores lie in `fused` and `scores`.
  template <class Index>
  void write_list(uint64_t request, const RankResult& result, const uint64_t* keys, uint64_t count, const float* fused,
                  const float* scores, const Index& index) const;

  std::shared_ptr<const Model> model_;
  std::vector<Port> tasks_;
  size_t tile_;
  size_t request_tile_ = 0;  // requests whose request phase runs together, and shares the reading of the weights
  std::vector<Worker> workers_;
  std::optional<ThreadPool> pool_;
  std::optional<DeviceRunner> device_;  // of a model that is on one; then there are no workers but for checks
  Aligned<uint32_t> slots_;
  std::atomic_flag in_use_;
  CatalogueVersions::Reader reader_;  // before the model goes
};

}  // namespace fastmtr
#endif
