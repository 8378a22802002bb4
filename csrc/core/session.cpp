#include "core/session.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/json.h"
#include "core/status.h"
#include "core/tile.h"
#include "core/top_k.h"

namespace fastmtr {

namespace {

constexpr uint32_t kMaxThreads = 1024;
constexpr uint32_t kMaxTile = 1 << 16;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

class InUse {
 public:
  explicit InUse(std::atomic_flag& flag) : flag_(flag) {
    if (flag_.test_and_set(std::memory_order_acquire))
      fail(FMTR_ERROR_ARGUMENT, "this session is in use by another thread: give each thread a session of its own");
  }
  ~InUse() { flag_.clear(std::memory_order_release); }
  InUse(const InUse&) = delete;
  InUse& operator=(const InUse&) = delete;

 private:
  std::atomic_flag& flag_;
};

}  // namespace

Session::Session(std::shared_ptr<const Model> model, uint32_t threads, uint32_t tile)
    : model_(std::move(model)), reader_(model_->catalogues()) {
  if (threads > kMaxThreads) fail(FMTR_ERROR_ARGUMENT, "threads is ", threads, ", expected at most ", kMaxThreads);
  if (tile > kMaxTile) fail(FMTR_ERROR_ARGUMENT, "tile is ", tile, ", expected at most ", kMaxTile);
  const Program& program = model_->program();
  const Plan& plan = model_->plan();
  for (const uint32_t t : plan.tasks) tasks_.push_back(program.port(plan.outputs[t].operand, Domain::candidate));
  if (model_->device() != nullptr) {
    device_.emplace(*model_->device());
    tile_ = tile;
    workers_.resize(1);
    return;
  }
  tile_ = tile_rows(program.busy_floats_a_candidate(), tile);
  const size_t floats_a_request = program.floats_a_row(Domain::request);
  request_tile_ = std::min(tile_rows(floats_a_request, 0), tile_rows(floats_a_request, tile));
  workers_.resize(std::max<uint32_t>(threads, 1));
  for (Worker& worker : workers_) {
    worker.request_tile = Aligned<float>(program.tile_floats(Domain::request, request_tile_));
    worker.tile = Aligned<float>(program.tile_floats(Domain::candidate, tile_));
    worker.tile_scores = Aligned<float>(tile_ * tasks_.size());
    worker.gather = Aligned<uint32_t>(tile_);
    worker.request_of = Aligned<uint32_t>(tile_);
    worker.scratch = Aligned<Rows>(program.max_inputs());
  }
  if (threads > 1) pool_.emplace(threads - 1);
}

void Session::check_requests(const fmtr_batch& batch) const {
  model_->check(Domain::request).check(batch.request_ids, batch.request_dense, batch.n_requests, FMTR_ERROR_SCHEMA);
}

Session::Call Session::check(const fmtr_batch& batch, const Catalogue* catalogue, bool looks_up) {
  if (tasks_.empty()) fail(FMTR_ERROR_ARGUMENT, "the model has no task output, so there is nothing to score");
  const Stopwatch watch(workers_[0].profile, Phase::checks);
  const uint64_t version = catalogue == nullptr ? 0 : catalogue->version();
  if (batch.catalogue_version != 0 && batch.catalogue_version != version)
    fail(FMTR_ERROR_STALE, "the catalogue is version ", version, ", the call expects version ", batch.catalogue_version,
         ": read its size and keys again, then call again");
  if (catalogue != nullptr && &catalogue->program() != &model_->program())
    fail(FMTR_ERROR_INTERNAL, "the catalogue's item values were computed by another model");
  check_requests(batch);
  Call call{};
  call.batch = &batch;
  call.catalogue = catalogue;
  call.whole_catalogue = batch.items == nullptr;
  const Plan& plan = model_->plan();
  call.fusion_weights = batch.fusion_weights != nullptr ? batch.fusion_weights : plan.fusion.weights.data();
  if (batch.fusion_weights != nullptr)
    for (size_t i = 0; i < plan.fusion.tasks.size(); ++i)
      if (!std::isfinite(batch.fusion_weights[i])) fail(FMTR_ERROR_SCHEMA, "fusion weight ", i, " is not finite");

  if (call.whole_catalogue) {
    if (call.catalogue == nullptr)
      fail(FMTR_ERROR_ARGUMENT,
           "items is NULL, which means the whole catalogue, but the model has none: set one first");
    call.most = call.catalogue->n_items();
    call.total = batch.n_requests * call.most;
  } else {
    if (batch.offsets == nullptr) fail(FMTR_ERROR_ARGUMENT, "offsets is NULL, but items are given");
    if (batch.offsets[0] != 0) fail(FMTR_ERROR_ARGUMENT, "offsets[0] is ", batch.offsets[0], ", expected 0");
    for (uint64_t r = 0; r < batch.n_requests; ++r) {
      if (batch.offsets[r + 1] < batch.offsets[r])
        fail(FMTR_ERROR_ARGUMENT, "offsets must ascend, but offsets[", r + 1, "] is ", batch.offsets[r + 1], " after ",
             batch.offsets[r]);
      call.most = std::max(call.most, batch.offsets[r + 1] - batch.offsets[r]);
    }
    call.total = batch.offsets[batch.n_requests];
    if (call.most > kMaxCandidates)
      fail(FMTR_ERROR_ARGUMENT, "a request has ", call.most, " candidates; at most ", kMaxCandidates, " are possible");
  }
  model_->check(Domain::candidate).check(batch.candidate_ids, batch.candidate_dense, call.total, FMTR_ERROR_SCHEMA);
  if (call.whole_catalogue || call.total == 0) return call;

  if (call.catalogue == nullptr) {
    if (model_->program().reads_items()) fail(FMTR_ERROR_ARGUMENT, "the model has no catalogue: set one first");
    return call;  // nothing is known of items, and nothing needs to be
  }
  if (!looks_up) return call;
  slots_.reserve(call.total);
  uint64_t missing = 0;
  {
    const Stopwatch lookup(workers_[0].profile, Phase::lookup);
    missing = catalogue->index().find(batch.items, call.total, slots_.data());
  }
  call.slots = slots_.data();
  call.unknown = missing > 0;
  if (missing > 0 && batch.unknown_items != FMTR_UNKNOWN_SKIP) {
    const uint64_t first = static_cast<uint64_t>(std::find(call.slots, call.slots + call.total, kNoSlot) - call.slots);
    fail(FMTR_ERROR_SCHEMA, "item ", batch.items[first], " (candidate ", first, ") is not in the catalogue of ",
         call.catalogue->n_items(), " items", missing > 1 ? say(", nor are ", missing - 1, " others") : "",
         "; leave them out, or ask for unknown items to be skipped");
  }
  return call;
}

Context Session::context(const Call& call, Worker& worker) const {
  Context context;
  if (call.catalogue != nullptr) call.catalogue->bind(context);
  context.request_ids = call.batch->request_ids;
  context.request_dense = call.batch->request_dense;
  context.candidate_ids = call.batch->candidate_ids;
  context.candidate_dense = call.batch->candidate_dense;
  context.request_tile = worker.request_tile.data();
  context.scratch = worker.scratch.data();
  context.profile = worker.profile;
  return context;
}

Session::Wanted Session::Wanted::part(uint64_t first, uint64_t count, size_t n_tasks) const {
  return {count, positions == nullptr ? nullptr : positions + first, exact,
          scores == nullptr ? nullptr : scores + first * n_tasks, fused == nullptr ? nullptr : fused + first};
}

// Binds candidates that are not consecutive: their slots, and copies of their own inputs.
void Session::pick(const Call& call, Worker& worker, uint64_t request, const Wanted& wanted, Context* context) const {
  const Plan& plan = model_->plan();
  const uint64_t begin = call.begin(request);
  const auto copy_rows = [&](auto& to, const auto* from, uint64_t width) {
    to.reserve(tile_ * width);
    for (uint64_t i = 0; i < wanted.n; ++i)
      std::copy_n(from + (begin + wanted.positions[i]) * width, width, to.data() + i * width);
    return to.data();
  };
  const int domain = static_cast<int>(Domain::candidate);
  if (plan.ids_width[domain] > 0)
    context->candidate_ids = copy_rows(worker.candidate_ids, call.batch->candidate_ids, plan.ids_width[domain]);
  if (plan.dense_width[domain] > 0)
    context->candidate_dense = copy_rows(worker.candidate_dense, call.batch->candidate_dense, plan.dense_width[domain]);
  context->candidate_row = 0;
  if (call.slots == nullptr && !call.whole_catalogue) return;
  for (uint64_t i = 0; i < wanted.n; ++i)
    worker.gather[i] =
        call.whole_catalogue ? call.catalogue->slot(wanted.positions[i]) : call.slots[begin + wanted.positions[i]];
  context->gather = worker.gather.data();
}

void Session::score_tile(const Call& call, Context context, Worker& worker, uint64_t request, uint64_t first,
                         Wanted wanted) {
  const Program& program = model_->program();
  const Fusion& fusion = model_->plan().fusion;
  const size_t n_tasks = tasks_.size();
  const uint64_t at = call.begin(request) + first, n = wanted.n;
  float* scores = wanted.scores == nullptr ? worker.tile_scores.data() : wanted.scores;
  const uint32_t* slots = call.slots_from(at);
  const bool unknown = call.unknown && wanted.positions == nullptr;  // unknown items are never picked
  const bool empty = unknown && call.catalogue->n_items() == 0;      // there is no item that could stand for one

  if (!empty) {
    context.tile = worker.tile.data();
    context.tile_rows = n;
    context.scratch = worker.scratch.data();
    context.exact = wanted.exact;
    context.profile = worker.profile;
    context.candidate_row = at;
    context.item_row = first;
    context.gather = call.whole_catalogue ? call.catalogue->slots(first) : slots;
    if (wanted.positions != nullptr) {
      pick(call, worker, request, wanted, &context);
    } else if (!call.unknown) {
      context.gather_after = (call.whole_catalogue ? call.most - first : call.total - at) - n;
    }
    if (unknown) {  // computed as if they were the first item; overwritten below
      const uint32_t stand_in = call.catalogue->slot(0);
      for (uint64_t i = 0; i < n; ++i) worker.gather[i] = slots[i] == kNoSlot ? stand_in : slots[i];
      context.gather = worker.gather.data();
    }
    {
      const Stopwatch watch(worker.profile, Phase::candidates);
      program.run(Domain::candidate, n, context);
    }
    const Stopwatch watch(worker.profile, Phase::fusion);
    for (size_t t = 0; t < n_tasks; ++t) {
      const Rows from = program.rows(tasks_[t], Domain::candidate, context);
      for (uint64_t i = 0; i < n; ++i)
        scores[i * n_tasks + t] = from.data[(from.gather == nullptr ? i : from.gather[i]) * from.stride];
    }
    if (wanted.fused != nullptr)
      program.kernels().fuse(n, fusion.tasks.size(), fusion.tasks.data(), call.fusion_weights, fusion.offsets.data(),
                             fusion.product, scores, n_tasks, wanted.fused);
  }
  if (unknown)
    for (uint64_t i = 0; i < n; ++i) {
      if (slots[i] != kNoSlot) continue;
      std::fill_n(scores + i * n_tasks, n_tasks, kNaN);
      if (wanted.fused != nullptr) wanted.fused[i] = kNaN;
    }
}

// Many requests, or small ones: each thread takes requests. A few large ones: all threads share the tiles of each.
bool Session::by_request(const Call& call) const {
  const uint64_t n_requests = call.batch->n_requests;
  return workers_.size() > 1 && (n_requests >= 2 * workers_.size() || (n_requests > 1 && call.most <= tile_));
}

// With their own memory for a request; others only help with its tiles.
size_t Session::workers_used(const Call& call) const { return by_request(call) ? workers_.size() : 1; }

template <class Each>
void Session::for_each_block(const Call& call, const Each& each) {
  const Program& program = model_->program();
  const uint64_t n_requests = call.batch->n_requests;
  const size_t threads = workers_.size();
  const bool by_request = this->by_request(call);
  const uint64_t block =
      by_request ? std::clamp<uint64_t>(n_requests / (4 * threads), 1, request_tile_) : request_tile_;
  const uint64_t n_blocks = (n_requests + block - 1) / block;

  const auto run_block = [&](size_t part, size_t who) {
    Worker& owner = workers_[who];
    Context shared = context(call, owner);
    const uint64_t begin = part * block, end = std::min(begin + block, n_requests);
    shared.request_tile_rows = end - begin;
    shared.request_row = begin;
    {
      const Stopwatch watch(owner.profile, Phase::request);
      program.run(Domain::request, end - begin, shared);
    }
    each(begin, end, who, shared);
  };
  if (by_request) {
    pool_->run(n_blocks, run_block);
  } else {
    for (uint64_t b = 0; b < n_blocks; ++b) run_block(b, 0);
  }
}

template <class Each>
void Session::for_each_request(const Call& call, const Each& each) {
  const bool by_request = this->by_request(call);
  for_each_block(call, [&](uint64_t begin, uint64_t end, size_t who, Context shared) {
    for (uint64_t r = begin; r < end; ++r) {
      shared.request_row = r;
      shared.request_tile_row = r - begin;
      each(r, workers_[who], [&](const Wanted& wanted) {
        const uint64_t n_tiles = (wanted.n + tile_ - 1) / tile_;
        const auto run_tile = [&](size_t t, size_t w) {
          const uint64_t first = t * tile_;
          score_tile(call, shared, workers_[w], r, first,
                     wanted.part(first, std::min<uint64_t>(tile_, wanted.n - first), tasks_.size()));
        };
        if (workers_.size() > 1 && !by_request && n_tiles > 1) {
          pool_->run(n_tiles, run_tile);
        } else {
          for (uint64_t t = 0; t < n_tiles; ++t) run_tile(t, who);
        }
      });
    }
  });
}

// Requests of few candidates each: those of a block go through the tiles together, each with the row of its request,
// and the weights are read once for all.
bool Session::shares_tiles(const Call& call) const {
  constexpr uint64_t kFew = 32;
  return call.batch->n_requests > 1 && !call.whole_catalogue && call.most <= kFew &&
         !model_->program().candidates_read_request_ids();
}

void Session::score_together(const Call& call, Context context, Worker& worker, uint64_t begin, const Wanted& all) {
  uint64_t request = begin, left = call.count(begin);
  for (uint64_t first = 0; first < all.n; first += tile_) {
    const uint64_t n = std::min<uint64_t>(tile_, all.n - first);
    for (uint64_t i = 0; i < n; ++i, --left) {
      while (left == 0) left = call.count(++request);
      worker.request_of[i] = static_cast<uint32_t>(request - begin);
    }
    context.request_of = worker.request_of.data();
    score_tile(call, context, worker, begin, first, all.part(first, n, tasks_.size()));
  }
}

void Session::score(const fmtr_batch& batch, float* scores, float* fused) {
  const InUse mine(in_use_);
  const CatalogueVersions::Snapshot snapshot(reader_);
  score(check(batch, snapshot.get()), scores, fused);
}

void Session::score(const Call& call, float* scores, float* fused) {
  if (call.total == 0) return;
  if (device_) return score_on_device(call, scores, fused);
  const Wanted all{call.total, nullptr, false, scores, fused};
  if (shares_tiles(call))
    return for_each_block(call, [&](uint64_t begin, uint64_t end, size_t who, const Context& shared) {
      const uint64_t at = call.begin(begin);
      score_together(call, shared, workers_[who], begin, all.part(at, call.begin(end) - at, tasks_.size()));
    });
  for_each_request(call, [&](uint64_t r, Worker&, const auto& score) {
    score(all.part(call.begin(r), call.count(r), tasks_.size()));
  });
}

DeviceCall Session::device_call(const Call& call) const {
  DeviceCall to{};
  to.n_requests = call.batch->n_requests;
  to.total = call.total;
  to.most = call.most;
  to.request_ids = call.batch->request_ids;
  to.request_dense = call.batch->request_dense;
  to.offsets = call.whole_catalogue ? nullptr : call.batch->offsets;
  to.slots = call.slots;
  to.candidate_ids = call.batch->candidate_ids;
  to.candidate_dense = call.batch->candidate_dense;
  to.fusion_weights = call.fusion_weights;
  to.catalogue = call.catalogue == nullptr ? nullptr : call.catalogue->on_device();
  to.tile = static_cast<uint32_t>(tile_);
  return to;
}

void Session::score_on_device(const Call& call, float* scores, float* fused) const {
  if (call.unknown && call.catalogue->n_items() == 0) {  // there is no item that could stand for one
    if (scores != nullptr) std::fill_n(scores, call.total * tasks_.size(), kNaN);
    if (fused != nullptr) std::fill_n(fused, call.total, kNaN);
    return;
  }
  DeviceCall to = device_call(call);
  to.scores = scores;
  to.fused = fused;
  device_->run(to);
}

// The device's lists are no longer than the longest request; places beyond are filled here.
void Session::rank_on_device(const Call& call, const RankResult& result) {
  const uint64_t n_requests = call.batch->n_requests, k = std::min(result.k, call.most), n_tasks = tasks_.size();
  const bool nothing = k == 0 || (call.unknown && call.catalogue->n_items() == 0);
  for (uint64_t r = 0; r < n_requests; ++r) {
    const uint64_t from = nothing ? 0 : k, places = result.k - from, at = r * result.k + from;
    if (nothing) result.counts[r] = 0;
    std::fill_n(result.positions + at, places, UINT64_MAX);
    if (result.fused != nullptr) std::fill_n(result.fused + at, places, kNaN);
    if (result.scores != nullptr) std::fill_n(result.scores + at * n_tasks, places * n_tasks, kNaN);
  }
  if (nothing) return;
  DeviceCall to = device_call(call);
  to.list = 1;
  to.k = k;
  to.list_stride = result.k;
  to.positions = result.positions;
  to.list_fused = result.fused;
  to.list_scores = result.scores;
  to.counts = result.counts;
  device_->run(to);
}

void Session::rank_device_items(fmtr_batch batch, const DeviceItemsCall& items, const RankResult& result) {
  const InUse mine(in_use_);
  if (!device_) fail(FMTR_ERROR_BACKEND, "the model is on the CPU: give it items that are there, too");
  if (items.items == nullptr) fail(FMTR_ERROR_ARGUMENT, "the device's items are NULL");
  if (batch.unknown_items != FMTR_UNKNOWN_SKIP)
    fail(FMTR_ERROR_ARGUMENT,
         "items on the device are looked up there, where unknown ones can only be skipped: set "
         "unknown_items to FMTR_UNKNOWN_SKIP");
  const CatalogueVersions::Snapshot snapshot(reader_);
  if (snapshot.get() == nullptr) fail(FMTR_ERROR_ARGUMENT, "the model has no catalogue: set one first");
  static const int64_t elsewhere = 0;  // NULL would mean the whole catalogue
  batch.items = &elsewhere;
  const Call call = check(batch, snapshot.get(), false);
  check_result(batch, result);
  if (result.k == 0) fail(FMTR_ERROR_ARGUMENT, "k is 0, expected at least 1");
  if (batch.n_requests == 0) return;
  if (!items.are_rows) snapshot.get()->put_keys_on_device();
  DeviceCall to = device_call(call);
  to.list = 1;
  to.device_items = items.items;
  to.items_are_rows = items.are_rows;
  to.wait_for_stream = items.wait_for_stream;
  to.stream = items.stream;
  to.results_on_device = items.results_on_device;
  to.k = to.list_stride = result.k;
  to.positions = result.positions;
  to.list_fused = result.fused;
  to.list_scores = result.scores;
  to.list_items = items.list_items;
  to.counts = result.counts;
  device_->run(to);
}

bool Session::computes_in_fp32() const {
  return device_ ? model_->device()->precision() == DevicePrecision::fp32
                 : model_->program().precision() == Precision::fp32;
}

void Session::need_fp32() const {
  if (device_ && !computes_in_fp32())
    fail(FMTR_ERROR_BACKEND,
         "on this device nothing is scored again in fp32: load the model with precision fp32, or "
         "for certified lists on the CPU with int8");
  if (model_->program().precision() == Precision::fp16)
    fail(FMTR_ERROR_ARGUMENT,
         "a model loaded with precision fp16 keeps no fp32 weights to compare with or to score again in: load it with "
         "fp32 or int8");
}

void Session::errors(const fmtr_batch& batch, float* errors) {
  need_fp32();
  const InUse mine(in_use_);
  const CatalogueVersions::Snapshot snapshot(reader_);
  const Call call = check(batch, snapshot.get());
  if (call.total == 0) return;
  if (errors == nullptr) fail(FMTR_ERROR_ARGUMENT, "errors is NULL");
  if (device_) {  // in fp32
    std::fill_n(errors, call.total, 0.0f);
    return;
  }
  for (size_t w = 0; w < workers_used(call); ++w) workers_[w].exact.reserve(call.most);
  for_each_request(call, [&](uint64_t r, Worker& worker, const auto& score) {
    float* to = errors + call.begin(r);
    const uint64_t n = call.count(r);
    score({n, nullptr, false, nullptr, to});
    score({n, nullptr, true, nullptr, worker.exact.data()});
    for (uint64_t i = 0; i < n; ++i)
      to[i] = static_cast<float>(error_between(to[i], worker.exact[i], model_->plan().fusion.product));
  });
}

void Session::check_result(const fmtr_batch& batch, const RankResult& result) const {
  if (batch.n_requests > 0 && result.counts == nullptr) fail(FMTR_ERROR_ARGUMENT, "counts is NULL");
  if (batch.n_requests > 0 && result.k > 0 && result.positions == nullptr)
    fail(FMTR_ERROR_ARGUMENT, "positions is NULL, but k is ", result.k);
}

void Session::reserve(const Call& call, const RankResult& result) {
  for (size_t w = 0; w < workers_used(call); ++w) {
    Worker& worker = workers_[w];
    worker.best.reserve(std::min(result.k, call.most));
    worker.fused.reserve(call.most);
    if (result.scores != nullptr) worker.scores.reserve(call.most * tasks_.size());
  }
}

void Session::rank(const fmtr_batch& batch, const RankResult& result) {
  const InUse mine(in_use_);
  const CatalogueVersions::Snapshot snapshot(reader_);
  const Call call = check(batch, snapshot.get());
  check_result(batch, result);
  rank(call, result);
}

void Session::rank(const Call& call, const RankResult& result) {
  if (result.k == 0) {
    std::fill_n(result.counts, call.batch->n_requests, uint64_t{0});
    return;
  }
  if (device_) return rank_on_device(call, result);
  reserve(call, result);
  for_each_request(call, [&](uint64_t r, Worker& worker, const auto& score) {
    float* scores = result.scores == nullptr ? nullptr : worker.scores.data();
    score({call.count(r), nullptr, false, scores, worker.fused.data()});
    const Stopwatch watch(worker.profile, Phase::top_k);
    const uint64_t n = call.count(r);
    const uint32_t* slots = call.slots_from(call.begin(r));
    const uint64_t count = top_k(worker.fused.data(), n, slots, std::min(result.k, n), worker.best.data());
    write_list(r, result, worker.best.data(), count, worker.fused.data(), scores, [](uint32_t i) { return i; });
  });
}

void Session::rank_certified(const fmtr_batch& batch, const RankResult& result, const Certify& certify) {
  need_fp32();
  if (result.k == 0 || computes_in_fp32()) {
    rank(batch, result);
    if (certify.rescored != nullptr) std::fill_n(certify.rescored, batch.n_requests, uint64_t{0});
    return;
  }
  const InUse mine(in_use_);
  const CatalogueVersions::Snapshot snapshot(reader_);
  const Call call = check(batch, snapshot.get());
  check_result(batch, result);
  reserve(call, result);
  for (size_t w = 0; w < workers_used(call); ++w) {
    workers_[w].certified.reserve(call.most, result.k);
    workers_[w].exact.reserve(call.most);
  }
  for_each_request(call, [&](uint64_t r, Worker& worker, const auto& score) {
    const uint64_t n = call.count(r);
    const uint32_t* slots = call.slots_from(call.begin(r));
    CertifiedTopK& list = worker.certified;
    float* scores = result.scores == nullptr ? nullptr : worker.scores.data();
    score({n, nullptr, false, nullptr, worker.fused.data()});
    list.start({worker.fused.data(), n, slots, model_->plan().fusion.product}, result.k, certify.width);
    for (;;) {
      const uint64_t before = list.asked();
      uint64_t wanted = 0;
      const uint32_t* positions = list.next(&wanted);
      if (wanted == 0) break;
      score({wanted, positions, true, scores == nullptr ? nullptr : scores + before * tasks_.size(),
             worker.exact.data() + before});
      list.receive(worker.exact.data() + before);
    }
    uint64_t count = 0;
    const uint64_t* keys = list.keys(&count);
    write_list(r, result, keys, count, worker.exact.data(), scores, [&](uint32_t i) { return list.asked_as(i); });
    if (certify.rescored != nullptr) certify.rescored[r] = list.asked();
  });
}

template <class Index>
void Session::write_list(uint64_t request, const RankResult& result, const uint64_t* keys, uint64_t count,
                         const float* fused, const float* scores, const Index& index) const {
  const size_t n_tasks = tasks_.size();
  result.counts[request] = count;
  for (uint64_t i = 0; i < result.k; ++i) {
    const uint64_t at = request * result.k + i;
    const bool listed = i < count;
    result.positions[at] = listed ? position_of(keys[i]) : UINT64_MAX;
    const size_t from = listed ? index(position_of(keys[i])) : 0;
    if (result.fused != nullptr) result.fused[at] = listed ? fused[from] : kNaN;
    if (result.scores == nullptr) continue;
    for (size_t t = 0; t < n_tasks; ++t) result.scores[at * n_tasks + t] = listed ? scores[from * n_tasks + t] : kNaN;
  }
}

std::string Session::profile(const fmtr_batch& batch, uint64_t k, uint64_t repeats) {
  if (device_)
    fail(FMTR_ERROR_BACKEND,
         "the profile is the CPU's, step by step: load the model with device cpu, or use the "
         "device's own profiler");
  const InUse mine(in_use_);
  const CatalogueVersions::Snapshot snapshot(reader_);
  const auto run = [&](const Call& call, auto& memory) {
    if (k == 0) return score(call, memory.scores.data(), memory.fused.data());
    rank(call, {k, memory.positions.data(), memory.fused.data(), memory.scores.data(), memory.counts.data()});
  };
  struct {
    Aligned<float> scores, fused;
    Aligned<uint64_t> positions, counts;
  } memory;
  const Call call = check(batch, snapshot.get());
  if (k > call.most) k = call.most;  // beyond there are only empty places
  const uint64_t rows = k == 0 ? call.total : batch.n_requests * k;
  memory.scores = Aligned<float>(rows * tasks_.size());
  memory.fused = Aligned<float>(rows);
  memory.positions = Aligned<uint64_t>(rows);
  memory.counts = Aligned<uint64_t>(batch.n_requests);
  run(call, memory);

  std::vector<Profile> profiles(workers_.size(), Profile(model_->plan().steps.size()));
  const struct Watched {
    std::vector<Worker>& workers;
    Watched(std::vector<Worker>& workers, std::vector<Profile>& profiles) : workers(workers) {
      for (size_t w = 0; w < workers.size(); ++w) workers[w].profile = &profiles[w];
    }
    ~Watched() {
      for (Worker& worker : workers) worker.profile = nullptr;
    }
  } watched(workers_, profiles);
  uint64_t nanoseconds = 0;
  for (uint64_t i = 0; i < repeats; ++i) {
    const Stopwatch watch(&nanoseconds);
    run(check(batch, snapshot.get()), memory);
  }
  for (size_t w = 1; w < profiles.size(); ++w) profiles[0].add(profiles[w]);
  uint64_t* phases = profiles[0].phases;
  phases[static_cast<int>(Phase::checks)] -= phases[static_cast<int>(Phase::lookup)];  // measured within them
  return profile_json(profiles[0], {repeats, batch.n_requests, call.total, k, workers_.size(), nanoseconds},
                      model_->program());
}

void Session::request_output(const fmtr_batch& batch, std::string_view name, float* values, uint64_t capacity,
                             bool on_device) {
  if (on_device && !device_) fail(FMTR_ERROR_BACKEND, "the model is on the CPU, and so are its outputs");
  const InUse mine(in_use_);
  const Plan& plan = model_->plan();
  const Program& program = model_->program();
  const PlanOutput& output = plan.output(name, Role::request);
  check_requests(batch);
  const uint64_t width = output.operand.width, n_requests = batch.n_requests;
  if (n_requests > std::numeric_limits<uint64_t>::max() / width || capacity < n_requests * width)
    fail(FMTR_ERROR_ARGUMENT, "values has room for ", capacity, " numbers, ", n_requests, " times ", width,
         " are needed");
  if (n_requests == 0) return;
  if (values == nullptr) fail(FMTR_ERROR_ARGUMENT, "values is NULL");
  if (device_) {
    DeviceCall to{};
    to.n_requests = n_requests;
    to.request_ids = batch.request_ids;
    to.request_dense = batch.request_dense;
    to.results_on_device = on_device;
    device_->request_output(to, static_cast<size_t>(&output - plan.outputs.data()), values);
    return;
  }
  const auto& steps = program.steps_for(static_cast<size_t>(&output - plan.outputs.data()));
  const Port port = program.port(output.operand, Domain::request);
  Call call{};
  call.batch = &batch;
  const auto run_block = [&](size_t part, size_t who) {
    Worker& worker = workers_[who];
    Context here = context(call, worker);
    here.request_row = part * request_tile_;
    here.request_tile_rows = std::min<uint64_t>(request_tile_, n_requests - here.request_row);
    program.run(steps, Domain::request, here.request_tile_rows, here);
    program.kernels().copy(here.request_tile_rows, width, program.rows(port, Domain::request, here),
                           {values + here.request_row * width, width});
  };
  const uint64_t n_blocks = (n_requests + request_tile_ - 1) / request_tile_;
  if (pool_ && n_blocks > 1) {
    pool_->run(n_blocks, run_block);
  } else {
    for (uint64_t b = 0; b < n_blocks; ++b) run_block(b, 0);
  }
}

}  // namespace fastmtr
